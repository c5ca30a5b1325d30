"""Ways of asking a trunk, compared on the same pairs: a long question, a short one, trained tokens, or none at all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from srmir_lib.evaluation.reward_accuracy import routed_gaps
from srmir_lib.reward_models.config import ProbeSettings
from srmir_lib.reward_models.fit import SetRun
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.statistics import bootstrap_interval, is_correct


def probe_runs(first: SetRun, kinds: Sequence[tuple[str, int]], folder: str | Path) -> dict[str, SetRun]:
    """The set `first`, and one like it for every other (kind, m) of a probe, in a folder of its own: for `fit_sets`.

    `kinds` as in `probes.KINDS`; a head has no m, so 0.
    """
    runs = {_name(first.settings.probe): first}
    for kind, count in kinds:
        probe = replace(first.settings.probe, kind=kind, tokens=max(count, 1))
        own = replace(first, folder=Path(folder) / f"{kind}_{count}", settings=replace(first.settings, probe=probe))
        runs.setdefault(_name(probe), own)
    return runs


def compare_probes(runs: Mapping[str, SetRun], states: PrefilledPairs, preferences, seed: int = 0) -> list[dict]:
    """Ask the trained sets of `probe_runs` about the validation pairs, each pair by the model of its label.

    Returns rows with probe, m, forwards (1 + K m / T: what scoring a text of mean length T by all K costs, in readings
    of that text), weights (trained numbers, all models together), accuracy, low, high (95 % bootstrap over pairs).
    """
    device, models, rows, pairs = str(states.trunk.device), None, [], preferences["validation"]
    tokens = states.lengths.double().mean().item()
    for run in runs.values():
        known = [row for row, name in enumerate(pairs["category"]) if name in run.categories]
        models = ShadowRewardModels.load(run.folder, device, model=states.model, beside=models)
        right = bootstrap_interval(is_correct(routed_gaps(models, pairs.select(known))), seed=seed)
        kind, count = _name(run.settings.probe).split()
        row = {"probe": kind, "m": int(count), "forwards": 1 + len(run.categories) * int(count) / tokens}
        row["weights"] = sum(parameter.numel() for parameter in models.scorer.probes.parameters())
        rows.append(row | {"accuracy": right.estimate, "low": right.low, "high": right.high})
    return rows


def _name(probe: ProbeSettings) -> str:
    return f"{probe.kind} {0 if probe.kind == 'head' else probe.tokens}"
