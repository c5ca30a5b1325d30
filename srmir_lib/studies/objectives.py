"""What objectives of reward models did to the scale of their scores, in one table (notebook 03)."""

from collections.abc import Mapping

from torch import Tensor

from srmir_lib.reward_models.calibration import lengths_of, variance_shares
from srmir_lib.statistics import is_correct, rank_correlation


def scale_table(
    sets: Mapping, gaps: Mapping[str, Tensor], raw_gaps: Mapping[str, Tensor], of_reference: Mapping[str, Tensor], test
) -> dict[str, dict[str, float]]:
    """A row for every set of reward models, by name.

    `gaps` (N,): each test pair's by the model of its label, in standard deviations; `raw_gaps` (N,): in the model's own
    units; `of_reference` (M, K): raw scores of the reference set that the sets are calibrated on; `test`: rows with
    chosen, rejected and, where it is known, harm_gap. accuracy; score spread and gap spread, standard deviations in own
    units; follows length and follows harm, rank correlations of a pair's gap with the difference in characters and with
    the true gap in harm; largest share, of a plain sum's variance that one model has.
    """
    longer, table = lengths_of(test["chosen"]) - lengths_of(test["rejected"]), {}
    for name, models in sets.items():
        own, deviations = raw_gaps[name].numpy(), models.calibration.std
        table[name] = {
            "accuracy": float(is_correct(gaps[name]).mean()),
            "score spread": sum(deviations) / len(deviations),
            "gap spread": float(own.std()),
            "follows length": rank_correlation(own, longer),
            "largest share": variance_shares(of_reference[name]).max().item(),
        }
        if "harm_gap" in test.column_names:
            table[name]["follows harm"] = rank_correlation(own, test["harm_gap"])
    return table
