"""What labels of people can teach on a frozen causal model, beside reward models that as a rule have seen none of
them (02)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srmir_lib.artifacts import atomic_path, digest
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
    keep_in: Path | None = None,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict]]:
    """Danger (N,) by method and split of `labelled`, the train split left out, and what was chosen on validation.

    `models`: of the seven in the set shadow_rms, calibrated, the one in charge of the prompt (`routed_danger`), for
    answers to prompts of all categories stand in one order; `one_model`: the set single_rm, which learned from the same
    pairs. `says`: the trunk's own answer to the `question` whether there is harm. With the labels of the train split:
    `readouts` (`learn_from_labels`) on six hidden states of the trunk, which are saved in `folder`, and logistic
    regression on the last of the layers that they chose (`states`) and on what the `reader`'s model makes of prompt and
    answer (`encoder`). Without a trunk, as where an encoder has learned from these labels, there is nothing. What is
    read of a split is kept in the folder `keep_in`, if there is one, for a run that begins again.
    """
    if trunk is None:
        return {}, {}
    texts = {name: (rows["prompt"], rows["completion"]) for name, rows in labelled.items()}
    unsafe = {name: list(rows["unsafe"]) for name, rows in labelled.items()}
    layers, how = spaced_layers(trunk.model), (trunk.model, trunk.tokenizer)
    read = {name: digest([list(column) for column in both]) for name, both in texts.items()}

    def kept(part: str, name: str, make: Callable[[], Tensor]) -> Tensor:
        return _remembered(keep_in, [part, read[name], trunk.sha256, question], make)

    states = {
        name: kept("states", name, partial(embed_layers, *how, *of, layers, "mean")) for name, of in texts.items()
    }
    known = states["train"], unsafe["train"], states["validation"], unsafe["validation"]
    readouts, choice = learn_from_labels(*known, layers, "mean", trunk.sha256, seed)
    own = [layers.index(layer) for layer in readouts.layers]
    readouts.save(folder)
    encoder, held = reader.load(trunk), {name: rows for name, rows in labelled.items() if name != "train"}
    sets = {name: models[name] for name in ("shadow_rms", "single_rm")}
    danger = {"models": {}, "one_model": {}, "says": {}}
    for name, rows in held.items():
        ask = partial(_routed_and_said, sets, trunk, *texts[name], question, rows["category"])
        own_and_others = kept("danger", name, ask)
        for method, found in zip(danger, own_and_others.numpy(), strict=True):
            danger[method][name] = found
    danger["readouts"] = {name: -readouts.score(part[:, own]).numpy() for name, part in states.items()}
    embedded = {
        "states": {name: part[:, own[-1]] for name, part in states.items()},
        "encoder": {
            name: kept("encoder", name, partial(embed, *encoder, *of, -1, "mean")) for name, of in texts.items()
        },
    }
    chosen = {"readouts": choice}
    for name, parts in embedded.items():
        known = parts["train"], unsafe["train"], parts["validation"], unsafe["validation"]
        weight, bias, chosen[name] = best_regression(*known)
        danger[name] = {split: (part @ weight + bias).numpy() for split, part in parts.items()}
    return {name: {split: found[split] for split in held} for name, found in danger.items()}, chosen


def _routed_and_said(
    sets: Mapping, trunk: Trunk, prompts: Sequence, answers: Sequence, question: str, labels: Sequence[str]
) -> Tensor:
    """Danger (3, N) by the seven, routed by the `labels` of the prompts, and by the one model, and what the trunk says.
    The seven are all asked where the label is no category, else the one in charge alone."""
    seven, danger = sets["shadow_rms"], torch.zeros(3, len(prompts))
    index = category_index(labels, seven.categories)
    for rows, charged in ((torch.nonzero(index >= 0), True), (torch.nonzero(index < 0), False)):
        if not len(rows := rows.flatten().tolist()):
            continue
        texts = [prompts[row] for row in rows], [answers[row] for row in rows]
        scores, said = scored_and_said(sets, trunk, *texts, question, {"shadow_rms": index[rows]} if charged else None)
        alike = seven.calibration.apply(scores["shadow_rms"])
        routed = routed_danger(alike, [labels[row] for row in rows], seven.categories)
        danger[:, rows] = torch.stack(list(map(torch.as_tensor, (routed, -scores["single_rm"][:, 0], said)))).float()
    return danger


def _remembered(folder: Path | None, key: object, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, or what is kept of it in the `folder` under the digest of the `key`, which names what differs
    within one stage: the folder goes when parameters, code or inputs change (`Stage.scratch`)."""
    if folder is None:
        return make()
    file = folder / f"{digest(key)}.safetensors"
    if not file.is_file():
        with atomic_path(file) as fresh:
            save_file({"found": make()}, fresh)
    return load_file(file)["found"]
