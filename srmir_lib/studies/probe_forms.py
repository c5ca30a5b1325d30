"""Ways of asking a trunk, compared on the same pairs: a long question, a short one, or trained tokens."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from srmir_lib.artifacts import inside, read_json
from srmir_lib.evaluation.reward_accuracy import routed_gaps
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.fit import SetRun
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.statistics import bootstrap_interval, is_correct


def probe_runs(first: SetRun, kinds: Mapping[str, Mapping], folder: str | Path) -> dict[str, SetRun]:
    """Sets like `first` but for their probes, each in a folder of its own: for `fit_sets`.

    `kinds`: name -> what differs in its `ProbeSettings`.
    """
    runs = {}
    for name, changes in kinds.items():
        settings = replace(first.settings, probe=replace(first.settings.probe, **{"tokens": 0, **changes}))
        runs[name] = replace(first, folder=inside(Path(folder), name.replace(" ", "_")), settings=settings)
    return runs


def compare_probes(runs: Mapping[str, SetRun], trunk: Trunk, preferences, seed: int = 0) -> list[dict]:
    """Ask sets that differ in their probes about the validation pairs, each pair by the model of its label.

    Returns rows with probe, m, forwards (1 + K m / T: what scoring a text of the training pairs' mean length T by all K
    costs, in readings of that text), weights (trained numbers, all models together), accuracy, low, high (95 %
    bootstrap over pairs).
    """
    rows, pairs = [], preferences["validation"]
    for name, run in runs.items():
        known = [row for row, label in enumerate(pairs["category"]) if label in run.categories]
        models = ShadowRewardModels.load(run.folder, trunk)
        right = bootstrap_interval(is_correct(routed_gaps(models, pairs.select(known))), seed=seed)
        probes, tokens = models.scorer.probes, read_json(run.folder / "fit.json")["mean_length"]
        row = {"probe": name, "m": probes.width, "forwards": 1 + len(run.categories) * probes.width / tokens}
        row["weights"] = sum(parameter.numel() for parameter in probes.parameters())
        rows.append(row | {"accuracy": right.estimate, "low": right.low, "high": right.high})
    return rows
