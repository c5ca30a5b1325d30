r"""PCRM's direct form: DPO whose implicit reward gap is drawn towards the middle between zero and a limit.

Zhou et al. 2024 (arXiv 2404.00978), as `papers.pcrm.pcrm_dpo_loss` states it; here TRL's own trainer and loss run it,
on pairs that stand in the data set twice: as they are, and with their answers swapped. DPO minimises $-\log\sigma(h)$,
$h$ the gap between the implicit rewards of a row's two answers. For a swapped pair that is $-\log\sigma(-h)$; with the
reference's log-probability of the row's first answer lowered by $\Delta^*/\beta$ it is $-\log\sigma(\Delta^*-h)$.
The mean over both rows is half of the loss (tested).
"""

from datasets import Dataset, concatenate_datasets
from trl import DPOConfig, DPOTrainer

from srmir_lib.errors import InputError


class LimitedDPOTrainer(DPOTrainer):
    r"""TRL's trainer on pairs with a column `limit`: $\Delta^*$, one a pair, in units of the implicit reward.

    An update reads a pair as it is or with its answers swapped, so that its logged margins and accuracies mean nothing.
    """

    def __init__(self, args: DPOConfig, train_dataset: Dataset, **rest):
        limits, pairs = [float(limit) for limit in train_dataset["limit"]], train_dataset.remove_columns("limit")
        for row, limit in enumerate(limits):
            if not 0 < limit < float("inf"):
                raise InputError(f"limit: {limit} of pair {row}; give every pair a finite number above 0")
        swapped = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"}).select_columns(pairs.column_names)
        both = concatenate_datasets([pairs, swapped]).add_column("limit", [0.0] * len(pairs) + limits)
        args.precompute_ref_log_probs = True
        super().__init__(args=args, train_dataset=both, **rest)
        rows = self.train_dataset
        terms = zip(rows["ref_chosen_logps"], rows["limit"], strict=True)
        lowered = [reference - limit / self.beta for reference, limit in terms]
        self.train_dataset = rows.remove_columns("ref_chosen_logps").add_column("ref_chosen_logps", lowered)
