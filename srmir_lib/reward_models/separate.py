"""The `separate` design: one LoRA classifier per category, trained by TRL's `RewardTrainer`; the yardstick.

Every category is a PEFT folder (adapter + `score` head) that `AutoModelForSequenceClassification` and `PeftModel` open
without this library. Training sees right-padded conversations in the chat template; scoring sees the same.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from srmir_lib.artifacts import as_written
from srmir_lib.conversations import check_lengths, conversation_ids, too_long
from srmir_lib.errors import InputError
from srmir_lib.models.batching import by_length, padded
from srmir_lib.models.kinds import separate_problem
from srmir_lib.models.loading import config_of, load_tokenizer, quiet, share_weights, whole_adapter
from srmir_lib.models.trunk import Trunk


def base_classifier(base_model: str | Path):
    """The base model with a fresh one-number head `score`, float32; the head is trained, or read from an adapter."""
    if problem := separate_problem(config_of(base_model)):
        raise InputError(f"{base_model}: {problem}")
    with quiet():
        classifier = AutoModelForSequenceClassification.from_pretrained(
            str(base_model), num_labels=1, dtype=torch.float32
        )
    tokenizer = load_tokenizer(base_model)
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # which token is last depends on it
    return classifier


def classifier_on(trunk: Trunk):
    """The same over the trunk's own weights; only weights of another precision than float32 are loaded once more."""
    if problem := separate_problem(trunk.model):
        raise InputError(problem)
    if trunk.dtype != "float32":
        return base_classifier(trunk.base_model).to(trunk.device)
    config = deepcopy(trunk.model.config)
    config.num_labels, config.get_text_config().pad_token_id = 1, trunk.tokenizer.pad_token_id
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    setattr(classifier, classifier.base_model_prefix, share_weights(trunk.model).base_model)
    classifier.score = nn.Linear(classifier.score.in_features, 1, bias=False, device=trunk.device)
    return classifier


class SeparateScorer:
    """K adapters on the weights of a trunk, one of them active at a time."""

    def __init__(self, folder: Path, config: dict, trunk: Trunk):
        """Read a set that `fit_separate` wrote."""
        from peft import PeftModel

        self.trunk, self.categories = trunk, config["categories"]
        model, options = classifier_on(trunk), {"torch_device": str(trunk.device)}
        for category in self.categories:
            adapter = folder / category
            if not (adapter / "adapter_model.safetensors").is_file():
                raise InputError(
                    f"{adapter}: no adapter_model.safetensors for category {category}; train it again (02)"
                )
            with as_written(adapter, "damaged adapter", "train it again (02)"), whole_adapter():
                if isinstance(model, PeftModel):
                    model.load_adapter(adapter, _name(category), **options)
                else:
                    model = PeftModel.from_pretrained(model, adapter, adapter_name=_name(category), **options)
        self.model = model.eval()
        for category in self.categories:
            with as_written(folder / category, "damaged adapter", "train it again (02)"):
                self.score_ids([[0]], category)

    def too_long(self, tokens: int) -> str:
        """What is wrong with a conversation of so many tokens; "" if nothing."""
        return too_long(tokens, self.trunk.longest)

    def score(self, prompts: Sequence, completions: Sequence, columns: Tensor | None = None) -> Tensor:
        """Every model on every row, (N, K) or, with `columns`, row i by model `columns[i]` only, (N,), which costs one
        forward a row, whatever K is; on the CPU."""
        ids = conversation_ids(self.trunk.tokenizer, prompts, completions)
        check_lengths(ids, self.trunk.longest)
        if columns is None:
            return torch.stack([self.score_ids(ids, category) for category in self.categories], dim=1)
        scores = torch.zeros(len(columns))
        for column in sorted(set(columns.tolist())):
            rows = (columns == column).nonzero().flatten()
            scores[rows] = self.score_ids([ids[row] for row in rows.tolist()], self.categories[column])
        return scores

    @torch.no_grad()
    def score_ids(self, ids: Sequence[list[int]], category: str) -> Tensor:
        """Scores (N,) of tokenized conversations by one category's model; an empty list gives an empty tensor."""
        self.model.set_adapter(_name(category))  # freezes the others: right for scoring, wrong for joint training
        scores = torch.zeros(len(ids))
        for rows in by_length(range(len(ids)), [len(tokens) for tokens in ids], self.trunk.batch_tokens):
            inputs = padded([ids[row] for row in rows], self.trunk.device, self.trunk.tokenizer.pad_token_id)
            scores[rows] = self.model(**inputs, use_cache=False).logits.squeeze(-1).float().cpu()
        return scores


def _name(category: str) -> str:
    """What a category's adapter is called: torch keeps some names ("type", "values", "training") for itself."""
    return f"of_{category}"
