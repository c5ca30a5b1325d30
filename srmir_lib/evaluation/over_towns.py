"""What policies were worth over towns, or over seeds of one data set: means with the interval that decides."""

from collections.abc import Sequence

from srmir_lib.evaluation.claims import Records
from srmir_lib.evaluation.measures import BALANCED
from srmir_lib.statistics import paired_t_interval

SHOWN = (BALANCED, "attack_success", "attack_success_held_out_wrappers", "over_refusal", "utility", "incoherent")
"""Numbers of a policy's summary that are put together over towns."""


def policies_over_towns(towns: Records, measures: Sequence[str] = SHOWN) -> dict[str, dict[str, float]]:
    """Policy -> measure, `<measure>_low` and `<measure>_high`: the mean over towns and its t interval (95 %).

    `towns`: town -> what its notebooks measured, `06_evaluation/<policy>/<measure>` among it. A number that fewer than
    two towns have is left out. Policies come in the order in which 06 has them.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for own in towns.values():
        for name, value in own.items():
            notebook, _, rest = name.partition("/")
            policy, _, measure = rest.rpartition("/")
            if notebook == "06_evaluation" and policy and measure in measures:
                found.setdefault(policy, {}).setdefault(measure, []).append(value)
    rows = {policy: {m: of[m] for m in measures if len(of.get(m, ())) > 1} for policy, of in found.items()}
    return {policy: _summary(of) for policy, of in rows.items() if of}


def _summary(numbers: dict[str, list[float]]) -> dict[str, float]:
    summary = {}
    for name, values in numbers.items():
        interval = paired_t_interval(values)
        summary |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return summary
