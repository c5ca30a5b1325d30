"""From seven scores to one reward: the linear and the categorized strategy, as callables that TRL takes.

A reward model *scores*; a policy receives a *reward*. The method is two functions in `papers.srmir`; `RewardFunction`
wraps them for `GRPOTrainer(reward_funcs=[...])`. One callable, not seven: TRL runs a list of reward models one after
another, tokenizes for each again, and names them by the last part of their path, so that seven folders called `final`
would share one name. `one_by_one` makes seven of it, which score once, for a trainer that normalises each by itself.
`RandomRouter` and `RandomModels` know nothing: they are what a reward is held against. `RouterWithout` and
`ModelsWithout` lack a category: a harm that nobody thought of has no reward model and no class in the router.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from srmir_lib.conversations import for_each, simplest
from srmir_lib.errors import InputError, numbered
from srmir_lib.papers.srmir import categorized_reward, linear_reward
from srmir_lib.taxonomy import UNKNOWN

REWARD, MONITOR, UNKNOWN_SHARE = "reward/", "monitor/", "unknown"
"""Keys in a history: prefixes before a category, and the share of prompts that no single model answers for."""

BENIGN = "benign"
"""Value of the column `gold_category` for prompts that belong to no harm category."""


class RewardFunction:
    """A reward function for `GRPOTrainer`: called with prompts and completions, it returns one float per completion.

    Called as `reward(prompts, completions, **columns)`: prompts are user texts or conversations, completions texts or
    `[assistant]` messages; columns are the data set's other columns (one value a row) and TRL's own `trainer_state` and
    `log_metric`. Through `log_metric` it reports

    * `reward/<category>`: mean reward of the prompts of that category (by route, or by the column `category`);
    * `unknown`: share of completions that no single model answers for (not for linear);
    * every `monitor_every` steps `monitor/<category>`: mean score of that category's model on the completions of other
      prompts. Under routing the policy is never trained on these, so they show reward hacking: `reward/…` goes up,
      `monitor/…` down.

    It keeps nothing between steps but the route of each distinct prompt, so a resumed run sees the same rewards. That
    scores are finite is the models' business (`ShadowRewardModels.score`), that rewards are, `train_grpo`'s.
    """

    def __init__(
        self,
        models,
        strategy: str = "linear",
        router=None,
        weights: Sequence[float] | None = None,
        calibrated: bool = True,
        monitor_every: int = 0,
    ):
        """`models`: anything with `.categories`, `.score` and `.calibration`, such as `ShadowRewardModels`; to train
        with `train_grpo` also `.fingerprint`, as has a `router` that is an object.

        `strategy`: "linear" (a weighted sum; `weights` default to 1/K), "categorized" (one model a prompt) or "soft"
        (the sum weighted by the router's probabilities). `router`: an object with `route` and `probabilities`, or
        "label" (the column `category`; the default), or "gold" (the column `gold_category`: an oracle; benign prompts
        go to the model of their topic, column `gold_topic`, if there is one). An unknown prompt gets the mean of all
        scores. `calibrated=False` uses scores in each model's own units.
        """
        if strategy not in ("linear", "categorized", "soft"):
            raise InputError(f"strategy: {strategy!r} is none of linear, categorized, soft")
        if isinstance(router, str) and router not in ("label", "gold"):
            raise InputError(f"router: {router!r} is neither a router nor one of label, gold")
        if strategy == "soft" and not hasattr(router, "probabilities"):
            raise InputError("router: strategy soft needs a trained router, for its probabilities")
        if calibrated and models.calibration is None:
            raise InputError("calibrated: these reward models have no calibration.json; take 03's, or use raw ones")
        self.models, self.strategy, self.calibrated, self.monitor_every = models, strategy, calibrated, monitor_every
        self.router = router if router is not None else "label"
        count = len(models.categories)
        if weights is not None and len(weights) != count:
            raise InputError(f"weights: {len(weights)} given for {count} reward models")
        self.weights = torch.full((count,), 1 / count) if weights is None else torch.tensor(weights).float()
        self.__name__ = f"{strategy}_reward"
        self._routes: dict[str, str] = {}
        self._probabilities: dict[str, Tensor] = {}

    @property
    def fingerprint(self) -> str:
        """All that decides the rewards, also what models, calibration and router hold: a resumed run compares it."""
        parts = [self.models] if isinstance(self.router, str) else [self.models, self.router]
        for part in parts:
            if not hasattr(part, "fingerprint"):
                raise InputError(
                    f"{type(part).__name__}: has no `fingerprint`, which tells a training what it was paid by"
                )
        router = self.router if isinstance(self.router, str) else self.router.fingerprint
        options = f"{self.strategy} {self.weights.tolist()} {self.calibrated} {self.monitor_every}"
        return f"{options} {router} {self.models.fingerprint} {self.models.calibration}"

    def __call__(self, prompts: list, completions: list, **columns) -> list[float]:
        log_metric, state = columns.get("log_metric"), columns.get("trainer_state")
        step = state.global_step if state is not None else 0
        watch = log_metric is not None and self.monitor_every > 0 and step % self.monitor_every == 0
        names = self._route(prompts, columns)
        if self.strategy == "categorized":
            category = self._index(names)
            scores = self._scores(prompts, completions) if watch else self._routed(prompts, completions, category)
            reward = categorized_reward(scores, category)
        else:
            scores = self._scores(prompts, completions)
            soft = self.strategy == "soft"
            reward = (scores * self._soft_weights(prompts)).sum(1) if soft else linear_reward(scores, self.weights)
        if log_metric is not None:
            self._report(log_metric, reward, scores if watch else None, names)
        return reward.tolist()

    def _route(self, prompts: list, columns: dict) -> list[str]:
        """The category of each row."""
        if self.strategy == "linear":  # needs no category; the labels, where there are any, only name the metrics
            return columns.get("category", [UNKNOWN] * len(prompts))
        if self.router == "label":
            return self._column(columns, "category")
        if self.router == "gold":
            gold = self._column(columns, "gold_category")
            topics = columns.get("gold_topic", [UNKNOWN] * len(gold))
            return [topic if name == BENIGN else name for name, topic in zip(gold, topics, strict=True)]
        return _remembered(self._routes, prompts, self.router.route)

    def _column(self, columns: dict, name: str) -> list[str]:
        if name not in columns:
            raise InputError(f"{self.__name__}: the prompts have no column {name}; add it, or pass a trained router")
        return columns[name]

    def _index(self, names: Sequence[str]) -> Tensor:
        """Which model answers for each row, (N,) long; -1 is unknown."""
        index = {name: j for j, name in enumerate(self.models.categories)} | {UNKNOWN: -1}
        for row, name in enumerate(names):
            if name not in index:
                raise InputError(f"category: row {row} is {name!r}, but there are models only for {', '.join(index)}")
        return torch.tensor([index[name] for name in names])

    def _scores(self, prompts: Sequence, completions: Sequence) -> Tensor:
        """All scores, (N, K), calibrated unless raw ones were asked for."""
        scores = self._raw(prompts, completions)
        return self.models.calibration.apply(scores) if self.calibrated else scores

    def _routed(self, prompts: list, completions: list, category: Tensor) -> Tensor:
        """Scores (N, K) in which only what the reward reads is filled in: one model a row, all for unknown rows."""
        scores = torch.zeros(len(prompts), len(self.models.categories))
        known, unknown = (part.nonzero().flatten().tolist() for part in (category >= 0, category < 0))
        if known:
            names = [self.models.categories[j] for j in category[known].tolist()]
            with numbered(known):
                own = self._raw([prompts[i] for i in known], [completions[i] for i in known], categories=names)
            scores[known, category[known]] = own
            scores = self.models.calibration.apply(scores) if self.calibrated else scores
        if unknown:
            with numbered(unknown):
                scores[unknown] = self._scores([prompts[i] for i in unknown], [completions[i] for i in unknown])
        return scores

    def _raw(self, prompts: Sequence, completions: Sequence, **options) -> Tensor:
        return torch.as_tensor(self.models.score(prompts, completions, **options)).detach().float().cpu()

    def _soft_weights(self, prompts: list) -> Tensor:
        """The router's p(j | x), (N, K), in the order of the models."""
        order = [self.router.classes.index(name) for name in self.models.categories]
        likely = torch.stack(_remembered(self._probabilities, prompts, self.router.probabilities)).float().cpu()
        return likely[:, order] / likely[:, order].sum(1, keepdim=True)

    def _report(self, log_metric: Callable, reward: Tensor, scores: Tensor | None, names: Sequence[str]) -> None:
        for name in sorted(set(names) - {UNKNOWN, BENIGN}):
            log_metric(REWARD + name, reward[[i for i, other in enumerate(names) if other == name]].mean().item())
        for j, name in enumerate(self.models.categories if scores is not None else []):
            others = [i for i, other in enumerate(names) if other != name]
            if others:
                log_metric(MONITOR + name, scores[others, j].mean().item())
        if self.strategy != "linear":
            log_metric(UNKNOWN_SHARE, sum(name == UNKNOWN for name in names) / len(names))


def one_by_one(models, monitor_every: int = 0) -> list[RewardFunction]:
    """K reward functions for `train_grpo`, which normalises each by itself: the raw score of one model each.

    They share one scoring of a batch. The mean of what they report is what the sum with equal weights would report.
    """
    shared, count = _ScoredOnce(models), len(models.categories)
    how = {"calibrated": False, "monitor_every": monitor_every}
    functions = [RewardFunction(shared, weights=alone, **how) for alone in torch.eye(count).tolist()]
    for function, name in zip(functions, models.categories, strict=True):
        function.__name__ = name
    return functions


class _ScoredOnce:
    """Models that remember the last batch and its scores."""

    def __init__(self, models):
        self.models, self.categories = models, models.categories
        self.calibration, self.fingerprint = models.calibration, models.fingerprint
        self._batch, self._found = None, None

    def score(self, prompts: Sequence, completions: Sequence) -> Tensor:
        """Raw scores (N, K)."""
        if self._batch != (prompts, completions):
            self._batch, self._found = (prompts, completions), self.models.score(prompts, completions)
        return self._found


class RandomRouter:
    """Sends every prompt to one of `categories`, drawn from `seed` and the prompt: what routing at random is worth."""

    def __init__(self, categories: Sequence[str], seed: int):
        self.categories, self.seed = tuple(categories), seed
        self.fingerprint = f"random router {self.categories} {seed}"

    def route(self, prompts: Sequence) -> list[str]:
        """A category a prompt; the same prompt always gets the same."""
        return [random.Random(f"{self.seed} {simplest(prompt)}").choice(self.categories) for prompt in prompts]


class RandomModels:
    """Scores drawn from `seed`, the conversation and the category: what a policy does whose reward says nothing."""

    calibration = None

    def __init__(self, categories: Sequence[str], seed: int):
        self.categories, self.seed = tuple(categories), seed
        self.fingerprint = f"random models {self.categories} {seed}"

    def score(self, prompts: Sequence, completions: Sequence, categories: Sequence[str] | None = None) -> Tensor:
        """Standard normal scores, (N, K), or (N,) of one category a row. The same answer always gets the same."""
        asked = [self.categories] * len(prompts) if categories is None else [[name] for name in categories]
        talks = [f"{self.seed} {simplest(p)} {c}" for p, c in zip(prompts, completions, strict=True)]
        scores = [
            [random.Random(f"{talk} {name}").gauss(0, 1) for name in names]
            for talk, names in zip(talks, asked, strict=True)
        ]
        table = torch.tensor(scores)
        return table if categories is None else table[:, 0]


class RouterWithout:
    """Routes as `router` does, but never to `category`: of the other classes the likeliest takes its prompts."""

    def __init__(self, router, category: str):
        """`router`: anything with `classes`, `probabilities`, `decide` and `fingerprint`, such as a `Router`."""
        if category not in router.classes:
            raise InputError(f"left_out: {category!r} is none of {', '.join(router.classes)}")
        self.router, self.category = router, category
        self.fingerprint = f"without {category}: {router.fingerprint}"

    def route(self, prompts: Sequence) -> list[str]:
        """The category of each prompt, or "unknown", by the probabilities of the classes that are left: p(j | x) given
        that j is not `category`."""
        likely = self.router.probabilities(prompts).clone()
        likely[:, self.router.classes.index(self.category)] = 0.0
        return self.router.decide(likely / likely.sum(dim=1, keepdim=True).clamp(min=1e-30))


class ModelsWithout:
    """The scores of `models` without those of `category`, calibrated as they were."""

    def __init__(self, models, category: str):
        """`models`: such as `ShadowRewardModels`, with a calibration."""
        if category not in models.categories:
            raise InputError(f"left_out: {category!r} is none of {', '.join(models.categories)}")
        self.models, own = models, models.calibration
        self.kept = [j for j, name in enumerate(models.categories) if name != category]
        self.categories = [models.categories[j] for j in self.kept]
        mean, std = (tuple(part[j] for j in self.kept) for part in (own.mean, own.std))
        self.calibration = replace(own, categories=tuple(self.categories), mean=mean, std=std)
        self.fingerprint = f"without {category}: {models.fingerprint}"

    def score(self, prompts: Sequence, completions: Sequence, categories: Sequence[str] | None = None) -> Tensor:
        """Raw scores (N, K - 1); with `categories` (one a row, none the one left out) (N,) of those models."""
        if categories is not None:
            return self.models.score(prompts, completions, categories=categories)
        return self.models.score(prompts, completions)[:, self.kept]


def _remembered(known: dict, prompts: Sequence, ask: Callable) -> list:
    """What `ask` says of each prompt. Distinct prompts are asked about once, for each comes G times a step."""
    asked = for_each(simplest, prompts)
    fresh = {str(prompt): prompt for prompt in asked if str(prompt) not in known}
    if fresh:
        rows = {str(prompt): row for row, prompt in reversed(list(enumerate(asked)))}
        with numbered([rows[text] for text in fresh]):
            known.update(zip(fresh, ask(list(fresh.values())), strict=True))
    return [known[str(prompt)] for prompt in asked]
