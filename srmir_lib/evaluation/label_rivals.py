"""What labels of people can teach on a frozen causal model, beside reward models that have seen none of them (02)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from srmir_lib.data.router import PromptEncoder
from srmir_lib.models.embeddings import embed, embed_layers
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.labelled_readouts import learn_from_labels, spaced_layers
from srmir_lib.statistics import auroc

PENALTIES = (0.001, 0.01, 0.1, 1.0)


def label_rivals(
    trunk: Trunk | None, models: Mapping, reader: PromptEncoder, labelled: Mapping, folder: str | Path, seed: int = 0
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict]]:
    """Danger (N,) by method and split of `labelled`, the train split left out, and what was chosen on validation.

    `one_model`: the set single_rm of `models`, which learned from the same pairs as the seven. With the labels of the
    train split: `readouts` (`learn_from_labels`) on six hidden states of the trunk, which are saved in `folder`, and
    logistic regression on the last of the layers that they chose (`states`) and on what the `reader`'s model makes of
    prompt and answer (`encoder`). Without a trunk, as where an encoder has learned from these labels, there is nothing.
    """
    if trunk is None:
        return {}, {}
    texts = {name: (rows["prompt"], rows["completion"]) for name, rows in labelled.items()}
    unsafe = {name: list(rows["unsafe"]) for name, rows in labelled.items()}
    layers, how = spaced_layers(trunk.model), (trunk.model, trunk.tokenizer)
    states = {name: embed_layers(*how, *both, layers, "mean") for name, both in texts.items()}
    known = states["train"], unsafe["train"], states["validation"], unsafe["validation"]
    readouts, choice = learn_from_labels(*known, layers, "mean", trunk.sha256, seed)
    own = [layers.index(layer) for layer in readouts.layers]
    readouts.save(folder)
    single, encoder = models["single_rm"], reader.load(trunk)
    danger = {"one_model": {name: -single.score(*both)[:, 0].numpy() for name, both in texts.items()}}
    danger["readouts"] = {name: -readouts.score(part[:, own]).numpy() for name, part in states.items()}
    read = {
        "states": {name: part[:, own[-1]] for name, part in states.items()},
        "encoder": {name: embed(*encoder, *both, -1, "mean") for name, both in texts.items()},
    }
    chosen = {"readouts": choice}
    for name, parts in read.items():
        danger[name], chosen[name] = _regression(parts, unsafe)
    held = [name for name in labelled if name != "train"]
    return {name: {split: found[split] for split in held} for name, found in danger.items()}, chosen


def _regression(parts: Mapping[str, torch.Tensor], unsafe: Mapping) -> tuple[dict[str, np.ndarray], dict]:
    """Logistic regression on the train split of `parts`: danger of every split, and the inverse penalty."""
    mean, spread = parts["train"].mean(dim=0), parts["train"].std(dim=0).clamp(min=1e-6)
    scaled = {name: ((part - mean) / spread).numpy() for name, part in parts.items()}
    best, choice = {}, {"auroc": -1.0}
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=2000).fit(scaled["train"], unsafe["train"])
        danger = {name: model.decision_function(part) for name, part in scaled.items()}
        found = auroc(danger["validation"], unsafe["validation"])
        if found > choice["auroc"]:
            best, choice = danger, {"penalty": penalty, "auroc": found}
    return best, choice
