"""Which category is a prompt about? A linear classifier on what a frozen model knows after reading the prompt.

Multinomial logistic regression on one embedding per prompt. "unknown" is what it answers when no category is likely
enough, or when a class of that name was trained. The fitted router is two small files and needs no scikit-learn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from datasets import DatasetDict
from torch import Tensor

from srmir_lib.artifacts import as_written, atomic_path, digest, read_json, write_json
from srmir_lib.conversations import ask_about
from srmir_lib.errors import InputError
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import (
    MINILM,
    base_reference,
    config_of,
    find_base,
    load_trunk,
    resolve_encoder,
)
from srmir_lib.models.trunk import Trunk
from srmir_lib.settings.base import Settings
from srmir_lib.taxonomy import CATEGORIES, UNKNOWN, ordered

PROMPT = "{prompt}"


class PromptEncoder(Settings):
    """How a prompt becomes an embedding: which frozen model reads which question about it, and where it is read off.

    `question` holds {prompt}; an introspective one ("Why would you refuse to answer {prompt}?") lets the state after it
    say what the model thinks of the prompt, rather than what it is about to answer.
    """

    base_model: str
    layer: int = -1
    pooling: str = "last"
    question: str = PROMPT
    dtype: str = "float32"

    def load(self, trunk: Trunk | str = "auto") -> tuple:
        """The model and tokenizer that read prompts: those of `trunk` if it is this base model in this precision, else
        loaded anew, on the trunk's device or on the one that `trunk` names."""
        in_memory = isinstance(trunk, Trunk)
        if in_memory and (trunk.base_model, trunk.dtype) == (self.base_model, self.dtype):
            return trunk.model, trunk.tokenizer
        return load_trunk(self.base_model, str(trunk.device) if in_memory else trunk, self.dtype)

    def embed(self, prompts: Sequence, trunk: Trunk | str = "auto", loaded: tuple | None = None) -> Tensor:
        """Embeddings (N, H) of user texts or conversations; `loaded`: what `load` gave."""
        asked = [ask_about(prompt, self.question) for prompt in prompts]
        return embed(*(loaded or self.load(trunk)), asked, layer=self.layer, pooling=self.pooling)


