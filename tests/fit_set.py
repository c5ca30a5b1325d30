"""One set of reward models on a tiny model, trained as the notebooks train theirs."""

from pathlib import Path

from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.fit import SetRun, fit_sets


def fit_set(base, pairs, folder, categories, settings, seed=0, design="shared", competence=None) -> dict:
    """The history of each model; `base`: a trunk, or the folder of a model to load on the CPU."""
    trunk = base if isinstance(base, Trunk) else Trunk.load(base, "cpu")
    run = SetRun(Path(folder), categories, settings, design, seed=seed)
    return fit_sets({"set": run}, trunk, pairs, competence)["set"]
