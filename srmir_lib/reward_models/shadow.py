"""Shadow reward models: one score per harm category for a response, behind one interface for every design.

`shared`: one frozen trunk, read once, and K probes that ask it. `separate`: K LoRA adapters, each run over the whole
text. `pooled`: one encoder with K outputs. A set is a folder, read by `ShadowRewardModels.load`; nothing in it needs
this library to be opened.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from srmir_lib.errors import InputError
from srmir_lib.models.reference_forward import ReferenceStates, adapters_of
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.config import THINKING, check_base, read_config


class ShadowRewardModels:
    """K reward models that score (prompt, response) pairs; higher is better. Made by `load` or by a design's `fit`.

    A scorer is what a design provides: `score(prompts, completions) -> (N, K)`, and, where running one model for a row
    is cheaper, `score_routed(prompts, completions, columns) -> (N,)`.
    """

    def __init__(self, scorer, categories: Sequence[str], design: str, calibration: Calibration | None = None):
        self.scorer, self.categories, self.design = scorer, list(categories), design
        self.calibration, self.asks = calibration, None

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
            from srmir_lib.reward_models.shared import load_shared

            base = check_base(folder, config, base_model)
            scorer = load_shared(folder, base, config, device, batch_tokens, model)
        elif config["design"] == "separate":
            from srmir_lib.reward_models.separate import SeparateScorer

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
            from srmir_lib.reward_models.pooled import PooledScorer

            scorer = PooledScorer(folder, device)
        calibration = folder / "calibration.json"
        calibration = Calibration.load(calibration) if calibration.exists() else None
        models = cls(scorer, config["categories"], config["design"], calibration)
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
            raise InputError(f"reward model {name}: the score of row {row} is not finite; train this model again")
        return scores

    def _columns(self, categories: Sequence[str], rows: int) -> Tensor:
        if len(categories) != rows:
            raise InputError(f"categories: {len(categories)} for {rows} prompts; give one for each")
        for row, name in enumerate(categories):
            if name not in self.categories:
                raise InputError(f"category: row {row} is {name!r}; there are models for {', '.join(self.categories)}")
        return torch.tensor([self.categories.index(name) for name in categories], dtype=torch.long)

    def can_follow(self, policy) -> bool:
        """Whether what the reference of `policy` reads is what these models read: design shared, no draft between
        prompt and answer; a PEFT policy on the trunk's very weights, whose reference is itself, adapters off."""
        if self.design != "shared" or (self.asks and self.asks[1]) or self.scorer.trunk.layer is not None:
            return False
        if not hasattr(policy, "get_base_model") or "ref" in policy.peft_config or not adapters_of(policy):
            return False
        base, trunk = policy.get_base_model(), self.scorer.trunk.decoder
        return base.base_model is not trunk and {*map(id, trunk.parameters())} <= {*map(id, base.parameters())}

    @contextmanager
    def following(self, policy, keep_gb: float = 1.5):
        """While this lasts, what GRPO's reference forward has just read is not read again to be scored.

        `policy`: a PEFT model, such as `trainer.model`; its reference is itself with the adapters off. Yields the
        `ReferenceStates`, which keep at most `keep_gb` gigabytes. Scores are the same up to rounding. An `InputError`
        where it cannot be (`can_follow`).
        """
        if not self.can_follow(policy):
            raise InputError(
                f"following: design {self.design}; needs shared models without a draft (question) and a PEFT policy "
                "on their very weights (trunk.share_weights)"
            )
        trunk, room = self.scorer.trunk, self.scorer.probes.width * len(self.categories)
        if trunk.reference is not None:  # another set on this trunk listens already
            if trunk.reference.decoder is not policy.get_base_model().base_model:
                raise InputError("following: this trunk follows another policy; end that first")
            yield trunk.reference
            return
        trunk.reference = ReferenceStates(policy, trunk.layers, keep_gb, trunk.pass_tokens, room)
        try:
            yield trunk.reference
        finally:
            trunk.reference.remove()
            trunk.reference = None

    def reward(self, strategy: str = "linear", **options):
        """A reward function for TRL's `GRPOTrainer(reward_funcs=[...])`; `options` as in `rewards.RewardFunction`."""
        from srmir_lib.policies.reward import RewardFunction

        return RewardFunction(self, strategy, **options)


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
