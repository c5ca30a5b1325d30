"""What labels of people can teach on a frozen causal model, beside reward models that as a rule have seen none of
them (02)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from srmir_lib.data.harm_classifier import best_regression
from srmir_lib.data.router import PromptEncoder
from srmir_lib.evaluation.reward_accuracy import category_index, routed_danger
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
        own_and_others = _routed_and_said(sets, trunk, *texts[name], question, rows["category"])
        for method, found in zip(danger, own_and_others, strict=True):
            danger[method][name] = found
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


def _routed_and_said(
    sets: Mapping, trunk: Trunk, prompts: Sequence, answers: Sequence, question: str, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Danger (N,) by the seven, routed by the `labels` of the prompts, by the one model, and what the trunk says. The
    seven are all asked where the label is no category, else the one in charge alone."""
    seven, danger = sets["shadow_rms"], np.zeros((3, len(prompts)))
    index = category_index(labels, seven.categories)
    for rows, charged in ((torch.nonzero(index >= 0), True), (torch.nonzero(index < 0), False)):
        if not len(rows := rows.flatten().tolist()):
            continue
        texts = [prompts[row] for row in rows], [answers[row] for row in rows]
        scores, said = scored_and_said(sets, trunk, *texts, question, {"shadow_rms": index[rows]} if charged else None)
        alike = seven.calibration.apply(scores["shadow_rms"])
        routed = routed_danger(alike, [labels[row] for row in rows], seven.categories)
        danger[:, rows] = routed, -scores["single_rm"][:, 0].numpy(), said
    return tuple(danger)
