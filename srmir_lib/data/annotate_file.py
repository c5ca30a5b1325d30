"""`srmir annotate`: a Legend margin on every pair of a file (JSON lines, a JSON list, parquet) or a `datasets` folder.

All rows are checked before anything slow is imported, and that none is too long for the model before the first is
read by it. The margins are N numbers in memory; the rows of a file are not.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from srmir_lib.artifacts import atomic_path, load_dataset, save_dataset
from srmir_lib.conversations import check_lengths, conversation_ids, text_of, user_message
from srmir_lib.data import jsonl
from srmir_lib.errors import InputError

PAIR = ("prompt", "chosen", "rejected")


def annotate_file(
    model: str,
    source: str,
    target: str,
    harmful: str = "",
    direction: str = "",
    save_direction: str = "",
    layer: int | None = None,
    pooling: str | None = None,
    scale: str = "unit",
    negative: str = "keep",
    refusals: Sequence[str] = (),
    direction_pairs: int = 400,
    device: str = "auto",
    chunk: int = 256,
) -> str:
    """Write the pairs of `source` to `target` with a column `margin`; returns a line on what was done.

    The safety direction is read from the file `direction`, or estimated from up to `direction_pairs` rows, evenly
    spread over the file `harmful` (prompt, response) or over `source` itself (its rejected answers; of a folder, its
    split train), against `refusals` (none: `margins.REFUSALS`). `layer` and `pooling` (default -1 and last, or those of
    `direction`) as in `embeddings.embed`, `scale` and `negative` as in `margins.scale_margins`; each split of a folder
    is scaled on its own. `chunk`: pairs in memory at a time.
    """
    started, vector, fitted_on = time.monotonic(), None, ""
    if direction:
        vector, layer, pooling, fitted_on = read_direction(direction, layer, pooling)
    if not Path(model).is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise InputError(f"{model}: no such model folder; name one, or the id of a model on the hub")
    if not all(text.strip() for text in refusals):
        raise InputError("refusal: an empty text; give the words of a safe answer")
    pairs = Pairs(source)
    counts = {split: jsonl.count_rows(pairs.rows(split), source) for split in pairs.splits}
    asked = [] if direction else _examples(harmful, pairs, counts, direction_pairs)
    inputs = [source, model, *filter(None, [harmful, direction])]
    jsonl.check_output(target, inputs, folder=pairs.dataset is not None)
    if save_direction:
        jsonl.check_output(save_direction, [source, model, target, *filter(None, [harmful])])

    from srmir_lib.data.margins import REFUSALS
    from srmir_lib.statistics import correlation

    reader = MarginModel(model, device, -1 if layer is None else layer, pooling or "last")
    if direction and fitted_on != reader.fingerprint():
        raise InputError(f"{direction}: a direction of another model than {model} (hash mismatch); estimate it again")
    for split in pairs.splits:
        for numbers, rows in jsonl.chunked(pairs.rows(split), chunk):
            with jsonl.rows_of(source, numbers):
                reader.check_lengths(rows)
    if vector is None:
        vector = reader.direction(asked, list(refusals) or REFUSALS, harmful or source)
    margins, words = {}, []
    with jsonl.progress(sum(counts.values()), "annotated") as bar:
        for split in pairs.splits:
            margins[split], longer = reader.margins(pairs, split, vector, chunk, bar)
            words += longer
    if negative == "drop" and any((values < 0).all() for values in margins.values()):
        raise InputError(f"{source}: every margin (of a split) is below zero, so that drop leaves none; keep them")
    pairs.write(target, margins, scale, negative)
    if save_direction:
        write_direction(save_direction, vector, reader)
    everything = np.concatenate([values.numpy() for values in margins.values()])
    return (
        f"{target}: margins of {len(everything)} pairs, {(everything < 0).mean():.1%} below zero ({negative}), "
        f"correlation with the difference in words {correlation(everything, words):.2f}, "
        f"{time.monotonic() - started:.0f} s"
    )


class Pairs:
    """The pairs of a file of rows (one split, without a name) or of a `datasets` folder, read anew by each pass."""

    def __init__(self, source: str):
        self.source, self.dataset = source, load_dataset(source, PAIR) if Path(source).is_dir() else None
        self.splits = list(self.dataset) if isinstance(self.dataset, dict) else [""]

    def rows(self, split: str) -> Iterator[tuple[int, dict]]:
        """Yield (row number from 1, row), checked; of a folder, only what is read."""
        if self.dataset is None:
            yield from jsonl.read_rows(self.source, _pair_problem)
            return
        for number, row in enumerate(self.part(split).select_columns(list(PAIR)), start=1):
            if wrong := _pair_problem(row):
                raise InputError(f"{self.source}: {f'split {split}, ' if split else ''}row {number}: {wrong}")
            yield number, row

    def part(self, split: str):
        """A split of the folder."""
        return self.dataset[split] if split else self.dataset

    def write(self, target: str, margins: dict, scale: str, negative: str) -> None:
        """Write all columns and `margin`, as JSON lines or, of a folder, as one; raw `margins` (N,) by split."""
        from srmir_lib.data.margins import with_margins
        from srmir_lib.papers.legend import scale_margins

        if self.dataset is not None:
            new = {split: with_margins(self.part(split), margins[split], scale, negative) for split in self.splits}
            save_dataset(new[""] if "" in new else type(self.dataset)(new), Path(target).resolve())
            return
        raw, scaled = margins[""].tolist(), scale_margins(margins[""], scale, negative).tolist()
        with atomic_path(Path(target).resolve()) as fresh, fresh.open("wb") as file:
            for (_, row), below, margin in zip(self.rows(""), raw, scaled, strict=True):
                if negative == "drop" and below < 0:
                    continue
                if negative == "flip" and below < 0:
                    row |= {"chosen": row["rejected"], "rejected": row["chosen"]}
                file.write(jsonl.json_line(row | {"margin": jsonl.seven_digits(margin)}))


class MarginModel:
    """The frozen model, and how an answer is read off it."""

    def __init__(self, model: str, device: str, layer: int, pooling: str):
        from srmir_lib.models.loading import config_of, is_causal, load_trunk, precision, resolve_encoder

        self.model, self.options = resolve_encoder(model), {"layer": layer, "pooling": pooling}
        dtype = precision(device) if is_causal(config_of(self.model)) else "float32"  # as 03 holds them
        self.trunk, self.tokenizer = load_trunk(self.model, device, dtype)

    def fingerprint(self) -> str:
        from srmir_lib.models.loading import fingerprint

        return fingerprint(self.model)

    def check_lengths(self, rows: Sequence[dict]) -> None:
        """Refuse a pair that is longer than the model reads; an encoder cuts what is too long."""
        from srmir_lib.models.loading import is_causal

        limit = getattr(self.trunk.config.get_text_config(), "max_position_embeddings", None)
        for side in PAIR[1:] if is_causal(self.trunk) else ():
            prompts, answers = [row["prompt"] for row in rows], [row[side] for row in rows]
            check_lengths(conversation_ids(self.tokenizer, prompts, answers), limit)

    def direction(self, asked: Sequence[tuple], refusals: Sequence[str], source: str) -> np.ndarray:
        """The safety direction (H,) from (row number, prompt, an unaligned model's answer)."""
        from srmir_lib.data.margins import estimate_direction

        numbers, prompts, answers = zip(*asked, strict=True)
        with jsonl.rows_of(source, numbers, aligned=False):
            return estimate_direction(self.trunk, self.tokenizer, prompts, answers, refusals, **self.options).numpy()

    def margins(self, pairs: Pairs, split: str, direction: np.ndarray, chunk: int, bar) -> tuple:
        """Raw margins (N,) of a split, and how many words longer each chosen answer is; `bar` is told of each chunk."""
        import torch

        from srmir_lib.data.margins import annotate, length_differences

        vector, parts, words = torch.from_numpy(direction), [], []
        for numbers, rows in jsonl.chunked(pairs.rows(split), chunk):
            columns = {name: [row[name] for row in rows] for name in PAIR}
            with jsonl.rows_of(pairs.source, numbers, aligned=False):
                parts.append(annotate(self.trunk, self.tokenizer, columns, vector, **self.options))
            words += length_differences(*(list(map(text_of, columns[side])) for side in PAIR[1:]))
            bar.update(len(rows))
        return torch.cat(parts), words


def _examples(harmful: str, pairs: Pairs, counts: dict[str, int], wanted: int) -> list[tuple]:
    """(row number, prompt, harmful answer) of at most `wanted` rows, evenly spread."""
    split = "train" if "train" in pairs.splits else pairs.splits[0]

    def example_problem(row: dict) -> str:
        return _pair_problem(row, ["response"])

    def rows() -> Iterator[tuple[int, dict]]:
        return jsonl.read_rows(harmful, example_problem) if harmful else pairs.rows(split)

    total, answer = (jsonl.count_rows(rows(), harmful), "response") if harmful else (counts[split], "rejected")
    if wanted < 1:
        raise InputError(f"direction pairs: {wanted}; at least 1 is needed, hundreds are better")
    places = {at * total // min(wanted, total) for at in range(min(wanted, total))}
    return [(n, row["prompt"], row[answer]) for at, (n, row) in enumerate(rows()) if at in places]


def read_direction(path: str, layer: int | None, pooling: str | None) -> tuple[np.ndarray, int, str, str]:
    """A direction that `write_direction` wrote: (H,), its layer, its pooling, its model's fingerprint.

    Another `layer` or `pooling` asked for is an `InputError`, and so is a damaged file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; write one with --save-direction")
    try:
        with safe_open(path, framework="numpy") as file:
            vector, notes = file.get_tensor("direction"), file.metadata()
        own = int(notes["layer"]), notes["pooling"]
        fitted_on = notes["model"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a safety direction ({error}); write one with --save-direction") from error
    if vector.ndim != 1 or not abs(np.linalg.norm(vector) - 1) < 1e-3:
        raise InputError(f"{path}: the direction must be a vector of length 1; write it again with --save-direction")
    for name, asked, made in (("layer", layer, own[0]), ("pooling", pooling, own[1])):
        if asked is not None and asked != made:
            raise InputError(f"{path}: was made with {name} {made}, not {asked}; leave --{name} out, or estimate anew")
    return vector.astype(np.float32), *own, fitted_on


def write_direction(path: str, direction: np.ndarray, reader: MarginModel) -> None:
    """Safetensors with the tensor `direction` (H,), and in its notes which model's states it lives in, and where."""
    notes = {name: str(value) for name, value in reader.options.items()} | {"model": reader.fingerprint()}
    with atomic_path(Path(path).resolve()) as fresh:
        save_file({"direction": direction}, fresh, notes)


def _pair_problem(row: dict, answers: Sequence[str] = PAIR[1:]) -> str:
    """What is wrong with a prompt and its `answers`, or ""."""
    if missing := [name for name in ("prompt", *answers) if name not in row]:
        return f"lacks {', '.join(missing)}"
    wrong = jsonl.messages_problem(row["prompt"], "prompt")
    for name in answers:
        wrong = wrong or _answer_problem(row, name)
    return wrong


def _answer_problem(row: dict, name: str) -> str:
    """An answer is a text that is not empty, an `[assistant]` message, or the prompt's messages and that message."""
    answer, prompt = row[name], row["prompt"]
    if wrong := jsonl.messages_problem(answer, name, "assistant"):
        return wrong
    before = [] if isinstance(answer, str) else [(turn["role"], turn["content"]) for turn in answer[:-1]]
    asked = user_message(prompt) if isinstance(prompt, str) else prompt
    if before and before != [(turn["role"], turn["content"]) for turn in asked]:
        return f"{name} holds other messages than the prompt and its answer; put earlier turns into the prompt"
    return "" if text_of(answer).strip() else f"{name} is empty; an answer needs a word"
