"""PCRM's limits in TRL's trainers of reward models and, as its DPO form, of policies. Importing TRL takes seconds."""

from collections.abc import Sequence

import torch
from datasets import Dataset, concatenate_datasets
from trl import RewardTrainer

from srmir_lib.artifacts import InputError
from srmir_lib.objectives import bradley_terry_loss, pcrm_loss


class LimitedRewardTrainer(RewardTrainer):
    """Minimises `pcrm_loss`; the column `margin` holds the limits. Logging and centering are TRL's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        limit = inputs.pop("margin")  # else TRL would subtract it
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
        loss = loss - bradley_terry_loss(chosen, rejected) + pcrm_loss(chosen, rejected, limit)
        return (loss, outputs) if return_outputs else loss


def both_ways(pairs: Dataset, limits: Sequence[float]) -> Dataset:
    """The pairs, and behind them every pair with its answers swapped, for `lower_references`."""
    if len(limits) != len(pairs) or not all(0 < limit < float("inf") for limit in limits):
        raise InputError(f"limits: {len(limits)} for {len(pairs)} pairs; give one finite number above 0 for each")
    swapped = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"}).select_columns(pairs.column_names)
    return concatenate_datasets([pairs, swapped])


def lower_references(pairs: Dataset, limits: Sequence[float], beta: float) -> Dataset:
    r"""Turn DPO on `both_ways(...)` into the DPO form of PCRM (`pcrm_dpo_loss`), halved.

    DPO minimises $-\log\sigma(h)$. For a swapped pair that is $-\log\sigma(-h)$; with the reference's log-probability
    of its first answer lowered by $\Delta^*/\beta$ it is $-\log\sigma(\Delta^*-h)$.
    """
    lowered = list(pairs["ref_chosen_logps"])
    for row, limit in enumerate(limits):
        lowered[len(limits) + row] -= limit / beta
    return pairs.remove_columns("ref_chosen_logps").add_column("ref_chosen_logps", lowered)
