"""The `separate` design: one LoRA classifier per category, trained by TRL's `RewardTrainer`; the yardstick.

Every category is a PEFT folder (adapter + `score` head) that `AutoModelForSequenceClassification` and `PeftModel` open
without this library. Training sees right-padded conversations in the chat template; scoring sees the same.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from srmir_lib.conversations import conversation_ids
from srmir_lib.data.introspection import Introspector
from srmir_lib.errors import InputError
from srmir_lib.models.embeddings import micro_batches
from srmir_lib.models.loading import load_tokenizer, pick_device, quiet


def base_classifier(base_model: str | Path):
    """The base model with a fresh one-number head `score`, float32; the head is trained, or read from an adapter."""
    with quiet():
        classifier = AutoModelForSequenceClassification.from_pretrained(
            str(base_model), num_labels=1, dtype=torch.float32
        )
    tokenizer = load_tokenizer(base_model)
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # which token is last depends on it
    return classifier


class SeparateScorer:
    """One base model in memory, K adapters on it, one of them active at a time."""

    def __init__(
        self,
        folder: str | Path,
        base_model: str | Path,
        categories: Sequence[str],
        device: str = "auto",
        batch_size: int = 64,
        question: str = "",
        draft_tokens: int = 24,
    ):
        from peft import PeftModel

        folder, self.categories, self.batch_size = Path(folder), list(categories), batch_size
        self.tokenizer, self.device = load_tokenizer(base_model), pick_device(device)
        self.think = Introspector(base_model, question, draft_tokens, device)
        model = base_classifier(base_model).to(self.device)
        for category in self.categories:
            adapter = folder / category
            if not (adapter / "adapter_model.safetensors").is_file():
                raise InputError(
                    f"{adapter}: no adapter_model.safetensors for category {category}; train it again (02)"
                )
            try:
                if isinstance(model, PeftModel):
                    model.load_adapter(adapter, category, torch_device=str(self.device))
                else:
                    model = PeftModel.from_pretrained(
                        model, adapter, adapter_name=category, torch_device=str(self.device)
                    )
            except Exception as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"{adapter}: damaged adapter ({reason}); train it again (02)") from error
        self.model = model.eval()

    def score(self, prompts: Sequence, completions: Sequence) -> Tensor:
        """Every model on every row: (N, K), float32, on the CPU."""
        ids = conversation_ids(self.tokenizer, self.think(prompts), completions)
        return torch.stack([self.score_ids(ids, category) for category in self.categories], dim=1)

    def score_routed(self, prompts: Sequence, completions: Sequence, columns: Tensor) -> Tensor:
        """Row i by model `columns[i]` only: (N,). Costs one forward a row, whatever K is."""
        ids, scores = conversation_ids(self.tokenizer, self.think(prompts), completions), torch.zeros(len(columns))
        for column in sorted(set(columns.tolist())):
            rows = (columns == column).nonzero().flatten()
            scores[rows] = self.score_ids([ids[row] for row in rows.tolist()], self.categories[column])
        return scores

    @torch.no_grad()
    def score_ids(self, ids: Sequence[list[int]], category: str) -> Tensor:
        """Scores (N,) of tokenized conversations by one category's model; an empty list gives an empty tensor."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for row, tokens in enumerate(ids):
            if limit is not None and len(tokens) > limit:
                raise InputError(f"row {row}: {len(tokens)} tokens, but the reward model reads at most {limit}")
        self.model.set_adapter(category)  # freezes the others: right for scoring, wrong for joint training
        scores = torch.zeros(len(ids))
        for rows, inputs in micro_batches(ids, self.tokenizer.pad_token_id, self.batch_size, self.device):
            scores[rows] = self.model(**inputs, use_cache=False).logits.squeeze(-1).float().cpu()
        return scores
