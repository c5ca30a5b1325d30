"""Ways of asking a trunk, compared on the same pairs: a long question, a short one, trained tokens, or none at all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from srmir_lib.artifacts import read_json
from srmir_lib.evaluation import bootstrap_interval
from srmir_lib.pair_accuracy import correct, routed_gaps
from srmir_lib.pair_states import PairStates
from srmir_lib.probes import ProbeSettings
from srmir_lib.reward_model import ShadowRewardModels
from srmir_lib.reward_sets import SetRun, fit_sets
from srmir_lib.reward_training import RewardSettings


def compare_probes(
    states: PairStates,
    preferences,
    categories: Sequence[str],
    settings: RewardSettings,
    kinds: Sequence[tuple[str, int]],
    folder: str | Path,
    seed: int = 0,
    trained: Mapping[tuple[str, int], str | Path] | None = None,
) -> list[dict]:
    """Train the models once for every (kind, m) and ask validation pairs, each by the model of its label.

    `trained`: folders of sets that these settings have made already, by (kind, m); they come first.
    Returns rows with probe, m, seconds (of training, after the trunk has read the pairs), weights (trained numbers, all
    models together), accuracy, low, high (95 % bootstrap over pairs). `kinds` as in `probes.KINDS`; a head has no m.
    """
    known = [row for row, name in enumerate(preferences["validation"]["category"]) if name in categories]
    pairs, rows = preferences["validation"].select(known), []
    trained = {tuple(kind): Path(where) for kind, where in (trained or {}).items()}
    asked, runs = dict.fromkeys([*trained, *map(tuple, kinds)]), {}
    for kind, count in asked:
        where = trained.get((kind, count), Path(folder) / f"{kind}_{count}")
        own = replace(settings, probe=ProbeSettings(kind, settings.probe.text, max(count, 1)))
        runs[f"{kind} {count}"] = SetRun(where, categories, own, seed=seed)
    device, models = str(states.trunk.device), None
    fit_sets(runs, states.base_model, preferences, device=device, states=states)
    for (kind, count), run in zip(asked, runs.values(), strict=True):
        seconds = read_json(run.folder / "fit.json")["seconds"]
        models = ShadowRewardModels.load(run.folder, device, model=states.model, beside=models)
        right = bootstrap_interval(correct(routed_gaps(models, pairs)), seed=seed)
        weights = sum(parameter.numel() for parameter in models.scorer.probes.parameters())
        rows.append(
            {"probe": kind, "m": count, "seconds": seconds, "weights": weights}
            | {"accuracy": right.estimate, "low": right.low, "high": right.high}
        )
    return rows
