"""Shadow reward models: one score per harm category for a response, behind one interface for every design.

`shared`: one frozen trunk, read once, and K probes that ask it. `separate`: K LoRA adapters, each run over the whole
text. `pooled`: one encoder with K outputs. A set is a folder, read by `ShadowRewardModels.load`; nothing in it needs
this library to be opened.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from srmir_lib.artifacts import as_written, sha256
from srmir_lib.errors import InputError, RowError
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.config import find_trunk, read_config
from srmir_lib.reward_models.pooled import PooledScorer
from srmir_lib.reward_models.separate import SeparateScorer
from srmir_lib.reward_models.shared import SharedScorer


class ShadowRewardModels:
    """K reward models that score (prompt, response) pairs; higher is better.

    `scorer` is the design: `score(prompts, completions, columns=None)` gives (N, K), or (N,) of the models `columns`.
    """

    def __init__(
        self,
        scorer: SharedScorer | SeparateScorer | PooledScorer,
        categories: Sequence[str],
        design: str,
        calibration: Calibration | None = None,
    ):
        self.scorer, self.categories, self.design, self.calibration = scorer, list(categories), design, calibration
        self.fingerprint = ""  # hash of the files it was loaded from, which a resumed training compares

    @classmethod
    def load(
        cls, folder: str | Path, trunk: Trunk | str = "auto", base_model: str | None = None
    ) -> "ShadowRewardModels":
        """Read a `shadow_rms/` folder. `trunk`: the base model in memory, whose weights are used, or the
        device to load one on. `base_model`: where the base model lies now, if it was moved.

        A missing folder or category, or another base model than the one trained on, is an `InputError`.
        """
        folder = Path(folder)
        config = read_config(folder)
        with as_written(folder, "a damaged set of reward models", "train it again (02)"):
            if config["design"] == "pooled":
                scorer = PooledScorer(folder, trunk if isinstance(trunk, str) else str(trunk.device))
            else:
                trunk = find_trunk(folder, config, trunk, base_model)
                scorer = (SharedScorer.load if config["design"] == "shared" else SeparateScorer)(folder, config, trunk)
        calibration = folder / "calibration.json"
        calibration = Calibration.load(calibration) if os.path.lexists(calibration) else None
        models = cls(scorer, config["categories"], config["design"], calibration)
        files = [folder / "config.json", *sorted(folder.rglob("*.safetensors"))]
        models.fingerprint = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
        return models

    def score(self, prompts: Sequence, completions: Sequence, categories: Sequence[str] | None = None) -> Tensor:
        """Raw scores (N, K), float32 on the CPU; with `categories` (one key a row) the scores (N,) of those models.

        Prompts are user texts or conversations; completions texts or `[assistant]` messages. A score that is not finite
        and a category without a model are `InputError`s.
        """
        _as_many(prompts, completions)
        columns = None if categories is None else self._columns(categories, len(prompts))
        return self.finite(self.scorer.score(prompts, completions, columns), categories)

    def finite(self, scores: Tensor, categories: Sequence[str] | None = None) -> Tensor:
        """The same scores, if all are finite; `categories`: whose they are, if they are (N,)."""
        bad = (~scores.isfinite()).nonzero()
        if len(bad):
            row = int(bad[0, 0])
            name = self.categories[bad[0, 1]] if categories is None else categories[row]
            raise RowError(f"reward model {name}: the score of {{row}} is not finite; train this model again", row)
        return scores

    def _columns(self, categories: Sequence[str], rows: int) -> Tensor:
        if len(categories) != rows:
            raise InputError(f"categories: {len(categories)} for {rows} prompts; give one for each")
        for row, name in enumerate(categories):
            if name not in self.categories:
                raise InputError(f"category: row {row} is {name!r}; there are models for {', '.join(self.categories)}")
        return torch.tensor([self.categories.index(name) for name in categories], dtype=torch.long)


def score_sets(sets: Mapping[str, ShadowRewardModels], prompts: Sequence, completions: Sequence) -> dict[str, Tensor]:
    """`score` of several sets on the same rows, name -> (N, K); shared sets on one trunk read the rows once."""
    _as_many(prompts, completions)
    alike: dict[object, list[str]] = {}
    for name, models in sets.items():
        alike.setdefault(id(models.scorer.trunk) if models.design == "shared" else name, []).append(name)
    found = {}
    for names in alike.values():
        first = sets[names[0]].scorer
        if len(names) == 1:
            scores = [first.score(prompts, completions)]
        else:
            scores = first.score_by([sets[name].scorer.probes for name in names], prompts, completions)
        found |= {name: sets[name].finite(own) for name, own in zip(names, scores, strict=True)}
    return {name: found[name] for name in sets}


def calibrate_sets(
    sets: Mapping[str, ShadowRewardModels], folders: Mapping[str, Path], prompts: Sequence, responses: Sequence
) -> dict[str, Tensor]:
    """Give the sets that `folders` names a calibration, fitted on these rows, and save it there as `calibration.json`.
    Returns the raw scores of all sets, name -> (N, K)."""
    found = score_sets(sets, prompts, responses)
    for name, folder in folders.items():
        own = sets[name]
        own.calibration = Calibration.fit(found[name], own.categories)
        own.calibration.save(folder / "calibration.json")
    return found


def trunk_for(folder: str | Path, base_model: str | Path, device: str = "auto") -> Trunk | None:
    """The `base_model` that a set in `folder` asks, in memory; none for design `pooled`, which has an encoder."""
    return None if read_config(folder)["design"] == "pooled" else Trunk.load(base_model, device)


def _as_many(prompts: Sequence, completions: Sequence) -> None:
    if len(prompts) != len(completions):
        raise InputError(f"completions: {len(completions)} for {len(prompts)} prompts; give one for each")
