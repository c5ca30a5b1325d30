"""What labels of people can teach on a frozen causal model, beside reward models that as a rule have seen none of
them (02)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from srmir_lib.data.harm_classifier import best_regression
from srmir_lib.data.router import PromptEncoder
from srmir_lib.evaluation.reward_accuracy import routed_danger
from srmir_lib.evaluation.spoken import scored_and_said
from srmir_lib.models.embeddings import embed, embed_layers
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.labelled_readouts import learn_from_labels, spaced_layers


def label_rivals(
    trunk: Trunk | None,
    models: Mapping,
    reader: PromptEncoder,
    labelled: Mapping,
    folder: str | Path,
    question: str,
    seed: int = 0,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict]]:
    """Danger (N,) by method and split of `labelled`, the train split left out, and what was chosen on validation.

    `models`: of the seven in the set shadow_rms, calibrated, the one in charge of the prompt (`routed_danger`), for
    answers to prompts of all categories stand in one order; `one_model`: the set single_rm, which learned from the same
    pairs. `says`: the trunk's own answer to the `question` whether there is harm. With the labels of the train split:
    `readouts` (`learn_from_labels`) on six hidden states of the trunk, which are saved in `folder`, and logistic
    regression on the last of the layers that they chose (`states`) and on what the `reader`'s model makes of prompt and
    answer (`encoder`). Without a trunk, as where an encoder has learned from these labels, there is nothing.
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
    encoder, held = reader.load(trunk), {name: rows for name, rows in labelled.items() if name != "train"}
    sets = {name: models[name] for name in ("shadow_rms", "single_rm")}
    danger = {"models": {}, "one_model": {}, "says": {}}
    for name, rows in held.items():
        scores, danger["says"][name] = scored_and_said(sets, trunk, *texts[name], question)
        alike = sets["shadow_rms"].calibration.apply(scores["shadow_rms"])
        danger["models"][name] = routed_danger(alike, rows["category"], sets["shadow_rms"].categories)
        danger["one_model"][name] = -scores["single_rm"][:, 0].numpy()
    danger["readouts"] = {name: -readouts.score(part[:, own]).numpy() for name, part in states.items()}
    read = {
        "states": {name: part[:, own[-1]] for name, part in states.items()},
        "encoder": {name: embed(*encoder, *both, -1, "mean") for name, both in texts.items()},
    }
    chosen = {"readouts": choice}
    for name, parts in read.items():
        known = parts["train"], unsafe["train"], parts["validation"], unsafe["validation"]
        weight, bias, chosen[name] = best_regression(*known)
        danger[name] = {split: (part @ weight + bias).numpy() for split, part in parts.items()}
    return {name: {split: found[split] for split in held} for name, found in danger.items()}, chosen
