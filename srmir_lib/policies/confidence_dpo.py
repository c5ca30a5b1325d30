r"""RBRM's training of the policy: DPO in which a label counts as far as it is trusted.

Deng et al. 2025 (arXiv 2503.10093), as `papers.rbrm.confidence_dpo_loss` states it; here TRL's own trainer and loss run
it. With $z=\beta h$, the gap between the implicit rewards of a pair, $-\log\sigma(-z)=-\log\sigma(z)+z$, so that
$-\gamma\log\sigma(z)-(1-\gamma)\log\sigma(-z)=-\log\sigma(z)+(1-\gamma)z$: TRL's loss and a term beside it (tested).
"""

from collections.abc import Callable

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from srmir_lib.errors import InputError
from srmir_lib.papers.rbrm import batch_confidence

SCORES = ("score_chosen", "score_rejected")
"""Columns of the scores that one confidence for a whole batch is taken from."""


class ConfidenceDPOTrainer(DPOTrainer):
    r"""TRL's trainer on pairs with a column `confidence`: $\gamma$, one a pair, above 0 and at most 1 (plain DPO).

    With `alpha` the confidence is one for each batch, `papers.rbrm.batch_confidence` of the columns `score_chosen` and
    `score_rejected`; a batch is what one forward pass reads (`per_device_train_batch_size` pairs). What is logged is
    TRL's, and its `loss` ours.
    """

    def __init__(self, args: DPOConfig, train_dataset: Dataset, alpha: float | None = None, **rest):
        check_confidence(train_dataset, alpha)
        self.alpha, columns = alpha, ["confidence"] if alpha is None else list(SCORES)
        args.precompute_ref_log_probs = True  # so that a forward pass of a batch is the policy's
        args.remove_unused_columns = False
        super().__init__(args=args, train_dataset=train_dataset, **rest)
        self.data_collator = _with_columns(self.data_collator, columns)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss of the batch (scalar, nats), and $(1-\\gamma)\\beta h$, mean over its pairs."""
        own = {name: inputs[name] for name in ("confidence", *SCORES) if name in inputs}
        batch, passes = {name: value for name, value in inputs.items() if name not in own}, []
        hook = model.register_forward_hook(lambda module, arguments, output: passes.append(output))
        try:
            loss = super().compute_loss(model, batch, return_outputs, num_items_in_batch)
        finally:
            hook.remove()
        width = batch["input_ids"].shape[1] - 1
        chosen, rejected = passes[0].log_probs[:, -width:].sum(dim=1).chunk(2)
        gap = self.beta * (chosen - batch["ref_chosen_logps"] - rejected + batch["ref_rejected_logps"])
        if self.alpha is None:
            confidence = own["confidence"]
        else:
            confidence = batch_confidence(own["score_chosen"], own["score_rejected"], self.alpha)
        beside = ((1 - confidence) * gap).mean()
        return (loss[0] + beside, loss[1]) if return_outputs else loss + beside


def check_confidence(pairs: Dataset, alpha: float | None = None) -> None:
    """Refuse pairs whose confidence (or, with `alpha`, whose scores) is no number that can be one."""
    for name in SCORES if alpha is not None else ("confidence",):
        for row, value in enumerate(pairs[name]):
            number = float("nan") if value is None else float(value)
            if alpha is None and not 0 < number <= 1:
                raise InputError(f"confidence: {value} of pair {row}; give every pair a number above 0, at most 1")
            if not abs(number) < float("inf"):
                raise InputError(f"{name}: {value} of pair {row}; give every pair a finite number")


def _with_columns(collate: Callable, names: list[str]) -> Callable:
    """A collator whose batches also hold these columns of numbers, (B,) each."""

    def collated(rows: list[dict]) -> dict:
        return collate(rows) | {name: torch.tensor([float(row[name]) for row in rows]) for name in names}

    return collated
