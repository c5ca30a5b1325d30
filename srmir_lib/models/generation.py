"""Load and run models: causal language models by id or folder, and batched generation.

Nothing here knows which model it is given. A missing model, tokenizer or chat template is an error with a fix, never a
silent fallback.
"""

import random
from collections.abc import Sequence
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils.logging import disable_progress_bar

from srmir_lib.conversations import user_message
from srmir_lib.models.kv_cache import roomy
from srmir_lib.models.parallel import run_in_threads

GONE = 4
"""Rows that are over leave a batch once they are at least one in so many: what is left has to be copied together."""


class GumbelNoise(LogitsProcessor):
    """Noise that makes the largest logit a sample: argmax(logit / temperature + Gumbel noise) is distributed as the
    softmax (Gumbel 1954; Maddison et al. 2014, section 2). Its random numbers are its own: what torch draws by itself
    comes from one generator for all threads.
    """

    def __init__(self, temperature: float, seed: str, device: torch.device):
        """`seed`: any text; the same one, the same noise."""
        self.temperature = temperature
        self.generator = torch.Generator(device).manual_seed(random.Random(seed).getrandbits(63))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, logits of the next token (rows, vocabulary), divided by the temperature, with noise."""
        return self.add(scores, torch.arange(len(scores), device=scores.device), len(scores))

    def add(self, scores: Tensor, rows: Tensor, count: int) -> Tensor:
        """The same for some `rows` of a batch of `count`: what others draw does not depend on which are left."""
        noise = scores.new_empty(count, scores.shape[1]).exponential_(generator=self.generator)
        return scores / self.temperature - noise[rows].log_()


@torch.no_grad()
def decode(
    policy,
    ids: Tensor,
    mask: Tensor,
    texts: Tensor,
    max_new_tokens: int,
    ends: Sequence[int],
    pad: int,
    noise: GumbelNoise | None = None,
) -> Tensor:
    """Answers (B, at most max_new_tokens) to the texts numbered `texts` (B,) of `ids` (N, T), which are padded on the
    left (`mask` is 0 there). A text that is to be answered several times is read once.

    The next token is the one with the largest logit, with `noise` if it is given. An answer ends with the first token
    that is one of `ends`; behind it is `pad`.
    """
    last = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
    said = ids.new_full((len(texts), max_new_tokens), pad)
    cache, positions = roomy(policy.config, max_new_tokens), (mask.cumsum(1) - 1).clamp(min=0)
    rows, over = torch.arange(len(texts), device=ids.device), texts.new_zeros(len(texts), dtype=torch.bool)
    for step in range(max_new_tokens):
        read = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits = policy(**read, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        if step == 0 and not torch.equal(texts, torch.arange(len(ids), device=ids.device)):
            cache.batch_select_indices(texts)
            logits, mask, positions = logits[texts], mask[texts], positions[texts]
        scores = logits if noise is None else noise.add(logits, rows, len(texts))
        tokens = scores.argmax(dim=1).masked_fill(over, pad)
        said[rows, step] = tokens
        over = over | torch.isin(tokens, last)
        ended = int(over.sum())
        if ended == len(rows):
            return said[:, : step + 1]
        mask, positions = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1), positions[:, -1:] + 1
        if ended * GONE >= len(rows):
            left = (~over).nonzero()[:, 0]
            cache.batch_select_indices(left)
            rows, tokens, mask, positions, over = (part[left] for part in (rows, tokens, mask, positions, over))
        ids = tokens.unsqueeze(1)
    return said


DECODED = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models that `generate` lets speak by `decode` (tested); others by transformers' own `generate`."""


# "Loading weights" bars are over before they are read, and fill executed notebooks.
disable_progress_bar()


def generate(
    policy,
    tokenizer,
    prompts: Sequence[str | list[dict]],
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    progress: str | None = None,
    until: str = "",
) -> list[str]:
    """One response per prompt, decoded without special tokens. `temperature=0` is greedy. Same seed, same answers.
    With `until` a response also ends with the first token that holds this text; what follows is not wanted.

    Prompts are user texts or conversations. Batches are sorted by length: little is spent on padding; what is asked
    several times is read once. Each batch has random numbers of its own; on a CPU they run side by side, a core each
    (an activated LoRA or a learned prompt: in turn).
    """
    texts = [render(tokenizer, user_message(p) if isinstance(p, str) else p) for p in prompts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shape = {"return_tensors": "pt", "padding": True, "add_special_tokens": False}
    different = [list(dict.fromkeys(texts[i] for i in rows)) for rows in batches]
    tokens = [tokenizer(once, **shape) for once in different]
    places = [torch.tensor([once.index(texts[i]) for i in rows]) for once, rows in zip(different, batches, strict=True)]
    config = policy.active_peft_config if isinstance(policy, PeftModel) else None
    only_peft = config and (config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None))
    end = policy.generation_config.eos_token_id  # a number, several, or none
    ends = [] if end is None else torch.as_tensor(end).view(-1).tolist()
    ends += [number for token, number in tokenizer.get_vocab().items() if until and until in token]
    by_us = not only_peft and policy.config.model_type in DECODED
    if config and not only_peft:
        policy = policy.get_base_model()  # its layers hold the adapter; the `generate` of PEFT is not for two threads

    def answer(number: int) -> torch.Tensor:
        batch, at = tokens[number].to(policy.device), places[number].to(policy.device)
        ids, mask, pad = batch["input_ids"], batch["attention_mask"], tokenizer.pad_token_id
        noise = GumbelNoise(temperature, f"{seed}, {number}", policy.device) if temperature > 0 else None
        if by_us:
            return decode(policy, ids, mask, at, max_new_tokens, ends, pad, noise)
        output = policy.generate(
            input_ids=ids[at],
            attention_mask=mask[at],
            max_new_tokens=max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=pad,
            do_sample=False,
            repetition_penalty=1.0,  # a model's own setting would bend what it says
            logits_processor=LogitsProcessorList([noise] if noise else []),
        )
        return output[:, ids.shape[1] :]

    jobs = {number: partial(answer, number) for number in range(len(batches))}
    answers = [""] * len(texts)
    found = (
        {number: job() for number, job in jobs.items()} if only_peft else run_in_threads(jobs, policy.device, progress)
    )
    for number, said in found.items():
        for i, text in zip(batches[number], tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
    return answers


def render(tokenizer, messages: list[dict]) -> str:
    """Conversation as the text the model sees, up to where its answer starts."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
