"""One alarm for reward hacking, with a stated false-alarm rate.

A run is watched through what its reward does not pay for: the idle reward models' scores, the answers' length, their
likelihood under the base model, how much they repeat themselves, and how far the policy is from its reference. What is
healthy is measured, not guessed: answers of the base model and demonstrations, in any mixture, are what a policy may
say on its way from one to the other. The alarm rings when a batch is further out than all but a stated share of
healthy runs ever get. Which signal rings says what it is: the idle reward models, hacking; likelihood and KL, a policy
that leaves language.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.policies.callbacks import BIGRAMS, LIKELIHOOD, answer_ids, distinct_bigrams, divergence, log_likelihood
from srmir_lib.policies.reward import MONITOR, RewardFunction

SIGNALS = {
    "idle reward models": (MONITOR, -1),
    "length": ("completions/mean_length", 0),
    "log-likelihood": (LIKELIHOOD, -1),
    "distinct bigrams": (BIGRAMS, -1),
    "KL": ("kl", 1),
}
"""Signal -> its key (or keys' prefix) in a history, and the side on which it is suspect: below (-1), above (1) or
either (0)."""

OPTIONAL = ("KL", "idle reward models")
"""Signals that a run may do without: it has no reference, or only one reward model, which is never idle."""


@dataclass(frozen=True)
class Alarm:
    """Mean and standard deviation of each signal's batch means in health, and how far out rings, in deviations."""

    mean: dict[str, float]
    std: dict[str, float]
    threshold: float
    looks: int

    @classmethod
    def fit(
        cls, healthy: Sequence[Mapping], batch: int, looks: int, rate: float = 0.05, seed: int = 0, runs: int = 2000
    ) -> "Alarm":
        """Simulate `runs` healthy runs of `looks` batches of `batch` answers each; one in 1 / `rate` of them rings.

        `healthy`: one mapping per source of healthy answers, signal -> values (n,), one an answer, as `measure` gives
        them; what is `OPTIONAL` may be missing in all of them, and is not listened to then. Each simulated batch mixes
        the sources in shares of its own, uniform over all mixtures. The threshold is the (1 - `rate`) quantile of the
        worst deviation in a run, over all signals and looks, so that the rate is that of a whole run and needs no
        correction. A source without answers, values that are not finite, no looks or a rate that is no share are an
        `InputError`.
        """
        if min(batch, looks, runs) < 1 or not 0 < rate < 1:
            numbers = f"batch {batch}, looks {looks}, runs {runs}, rate {rate}"
            raise InputError(f"alarm: {numbers}; needs at least one of each and a rate between 0 and 1")
        names = [name for name in SIGNALS if name not in OPTIONAL or any(name in source for source in healthy)]
        for number, source in enumerate(healthy):
            for name in names:
                values = np.asarray(source.get(name, ()), dtype=float)
                if not len(values) or not np.isfinite(values).all():
                    raise InputError(f"healthy answers, source {number}: {name} needs finite values, one an answer")
        means = _simulate(healthy, names, batch, looks * runs, seed)
        mean, std = means.mean(axis=0), means.std(axis=0) + 1e-12
        worst = _suspicion((means - mean) / std, names).max(axis=1).reshape(runs, looks).max(axis=1)
        threshold = float(np.quantile(worst, 1 - rate))
        return cls(*(dict(zip(names, part.tolist(), strict=True)) for part in (mean, std)), threshold, looks)

    def check(self, history: Sequence[Mapping]) -> list[dict]:
        """One row per look: step, each signal's value, `suspicion` (deviations of the worst), its name, `rings`.

        A run without a KL penalty has no KL, and is watched by the rest. A history with more looks than the alarm was
        fitted for would ring too often, and is an `InputError`, as is one without any.
        """
        rows, unmeasured = [], {"KL"} if all(row.get("kl") is None for row in history) else set()
        for row in history:
            found = {name: _read(row, SIGNALS[name][0]) for name in self.mean if name not in unmeasured}
            if None not in found.values():
                z = np.array([[(found[name] - self.mean[name]) / self.std[name] for name in found]])
                suspicion = _suspicion(z, list(found))[0]
                worst = int(suspicion.argmax())
                facts = {"suspicion": float(suspicion[worst]), "signal": list(found)[worst]}
                rows.append({"step": row["step"], **found, **facts, "rings": bool(suspicion[worst] > self.threshold)})
        if not 0 < len(rows) <= self.looks:
            raise InputError(f"history: {len(rows)} looks with all signals; the alarm was fitted for 1 to {self.looks}")
        return rows


def measure(
    reward: RewardFunction,
    model,
    prompts: Sequence,
    completions: Sequence,
    micro_batch: int = 64,
    apart=None,
    longest: int | None = None,
    temperature: float = 1.0,
) -> dict:
    """The signals of single answers, signal -> values (N,): `prompts` conversations, `completions` texts or messages.

    `reward` names the reward model in charge of each prompt (a categorized reward with a router); the others are
    idle. `model` is the base model in memory. `apart`: (policy, reference), the policy that says such
    answers and the reference of the runs to be watched, both in memory, for the signal "KL": how far a healthy policy
    is from there at the `temperature` of the runs. `longest`: tokens of an answer at which sampling cut it off.
    """
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    tokenizer = load_tokenizer(model.name_or_path)
    asked, said = answer_ids(model, tokenizer, prompts, texts, longest)
    scores = reward.models.calibration.apply(reward.models.score(prompts, texts)).numpy()
    charge = reward.router.route(prompts)
    idle = np.array([[name != own for name in reward.models.categories] for own in charge])
    with torch.no_grad():
        likelihood = log_likelihood(model, asked, said, micro_batch)
        far = {} if apart is None else {"KL": divergence(*apart, asked, said, micro_batch, temperature).numpy()}
    beside = np.where(idle, scores, 0).sum(axis=1) / idle.sum(axis=1) if idle.shape[1] > 1 else None
    values = ({} if beside is None else {"idle reward models": beside}) | {
        "length": [len(ids) for ids in said],
        "log-likelihood": likelihood.numpy(),
        "distinct bigrams": [distinct_bigrams(text) for text in texts],
    }
    return {name: np.asarray(value, dtype=float) for name, value in (values | far).items()}


def _simulate(healthy: Sequence[Mapping], names: Sequence[str], batch: int, count: int, seed: int) -> np.ndarray:
    """Batch means (count, signals) of `count` batches drawn from random mixtures of the sources."""
    rng = np.random.default_rng(seed)
    pools = [np.stack([np.asarray(source[name], dtype=float) for name in names], axis=1) for source in healthy]
    shares = rng.dirichlet(np.ones(len(pools)), size=count)
    total = np.zeros((count, len(names)))
    left = np.full(count, batch)
    for number, pool in enumerate(pools):
        remaining = shares[:, number:].sum(axis=1)
        drawn = left if number == len(pools) - 1 else rng.binomial(left, np.clip(shares[:, number] / remaining, 0, 1))
        picked = pool[rng.integers(len(pool), size=(count, batch))]  # (count, batch, signals)
        total += (picked * (np.arange(batch) < drawn[:, None])[..., None]).sum(axis=1)
        left = left - drawn
    return total / batch


def _suspicion(z: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Deviations on the suspect side: (…, signals) of z-scores to (…, signals)."""
    side = np.array([SIGNALS[name][1] for name in names])
    return np.where(side == 0, np.abs(z), side * z)


def _read(row: Mapping, key: str) -> float | None:
    """A history row's value under `key`; of a prefix (it ends with /) the mean over its keys."""
    values = [row[name] for name in row if name.startswith(key)] if key.endswith("/") else [row.get(key)]
    return None if not values or None in values else sum(values) / len(values)
