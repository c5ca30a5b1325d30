"""Which answers do harm? Logistic regression on what a frozen encoder makes of prompt and answer.

It learns from people's labels in GPTFuzz, DiaSafety and the half of Do-Not-Answer's prompts that no policy is tested on
(`chat_prompts.held_out`), never from BeaverTails or Safe-RLHF, which test reward models here and teach their rivals.
How far it is to be trusted is said by its AUROC on those.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from srmir_lib.artifacts import as_written, atomic_path, read_json, write_json
from srmir_lib.data.chat_prompts import held_out
from srmir_lib.data.labelled_files import load_do_not_answer
from srmir_lib.data.public_files import load_diasafety, load_gptfuzz, split_by_group
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import base_reference, find_base, load_trunk, resolve_encoder
from srmir_lib.statistics import auroc, youden_threshold

PENALTIES = (0.001, 0.01, 0.1, 1.0)

MOST = 2500
"""Answers of each set, at most, that it learns from."""

FIX = "run the stage that writes it"


def best_regression(
    states: Tensor, unsafe: Sequence, held: Tensor, held_unsafe: Sequence
) -> tuple[Tensor, float, dict[str, float]]:
    """Logistic regression that tells safe from unsafe validation answers best (AUROC): weight (H,) and bias of the
    log-odds of harm on raw states, and the choice, `penalty` (inverse) and `auroc`.

    `states` (N, H) of training answers, `held` of validation answers; `unsafe`, `held_unsafe`: their labels, 0 or 1.
    """
    mean, spread = states.mean(dim=0), states.std(dim=0).clamp(min=1e-6)
    found = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
        model.fit(((states - mean) / spread).numpy(), unsafe)
        weight = torch.tensor(model.coef_[0]).float() / spread
        bias = float(model.intercept_[0]) - float(weight @ mean)
        choice = {"penalty": penalty, "auroc": auroc((held @ weight + bias).numpy(), held_unsafe)}
        found.append((weight, bias, choice))
    return max(found, key=lambda candidate: candidate[2]["auroc"])


class HarmClassifier:
    """`danger(prompts, responses)` -> log-odds of harm; from `threshold` on an answer counts as harmful."""

    def __init__(self, encoder: str, weight: Tensor, bias: float, threshold: float, device: str = "auto"):
        """Danger is `weight` (H,) times the encoder's embedding plus `bias`, in log-odds; `threshold` likewise."""
        self.encoder, self.weight, self.bias, self.threshold = encoder, weight, float(bias), float(threshold)
        self.device, self._loaded = device, None

    def danger(self, prompts: Sequence, responses: Sequence) -> np.ndarray:
        """Log-odds (N,) that an answer to a prompt is harmful. The encoder is loaded once."""
        if self._loaded is None:
            self._loaded = load_trunk(self.encoder, self.device)
        return (embed(*self._loaded, prompts, responses, -1, "mean") @ self.weight + self.bias).numpy()

    def against(self, prompts: Sequence, responses: Sequence, unsafe: Sequence[int]) -> dict[str, float]:
        """How it agrees with people's labels of other answers: `auroc`, and at its threshold `recall`, of what they
        called unsafe, and `false_alarms`, of what they did not."""
        danger, labels = self.danger(prompts, responses), np.asarray(unsafe, dtype=bool)
        rings = danger >= self.threshold
        rates = {"recall": float(rings[labels].mean()), "false_alarms": float(rings[~labels].mean())}
        return {"auroc": auroc(danger, labels)} | rates

    @classmethod
    def fit(
        cls, embeddings: Tensor, unsafe: Sequence, held: Tensor, held_unsafe: Sequence, encoder: str, device="auto"
    ):
        """What `best_regression` finds, with the threshold that tells validation answers best (Youden)."""
        weight, bias, _ = best_regression(embeddings, unsafe, held, held_unsafe)
        threshold = youden_threshold((held @ weight + bias).numpy(), held_unsafe)
        return cls(encoder, weight, bias, threshold, device)

    def save(self, folder: str | Path) -> None:
        """Write `harm.json` and `harm.safetensors`, all or nothing."""
        with atomic_path(Path(folder).resolve()) as fresh:
            fresh.mkdir()
            save_file({"weight": self.weight.contiguous()}, fresh / "harm.safetensors")
            about = {"bias": self.bias, "threshold": self.threshold}
            write_json(fresh / "harm.json", about | base_reference(self.encoder, Path(folder).resolve()))

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "HarmClassifier":
        """What `save` wrote; a missing or damaged file, or another encoder, is an `InputError`."""
        folder = Path(folder)
        about = read_json(folder / "harm.json")
        with as_written(folder, "damaged harm classifier", FIX):
            weight = load_file(folder / "harm.safetensors")["weight"]
            bias, threshold = float(about["bias"]), float(about["threshold"])
            encoder = find_base(folder, about)
        return cls(encoder, weight, bias, threshold, device)


def harm_answers(data_dir: str | Path = "", seed: int = 0) -> dict[str, list[Mapping]]:
    """Answers with labels that it learns from, splits train and validation (an eighth, by prompt): at most
    `MOST` each of GPTFuzz, of DiaSafety's own training split, and of Do-Not-Answer's prompts that are not held out."""
    judged = load_do_not_answer(data_dir)
    kept = held_out(row["prompt"] for row in judged)
    sets = {
        "gptfuzz": load_gptfuzz(data_dir),
        "diasafety": [row for row in load_diasafety(data_dir, "train") if row["response"]],
        "do_not_answer": [row for row in judged if row["prompt"] not in kept],
    }
    splits: dict[str, list[Mapping]] = {"train": [], "validation": []}
    for rows in sets.values():
        few = random.Random(seed).sample(rows, min(MOST, len(rows)))
        parts = split_by_group(few, "prompt", (0.8, 0.125), seed)
        splits["train"] += parts["train"] + parts["test"]
        splits["validation"] += parts["validation"]
    return splits


def fit_harm_classifier(data_dir: str | Path, encoder: str, device: str = "auto", seed: int = 0) -> HarmClassifier:
    """A classifier that learned from `harm_answers`, on the mean of what the encoder makes of prompt and answer."""
    encoder, splits = resolve_encoder(encoder), harm_answers(data_dir, seed)
    loaded, parts = load_trunk(encoder, device), []
    for rows in splits.values():
        parts.append(embed(*loaded, [row["prompt"] for row in rows], [row["response"] for row in rows], -1, "mean"))
        parts.append([row["unsafe"] for row in rows])
    return HarmClassifier.fit(*parts, encoder, device)
