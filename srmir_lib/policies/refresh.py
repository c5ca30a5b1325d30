r"""A reward that is learned again while a policy trains, from what the policy says by now.

Maximum-likelihood IRL (Li et al. 2024, arXiv 2405.17888) has two levels: the reward tells demonstrations from answers
of the *present* policy, and the policy follows the reward. Reward models that are fitted once know the answers of the
start only. Where this departs: a refresh comes every few updates, not after a policy has converged, and the models are
fitted anew, not continued. The training itself goes on: its optimiser, its schedule and its reference (the start) are
those of a run without a refresh.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback

from srmir_lib.artifacts import digest, read_json, write_json
from srmir_lib.conversations import opens_with_refusal, text_of
from srmir_lib.data.pairs import make_pairs, without_ties
from srmir_lib.models.generation import generate
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.settings.policies import RefreshSettings

REFRESHED = "refresh/pairs"
"""Key in a history, from the first refresh on: pairs whose rejected answer the policy gave at the last one."""

PAIR = ("prompt", "chosen", "rejected", "category")


class RefreshedReward(TrainerCallback):
    """`reward` for `train_grpo`, whose models are fitted again every `refresh.every` updates, but for the last.

    Then the policy answers `refresh.prompts` of the `demonstrations` (prompt, completion, category), drawn with the
    `seed` and the step. A demonstration is preferred to the answer, unless they tie (`without_ties`); these pairs come
    in addition to `preferences` (prompt, chosen, rejected, category, origin), but for those whose origin is "policy".
    `refit(pairs, folder)` returns calibrated models that learned from both, and leaves its files in `folder`, beside
    the checkpoints: a killed run goes on with the reward that it had. `sampling`: of `generate`.
    """

    def __init__(
        self,
        reward: RewardFunction,
        refit: Callable,
        tokenizer,
        demonstrations: Sequence[Mapping],
        preferences: Sequence[Mapping],
        refresh: RefreshSettings,
        seed: int,
        **sampling,
    ):
        self.reward, self.refit, self.tokenizer, self.begun = reward, refit, tokenizer, reward.models
        refuses = (opens_with_refusal(text_of(row["completion"])) for row in demonstrations)
        self.demonstrations = [dict(row) | {"refuses": of} for row, of in zip(demonstrations, refuses, strict=True)]
        self.kept = [{key: row[key] for key in PAIR} for row in preferences if row["origin"] != "policy"]
        self.refresh, self.seed, self.sampling = refresh, seed, sampling
        self.pairs: list[dict] | None = None  # of the last refresh
        self.__name__ = f"refreshed_{reward.__name__}"
        told = [self.demonstrations, self.kept, dict(refresh), seed, sampling]
        learned = digest(told, sort_keys=True)
        self.fingerprint = f"refreshed {learned} {reward.fingerprint}"

    def __call__(self, prompts: list, completions: list, **columns) -> list[float]:
        if self.pairs is not None and "log_metric" in columns:
            columns["log_metric"](REFRESHED, len(self.pairs))
        return self.reward(prompts, completions, **columns)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.reward.models, self.pairs = self.begun, None
        if last := state.global_step // self.refresh.every * self.refresh.every:
            self._learn(model, Path(args.output_dir, f"refresh-{last}"), last)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.refresh.every == 0 and state.global_step < state.max_steps:
            self._learn(model, Path(args.output_dir, f"refresh-{state.global_step}"), state.global_step)

    def _learn(self, model, folder: Path, step: int) -> None:
        """Fit the models on the pairs in `folder`, or on new ones."""
        if not (file := folder / "pairs.json").is_file():
            write_json(file, self._sampled(model, step))
        self.pairs = read_json(file)
        self.reward.models = self.refit(self.kept + self.pairs, folder / "models")

    def _sampled(self, policy, step: int) -> list[dict]:
        """Pairs of demonstrations and what the policy says to their prompts."""
        count = min(self.refresh.prompts, len(self.demonstrations))
        drawn = random.Random(f"{self.seed} {step}").sample(self.demonstrations, count)
        asked, training = [row["prompt"] for row in drawn], policy.training
        said = generate(policy.eval(), self.tokenizer, asked, seed=self.seed + step, **self.sampling)
        policy.train(training)
        pairs = make_pairs(drawn, without_ties(drawn, [[text] for text in said]), self.seed, "policy")
        return [{key: row[key] for key in PAIR} for row in pairs if row["origin"] == "policy"]
