"""Think before judging: a reward model first reads what the base model itself says about the prompt.

The base model is asked once per distinct prompt why it would refuse it; the draft it writes (not its answer) becomes a
turn of the conversation in front of the prompt. What the model knows when asked is then in plain sight of the
judge, and completions of one prompt share the cost.
"""

from collections.abc import Sequence

from srmir_lib.models import generate, load_policy, load_tokenizer
from srmir_lib.templates import SEPARATOR, assistant_message, cod_prompt, text_of


class Introspector:
    """`Introspector(base, question, 24)(prompts)` -> conversations that start with the base model's own draft.

    `question` holds {prompt}; with an empty one conversations come back as they are. Drafts are greedy, so they depend
    on the prompt alone, and are remembered.
    """

    def __init__(self, base_model, question: str, max_new_tokens: int, device: str = "auto", tokenizer=None):
        """`base_model`: an id or folder or, with its `tokenizer`, a causal model already in memory."""
        self.question, self.max_new_tokens, self.drafts = question, max_new_tokens, {}
        if question:
            self.model = base_model if tokenizer is not None else load_policy(base_model, device)
            self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(base_model)

    def __call__(self, prompts: Sequence) -> list:
        """Prompts are user texts or conversations; the draft is about the last user turn."""
        if not self.question:
            return list(prompts)
        texts = [text_of(prompt) for prompt in prompts]
        new = [text for text in dict.fromkeys(texts) if text not in self.drafts]
        asked = [cod_prompt(text, self.question) for text in new]
        ask = {"temperature": 0, "until": SEPARATOR}
        said = generate(self.model, self.tokenizer, asked, self.max_new_tokens, **ask) if new else []
        self.drafts.update(zip(new, (text.partition(SEPARATOR)[0].strip() for text in said), strict=True))
        turns = [cod_prompt(text, self.question) + assistant_message(self.drafts[text]) for text in texts]
        chats = [[{"role": "user", "content": p}] if isinstance(p, str) else list(p) for p in prompts]
        return [before + chat for before, chat in zip(turns, chats, strict=True)]
