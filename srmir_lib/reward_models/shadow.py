"""Shadow reward models: one score per harm category for a response, behind one interface for every design.

`shared`: one frozen trunk, read once, and K probes that ask it. `separate`: K LoRA adapters, each run over the whole
text. `pooled`: one encoder with K outputs. A set is a folder, read by `ShadowRewardModels.load`; nothing in it needs
this library to be opened.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from srmir_lib.artifacts import sha256
from srmir_lib.errors import InputError, RowError
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.config import THINKING, check_base, read_config
from srmir_lib.reward_models.pooled import PooledScorer
from srmir_lib.reward_models.separate import SeparateScorer
from srmir_lib.reward_models.shared import load_shared


class ShadowRewardModels:
    """K reward models that score (prompt, response) pairs; higher is better. Made by `load` or by a design's `fit`.

    A scorer is what a design provides: `score(prompts, completions) -> (N, K)`, and, where running one model for a row
    is cheaper, `score_routed(prompts, completions, columns) -> (N,)`.
    """

    def __init__(self, scorer, categories: Sequence[str], design: str, calibration: Calibration | None = None):
        self.scorer, self.categories, self.design = scorer, list(categories), design
        self.calibration, self.asks = calibration, None
        self.fingerprint = ""  # hash of the files it was loaded from, which a resumed training compares

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        base_model: str | None = None,
        batch_size: int = 64,
        batch_tokens: int = 8192,
        model=None,
        beside: "ShadowRewardModels | None" = None,
    ) -> "ShadowRewardModels":
        """Read a `shadow_rms/` folder. `base_model` says where the base model lies now, if it was moved.

        `batch_size`: rows of one forward pass (separate); `batch_tokens`: tokens of one (shared). `model`: the base
        model if it is in memory already; the shared design then uses its weights, and needs none of its own. `beside`:
        another set in memory; if it asks the same base model the same question, both use one store of drafts and, in
        the shared design, one trunk.

        A missing folder or category, or another base model than the one trained on, is an `InputError`.
        """
        folder = Path(folder)
        config = read_config(folder)
        if config["design"] == "shared":
            base = check_base(folder, config, base_model)
            scorer = load_shared(folder, base, config, device, batch_tokens, model)
        elif config["design"] == "separate":
            base = check_base(folder, config, base_model)
            scorer = SeparateScorer(
                folder,
                base,
                config["categories"],
                device,
                batch_size,
                **{k: config[k] for k in THINKING if k in config},
            )
        else:
            scorer = PooledScorer(folder, device)
        calibration = folder / "calibration.json"
        calibration = Calibration.load(calibration) if calibration.exists() else None
        models = cls(scorer, config["categories"], config["design"], calibration)
        files = [folder / "config.json", *sorted(folder.rglob("*.safetensors"))]
        models.fingerprint = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
        if "question" in config:
            models.asks = tuple(config[key] for key in ("base_sha256", *THINKING))
            if beside is not None and beside.asks == models.asks:
                if beside.design == models.design == "shared":
                    scorer.join(beside.scorer)
                else:
                    scorer.think.drafts = beside.scorer.think.drafts
        return models

    def score(self, prompts: Sequence, completions: Sequence, categories: Sequence[str] | None = None) -> Tensor:
        """Raw scores (N, K), float32 on the CPU; with `categories` (one key a row) the scores (N,) of those models.

        Prompts are user texts or conversations; completions texts or `[assistant]` messages. A score that is not finite
        and a category without a model are `InputError`s.
        """
        _as_many(prompts, completions)
        if categories is None:
            scores = self.scorer.score(prompts, completions)
        else:
            columns = self._columns(categories, len(prompts))
            if hasattr(self.scorer, "score_routed"):
                scores = self.scorer.score_routed(prompts, completions, columns)
            else:
                scores = self.scorer.score(prompts, completions)[torch.arange(len(columns)), columns]
        return self._finite(scores, categories)

    def _finite(self, scores: Tensor, categories: Sequence[str] | None = None) -> Tensor:
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
    """`score` of several sets on the same rows, name -> (N, K); sets on one trunk (see `beside`) read them once."""
    _as_many(prompts, completions)
    trunks: dict[int, list[str]] = {}
    for name, models in sets.items():
        trunks.setdefault(id(getattr(models.scorer, "trunk", models)), []).append(name)
    found = {}
    for names in trunks.values():
        first = sets[names[0]]
        if len(names) == 1:
            found[names[0]] = first.score(prompts, completions)
            continue
        scores = first.scorer.score_by([sets[name].scorer.probes for name in names], prompts, completions)
        found |= {name: sets[name]._finite(own) for name, own in zip(names, scores, strict=True)}
    return {name: found[name] for name in sets}


def _as_many(prompts: Sequence, completions: Sequence) -> None:
    if len(prompts) != len(completions):
        raise InputError(f"completions: {len(completions)} for {len(prompts)} prompts; give one for each")
