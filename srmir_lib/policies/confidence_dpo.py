r"""RBRM's training of the policy: DPO in which a label counts as far as it is trusted.

Deng et al. 2025 (arXiv 2503.10093), as `papers.rbrm.confidence_dpo_loss` states it; here TRL's own trainer and loss run
it. With $z=\beta h$, the gap between the implicit rewards of a pair, $-\log\sigma(-z)=-\log\sigma(z)+z$, so that
$-\gamma\log\sigma(z)-(1-\gamma)\log\sigma(-z)=-\log\sigma(z)+(1-\gamma)z$: TRL's loss and a term beside it (tested).
"""

from collections.abc import Callable, Mapping

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from srmir_lib.errors import InputError
from srmir_lib.models.embeddings import pool
from srmir_lib.papers.rbrm import batch_confidence


class ConfidenceDPOTrainer(DPOTrainer):
    r"""TRL's trainer on pairs with a column `confidence`: $\gamma$, one a pair, above 0 and at most 1 (plain DPO).

    With `readouts` (`layers`, `pooling` and `score`, as `reward_models.readouts.ReadOuts` has them) the confidence is
    one for each batch, `papers.rbrm.batch_confidence` of their scores of the policy's own states, which this very
    forward pass makes: nothing is read twice, and nothing is learned through them. A batch is what one pass reads
    (`per_device_train_batch_size` pairs). What is logged is TRL's, and its `loss` ours.
    """

    def __init__(self, args: DPOConfig, train_dataset: Dataset, readouts=None, **rest):
        self.readouts, columns = readouts, []
        if readouts is None:
            check_confidence(train_dataset)
            columns = ["confidence"]
        args.precompute_ref_log_probs = True  # so that a forward pass of a batch is the policy's
        args.remove_unused_columns = False
        super().__init__(args=args, train_dataset=train_dataset, **rest)
        self.data_collator = _with_columns(self.data_collator, columns)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss of the batch (scalar, nats), and $(1-\\gamma)\\beta h$, mean over its pairs."""
        batch, passes, states = {name: value for name, value in inputs.items() if name != "confidence"}, [], []
        hooks = [model.register_forward_hook(lambda module, arguments, output: passes.append(output))]
        if self.readouts:
            trunk = self.accelerator.unwrap_model(model).get_base_model().base_model
            hooks.append(trunk.register_forward_pre_hook(_with_all_states, with_kwargs=True))
            hooks.append(trunk.register_forward_hook(lambda module, given, output: states.append(output.hidden_states)))
        try:
            loss = super().compute_loss(model, batch, return_outputs, num_items_in_batch)
        finally:
            for hook in hooks:
                hook.remove()
        width = batch["input_ids"].shape[1] - 1
        chosen, rejected = passes[0].log_probs[:, -width:].sum(dim=1).chunk(2)
        gap = self.beta * (chosen - batch["ref_chosen_logps"] - rejected + batch["ref_rejected_logps"])
        confidence = self._confidence(states[0], batch).to(gap.device) if self.readouts else inputs["confidence"]
        beside = ((1 - confidence) * gap).mean()
        return (loss[0] + beside, loss[1]) if return_outputs else loss + beside

    def _confidence(self, states: tuple[Tensor, ...], batch: Mapping[str, Tensor]) -> Tensor:
        """One confidence (scalar) from the states (2 B, T, H) behind every block, of chosen answers, then rejected."""
        mask, starts = batch["attention_mask"], None
        if self.readouts.pooling == "mean":
            starts = batch["completion_mask"].argmax(dim=1).tolist()
        read = [pool(states[layer].detach(), mask, starts).float().cpu() for layer in self.readouts.layers]
        return batch_confidence(*self.readouts.score(torch.stack(read, dim=1)).chunk(2))


def _with_all_states(module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    """A forward's arguments, with which it hands out the states behind all of its blocks."""
    return arguments, options | {"output_hidden_states": True}


def check_confidence(pairs: Dataset) -> None:
    """Refuse pairs whose confidence is no number that can be one."""
    for row, value in enumerate(pairs["confidence"]):
        if not 0 < (float("nan") if value is None else float(value)) <= 1:
            raise InputError(f"confidence: {value} of pair {row}; give every pair a number above 0, at most 1")


def _with_columns(collate: Callable, names: list[str]) -> Callable:
    """A collator whose batches also hold these columns of numbers, (B,) each."""

    def collated(rows: list[dict]) -> dict:
        return collate(rows) | {name: torch.tensor([float(row[name]) for row in rows]) for name in names}

    return collated
