"""Training token rewards: Bradley-Terry and AVA on the same pairs, in the same order, with the same weights to move.

A fit is a folder: PEFT's adapter, `heads.safetensors`, `config.json` (how it reads), `fit.json` (how it was trained).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from srmir_lib.artifacts import atomic_path, read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.models.parallel import run_in_threads
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.ava import TokenBeliefs, answer_reward, ava_demonstration_objective, ava_preference_objective
from srmir_lib.papers.srmir import bradley_terry_loss
from srmir_lib.reward_models.config import base_of, find_trunk, kept_fit
from srmir_lib.reward_models.pairs import pair_batches
from srmir_lib.settings.appendices import TokenSettings
from srmir_lib.studies.a1_token_rewards.model import TokenRewardModel
from srmir_lib.studies.a1_token_rewards.reader import Answers, Reader

READING = ("question", "draft_tokens", "max_length")


def token_loss(chosen: TokenBeliefs, rejected: TokenBeliefs | None, settings: TokenSettings) -> Tensor:
    """What an update minimises, a scalar: minus the objective's mean over pairs; AVA-d reads chosen answers only."""
    weights = (settings.beta, settings.gamma, settings.lam, settings.form)
    if settings.objective == "ava_d":
        return -ava_demonstration_objective(chosen, *weights).mean()
    if settings.objective == "ava_p":
        return -ava_preference_objective(chosen, rejected, *weights, settings.readout).mean()
    return bradley_terry_loss(*(answer_reward(side, settings.readout) for side in (chosen, rejected)))


def fit_token_rewards(
    reader: Reader, pairs: Answers, output_dir: str | Path, settings: TokenSettings, seed: int = 0
) -> list[dict]:
    """Train on `reader.pairs(...)` and save in `output_dir`; returns the history (step, loss, accuracy).

    The same seed gives every objective the same start and the same pairs in the same order. A finished fit of the same
    pairs, settings, seed and base model is kept.
    """
    output_dir = Path(output_dir)
    key = {"settings": settings.model_dump(), "seed": seed}
    key |= {"pairs_sha256": pairs.sha256(), "base_sha256": reader.trunk.sha256, "dtype": reader.trunk.dtype}
    if not (fit := kept_fit(output_dir, key)):
        model = TokenRewardModel(reader, settings, seed)
        fit = {"key": key, "history": train_token_rewards(model, pairs, seed)}
        with atomic_path(output_dir) as fresh:
            fresh.mkdir()
            model.save(fresh)
            write_json(fresh / "config.json", _config(reader, output_dir))
            write_json(fresh / "fit.json", fit)
    return fit["history"]


def train_token_rewards(model: TokenRewardModel, pairs: Answers, seed: int) -> list[dict]:
    """Minimise `token_loss` in place; the learning rate falls linearly to zero. Returns the history of all updates."""
    settings, count = model.settings, len(pairs.tails) // 2
    if count == 0:
        raise InputError("preferences: no pair to train on")
    trained = model.parameters()
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / settings.max_steps)
    drawn = pair_batches([count], settings.batch_size, settings.max_steps, seed)
    both, history = settings.objective != "ava_d", []
    for step, (batch,) in enumerate(drawn, start=1):
        rows = [*batch, *(count + row for row in batch)] if both else batch
        beliefs = model.beliefs(pairs, rows, with_q=settings.objective != "bradley_terry")
        chosen = TokenBeliefs(*(part[: len(batch)] for part in beliefs))
        rejected = TokenBeliefs(*(part[len(batch) :] for part in beliefs)) if both else None
        loss = token_loss(chosen, rejected, settings)
        if not loss.isfinite():
            raise InputError(f"{settings.objective}: the loss of step {step} is not finite; lower learning_rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        decay.step()
        history.append({"step": step, "loss": loss.item()})
        if both:
            gap = answer_reward(chosen, settings.readout) - answer_reward(rejected, settings.readout)
            history[-1]["accuracy"] = (gap > 0).float().mean().item()
    return history


def load_token_rewards(
    folder: str | Path, trunk: Trunk | str = "auto", base_model: str | None = None, reader: Reader | None = None
) -> TokenRewardModel:
    """Read what `fit_token_rewards` wrote. `trunk`: the base model in memory, or the device to load one on;
    `base_model`: where it lies now, if it was moved; `reader`: one in memory, which must read with that base model."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of a token reward; run A1_bayesian_rewards")
    config, fit = read_json(folder / "config.json"), read_json(folder / "fit.json")
    trunk = find_trunk(folder, config, reader.trunk if reader is not None else trunk, base_model)
    reader = reader or Reader(trunk, **{name: config[name] for name in READING})
    settings = TokenSettings.checked(fit["key"]["settings"], f"{folder}/fit.json")
    return TokenRewardModel(reader, settings, fit["key"]["seed"]).load(folder)


def fit_side_by_side(
    reader: Reader, pairs: Answers, folder: Path, wanted: Mapping[str, tuple[TokenSettings, Sequence[int]]]
) -> dict[str, list[TokenRewardModel]]:
    """`fit_token_rewards` of every method with each of its seeds, as `run_in_threads` has them: method -> its models.

    `wanted`: method -> (settings, seeds). A fit lies in `folder`/<method>_<seed>.
    """

    def fit(name: str, seed: int) -> TokenRewardModel:
        own = folder / f"{name}_{seed}"
        fit_token_rewards(reader, pairs, own, wanted[name][0], seed)
        return load_token_rewards(own, reader=reader)

    jobs = {(name, seed): partial(fit, name, seed) for name, (_, seeds) in wanted.items() for seed in seeds}
    models = run_in_threads(jobs, reader.trunk.device, "fits")
    return {name: [models[name, seed] for seed in seeds] for name, (_, seeds) in wanted.items()}


def _config(reader: Reader, final: Path) -> dict:
    """How the fit reads, and on which base model it stands; `final`: where its folder will lie."""
    introspect = reader.introspect
    reading = zip(READING, (introspect.question, introspect.max_new_tokens, reader.max_length), strict=True)
    return base_of(reader.trunk, final) | dict(reading)