class Router:
    """Categories of prompts: `route` names one for each, `probabilities` says how likely each class is."""

    def __init__(
        self,
        classes: Sequence[str],
        weight: Tensor,
        bias: Tensor,
        threshold: float = 0.0,
        reader: PromptEncoder | None = None,
        trunk: Trunk | str = "auto",
        fitted: dict | None = None,
    ):
        """`weight` (C, H), `bias` (C,) act on raw embeddings; a top probability below `threshold` is unknown.

        `trunk`: the base model in memory, which a reader of that model shares, or the device to load the reader on.
        """
        self.classes, self.weight, self.bias, self.threshold = list(classes), weight, bias, float(threshold)
        self.reader, self.trunk, self.fitted, self._loaded = reader, trunk, fitted or {}, None

    @classmethod
    def fit(
        cls,
        embeddings: Tensor,
        labels: Sequence[str],
        validation_embeddings: Tensor,
        validation_labels: Sequence[str],
        classes: Sequence[str],
        penalties: Sequence[float] = (0.01, 0.1, 1.0, 10.0),
        rejected_share: float = 0.05,
        reader: PromptEncoder | None = None,
        trunk: Trunk | str = "auto",
    ) -> "Router":
        """Fit on `embeddings` (N, H), choose the inverse penalty C with the highest validation likelihood.

        `classes` may hold "unknown": then prompts labelled so are a class of their own; without it they are left out of
        the fit. The threshold is set so that `rejected_share` of the known validation prompts fall below it. A single
        class gets every prompt.
        """
        from sklearn.linear_model import LogisticRegression

        rows, held = ([i for i, label in enumerate(ls) if label in classes] for ls in (labels, validation_labels))
        absent = [name for name in classes if name not in labels]
        if absent or not held:
            raise InputError(f"router: no training prompts of {', '.join(absent) or 'any class for validation'}")
        if len(classes) == 1:
            return cls(classes, torch.zeros(1, embeddings.shape[1]), torch.zeros(1), 0.0, reader, trunk)
        mean, std = embeddings[rows].mean(dim=0), embeddings[rows].std(dim=0).clamp(min=1e-6)
        train, valid = ((part - mean) / std for part in (embeddings[rows], validation_embeddings[held]))
        target = [labels[row] for row in rows]
        truth = torch.tensor([list(classes).index(validation_labels[row]) for row in held])
        candidates = []
        for penalty in penalties:
            model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000).fit(train.numpy(), target)
            coefficients, intercept = torch.tensor(model.coef_).float(), torch.tensor(model.intercept_).float()
            if len(classes) == 2:  # scikit-learn keeps one row for two classes: the second against the first
                coefficients, intercept = (torch.cat([-part / 2, part / 2]) for part in (coefficients, intercept))
            order = [list(model.classes_).index(name) for name in classes]
            weight = coefficients[order] / std
            bias = intercept[order] - weight @ mean
            log_likelihood = cls(classes, weight, bias).log_probabilities(validation_embeddings[held])
            candidates.append((float(log_likelihood[torch.arange(len(held)), truth].mean()), penalty, weight, bias))
        best = max(candidates, key=lambda candidate: candidate[0])
        router = cls(classes, best[2], best[3], 0.0, reader, trunk)
        top = router.log_probabilities(validation_embeddings[held]).exp().max(dim=1).values
        known = top[[validation_labels[row] != UNKNOWN for row in held]]
        router.threshold = float(torch.quantile(known, rejected_share)) if rejected_share > 0 else 0.0
        router.fitted = {"penalty": best[1], "validation_log_likelihood": best[0], "rejected_share": rejected_share}
        return router

    @property
    def fingerprint(self) -> str:
        """Hash of what decides a route, which a resumed training compares."""
        reader = ", ".join(f"{name}={value!r}" for name, value in self.reader or ())
        parts = [self.classes, self.threshold, self.weight.tolist(), self.bias.tolist(), f"PromptEncoder({reader})"]
        return digest(parts)

    def log_probabilities(self, embeddings: Tensor) -> Tensor:
        """(N, H) -> (N, C)."""
        return torch.log_softmax(embeddings @ self.weight.T + self.bias, dim=1)

    def probabilities(self, prompts: Sequence) -> Tensor:
        """(N, C) over `classes`, for user texts or conversations. The reading model is loaded once."""
        if self.reader is None:
            raise InputError("router: it has no reader; give Router.fit a PromptEncoder to route texts")
        if self._loaded is None:
            self._loaded = self.reader.load(self.trunk)
        return self.log_probabilities(self.reader.embed(prompts, loaded=self._loaded)).exp()

    def route(self, prompts: Sequence) -> list[str]:
        """The category of each prompt, or "unknown"."""
        return self.decide(self.probabilities(prompts))

    def decide(self, probabilities: Tensor) -> list[str]:
        """(N, C) -> N names: the likeliest class, "unknown" where even that is below the threshold."""
        top, index = probabilities.max(dim=1)
        pairs = zip(top.tolist(), index.tolist(), strict=True)
        return [self.classes[at] if likely >= self.threshold else UNKNOWN for likely, at in pairs]

    def save(self, folder: str | Path) -> Path:
        """Write `router.json` and `router.safetensors`. A local reading model is recorded relative to the folder."""
        from safetensors.torch import save_file

        if self.reader is None:
            raise InputError("router: nothing says how prompts are read; give Router.fit a PromptEncoder before saving")
        folder = Path(folder)
        reader = self.reader.model_dump() | base_reference(self.reader.base_model, folder)
        with atomic_path(folder) as fresh:
            fresh.mkdir()
            save_file(
                {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, fresh / "router.safetensors"
            )
            value = {"classes": self.classes, "threshold": self.threshold, "reader": reader, "fitted": self.fitted}
            write_json(fresh / "router.json", value)
        return folder

    @classmethod
    def load(cls, folder: str | Path, trunk: Trunk | str = "auto") -> "Router":
        """Read a router; a damaged file, or another reading model than the one fitted on, is an `InputError`.

        `trunk`: the base model in memory, which a router that reads with it shares, or the device to load one on.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        value = read_json(folder / "router.json")
        with as_written(folder, "damaged router", "run the stage that writes it"):
            reader, classes = dict(value["reader"]), value["classes"]
            reference = {name: reader.pop(name) for name in ("base_model", "base_is_folder", "base_sha256")}
            weights = load_file(folder / "router.safetensors")
            parts = weights["weight"], weights["bias"], value["threshold"]
            shared = isinstance(trunk, Trunk) and trunk.sha256 == reference["base_sha256"]
            base = trunk.base_model if shared else find_base(folder, reference)
            router = cls(classes, *parts, PromptEncoder(base_model=base, **reader), trunk, value["fitted"])
            ask_about("", router.reader.question), ", ".join(classes)
            size = len(classes), config_of(base).get_text_config().hidden_size
            found = tuple(router.weight.shape), tuple(router.bias.shape), router.weight.is_floating_point()
            if found != (size, size[:1], True):
                raise InputError(f"{folder}: damaged router (weights of another shape); run the stage that writes it")
        return router


def fit_router(
    prompts: Mapping, reader: PromptEncoder, classes: Sequence[str], trunk: Trunk | str = "auto", **options
) -> Router:
    """Router on what `reader` makes of `prompts`: rows of prompt and category, of train and of validation.

    `trunk` as of `Router`, `options` as of `Router.fit`.
    """
    loaded, parts = reader.load(trunk), []
    for split in ("train", "validation"):
        parts.append(reader.embed([row["prompt"] for row in prompts[split]], loaded=loaded))
        parts.append([row["category"] for row in prompts[split]])
    return Router.fit(*parts, list(classes), reader=reader, trunk=trunk, **options)


def fit_real_router(prompts: DatasetDict, encoder: str = MINILM, device: str = "auto") -> Router:
    """Router on the encoder's mean-pooled embeddings of `prompts` (train, tuned on validation)."""
    reader = PromptEncoder(base_model=resolve_encoder(encoder), pooling="mean")
    return fit_router(prompts, reader, CATEGORIES, device, penalties=(0.01, 0.03, 0.1, 0.3, 1.0))


def router_accuracy(router: Router, prompts) -> dict[str, float]:
    """Share of prompts that reach their own category, by category and `mean`; `unknown` is the share of no answer."""
    routed, gold = router.route(prompts["prompt"]), list(prompts["gold_category"])
    hits = {name: [r == g for r, g in zip(routed, gold, strict=True) if g == name] for name in ordered(gold)}
    shares = {name: sum(found) / len(found) for name, found in hits.items()}
    return shares | {
        "mean": sum(map(sum, hits.values())) / len(gold),
        UNKNOWN: routed.count(UNKNOWN) / len(routed),
    }
