"""`srmir annotate`: a Legend margin on every pair of a file (JSON lines, a JSON list, parquet) or a `datasets` folder.

All rows are checked before anything slow is imported, and those that are too long for the model are found before the
first is read by it. The margins are N numbers in memory; the rows of a file are not.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from srmir_lib.artifacts import atomic_path, load_dataset, save_dataset
from srmir_lib.conversations import (
    as_answer,
    as_chat,
    conversation_ids,
    shortened,
    text_of,
    too_long,
)
from srmir_lib.data import jsonl
from srmir_lib.data.preferences import PAIR, as_pair, one_sided, two_sided
from srmir_lib.data.safety_direction import read_direction, write_direction
from srmir_lib.errors import InputError


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
    too_long: str = "refuse",
    prefix: str = "",
    chunk: int = 256,
) -> str:
    """Write the pairs of `source`, of any form that `preferences.as_pair` reads, to `target` with one more column:
    `margin`, behind `prefix`; returns a line on what was done.

    The safety direction is read from the file `direction`, or estimated from up to `direction_pairs` rows, evenly
    spread over the file `harmful` (prompt, response) or over `source` itself (its rejected answers; of a folder, its
    split train), against `refusals` (none: `margins.REFUSALS`). `layer` and `pooling` (default -1 and last, or those of
    `direction`) as in `embeddings.embed`, `scale` and `negative` as in `margins.scale_margins`; each split of a folder
    is scaled on its own. `too_long`: a pair that is longer than the model reads is an `InputError` (refuse), is read
    without the middle of its longest messages (cut), or is left out (skip). `chunk`: pairs in memory at a time.
    """
    started, vector, fitted_on = time.monotonic(), None, ""
    if direction:
        vector, layer, pooling, fitted_on = read_direction(direction, layer, pooling)
    if not Path(model).is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise InputError(f"{model}: no such model folder; name one, or the id of a model on the hub")
    if not all(text.strip() for text in refusals):
        raise InputError("refusal: an empty text; give the words of a safe answer")
    pairs = Pairs(source, prefix + "margin")
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
        chunks = jsonl.chunked(pairs.rows(split), chunk)
        found = jsonl.long_rows(source, chunks, reader.problems, too_long, "pair (of a split)")
        pairs.long[split], pairs.skipped[split] = found, found if too_long == "skip" else set()
    long, skipped = (sum(map(len, found.values())) for found in (pairs.long, pairs.skipped))
    if vector is None:
        asked = reader.fitting(asked, list(refusals) or REFUSALS, harmful or source, too_long)
        vector = reader.direction(asked, list(refusals) or REFUSALS, harmful or source)
    margins, words = {}, []
    with jsonl.progress(sum(counts.values()) - skipped, "annotated") as bar:
        for split in pairs.splits:
            margins[split], longer = reader.margins(pairs, split, vector, chunk, bar)
            words += longer
    if negative == "drop" and any((values < 0).all() for values in margins.values()):
        raise InputError(f"{source}: every margin (of a split) is below zero, so that drop leaves none; keep them")
    left = pairs.write(target, margins, scale, negative)
    if save_direction:
        write_direction(save_direction, vector, reader.options, reader.fingerprint())
    everything = np.concatenate([values.numpy() for values in margins.values()])
    warning = f"; {', '.join(left)} did not change sides: no column says the same of the other answer" if left else ""
    return (
        f"{target}: margins of {len(everything)} pairs{jsonl.counted(long, too_long)}, "
        f"{(everything < 0).mean():.1%} below zero ({negative}), "
        f"correlation with the difference in words {correlation(everything, words):.2f}, "
        f"{time.monotonic() - started:.0f} s{warning}"
    )


class Pairs:
    """The pairs of a file of rows (one split, without a name) or of a `datasets` folder, read anew by each pass."""

    def __init__(self, source: str, column: str = "margin"):
        self.source, self.dataset = source, load_dataset(source, PAIR[1:]) if Path(source).is_dir() else None
        self.column = column  # what is added
        self.splits = list(self.dataset) if isinstance(self.dataset, dict) else [""]
        self.long: dict[str, set[int]] = {}  # by split, the rows that are too long, and those of them left out
        self.skipped: dict[str, set[int]] = {}

    def rows(self, split: str) -> Iterator[tuple[int, dict]]:
        """Yield (row number from 1, row), checked; of a folder, only what is read."""

        def problem(row: dict) -> str:
            return jsonl.taken([self.column], row) or jsonl.problem_of(row, as_pair)

        if self.dataset is None:
            rows = jsonl.read_rows(self.source, problem)
        else:
            rows = enumerate(self.part(split).select_columns(self._read(split)), start=1)
        for number, row in rows:
            if self.dataset is not None and (wrong := problem(row)):
                raise InputError(f"{self.source}: {f'split {split}, ' if split else ''}row {number}: {wrong}")
            if number not in self.skipped.get(split, ()):
                yield number, row

    def _read(self, split: str) -> list[str]:
        """The columns of a folder that are read, and ours if it is there."""
        return [name for name in (*PAIR, self.column) if name in self.part(split).column_names]

    def part(self, split: str):
        """A split of the folder."""
        return self.dataset[split] if split else self.dataset

    def write(self, target: str, margins: dict, scale: str, negative: str) -> list[str]:
        """Write all columns and the new one, as JSON lines or, of a folder, as one; raw `margins` (N,) by split.

        What says something of an answer changes sides with it; returns the columns that could not."""
        from srmir_lib.data.margins import with_margins
        from srmir_lib.papers.legend import scale_margins

        left, flips = set(), negative == "flip"
        if self.dataset is not None:
            new = {}
            for split in self.splits:
                part, own = self.part(split), margins[split]
                left.update(one_sided(part.column_names) if flips and (own < 0).any() else [])
                if self.skipped[split]:
                    part = part.select([row for row in range(len(part)) if row + 1 not in self.skipped[split]])
                new[split] = with_margins(part, own, scale, negative, column=self.column)
            save_dataset(new[""] if "" in new else type(self.dataset)(new), Path(target).resolve())
            return sorted(left)
        raw, scaled = margins[""].tolist(), scale_margins(margins[""], scale, negative).tolist()
        with atomic_path(Path(target).resolve()) as fresh, fresh.open("wb") as file:
            for (_, row), below, margin in zip(self.rows(""), raw, scaled, strict=True):
                if negative == "drop" and below < 0:
                    continue
                if flips and below < 0:
                    left.update(one_sided(row))
                    for one, other in two_sided(row):
                        row |= {one: row[other], other: row[one]}
                file.write(jsonl.json_line(row | {self.column: jsonl.seven_digits(margin)}))
        return sorted(left)


class MarginModel:
    """The frozen model, and how an answer is read off it."""

    def __init__(self, model: str, device: str, layer: int, pooling: str):
        from srmir_lib.models.loading import config_of, is_causal, load_trunk, precision, resolve_encoder

        self.model, self.options = resolve_encoder(model), {"layer": layer, "pooling": pooling}
        dtype = precision(self.model, device) if is_causal(config_of(self.model)) else "float32"  # as 03 holds them
        self.trunk, self.tokenizer = load_trunk(self.model, device, dtype)

    def fingerprint(self) -> str:
        from srmir_lib.models.loading import fingerprint

        return fingerprint(self.model)

    def problems(self, rows: Sequence[dict]) -> list[str]:
        """Of each row what makes it longer than the model reads, or ""."""
        return self._both([as_pair(row) for row in rows])

    def _both(self, pairs: Sequence[dict]) -> list[str]:
        chosen, rejected = (self._problems([(pair["prompt"], pair[side]) for pair in pairs]) for side in PAIR[1:])
        return [one or other for one, other in zip(chosen, rejected, strict=True)]

    def _problems(self, texts: Sequence[tuple]) -> list[str]:
        """The same of prompts with an answer each."""
        from srmir_lib.models.embeddings import encoder_ids, longest_text
        from srmir_lib.models.loading import is_causal

        prompts, answers = zip(*texts, strict=True)
        if is_causal(self.trunk):
            ids, limit = conversation_ids(self.tokenizer, prompts, answers), longest_text(self.trunk)
        else:
            ids, limit = encoder_ids(self.tokenizer, prompts, answers)[0], longest_text(self.trunk, self.tokenizer)
        return [too_long(len(tokens), limit) for tokens in ids]

    def cut(self, row: dict) -> dict:
        """A prompt and its answers, of which one is too long behind it, so short that the model reads them."""

        def fits(parts: Sequence) -> bool:
            return not any(self._problems([(parts[0], answer) for answer in parts[1:]]))

        return dict(zip(row, shortened(list(row.values()), fits), strict=True))

    def fitting(self, asked: Sequence[tuple], refusals: Sequence[str], source: str, policy: str) -> list[tuple]:
        """Examples of a direction, (row number, prompt, answer), of which the model reads the answer and the longest
        refusal: by the `policy` for long rows."""
        refusal = as_answer(max(refusals, key=len))
        rows = [(n, {"prompt": as_chat(p), "chosen": refusal, "rejected": as_answer(a)}) for n, p, a in asked]
        chunk = tuple(zip(*rows, strict=True))
        long = jsonl.long_rows(source, [chunk], self._both, policy, "example of the direction")
        rows = [(n, self.cut(row) if n in long else row) for n, row in rows if policy == "cut" or n not in long]
        return [(n, row["prompt"], row["rejected"]) for n, row in rows]

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
            read = [as_pair(row) for row in rows]
            read = [self.cut(row) if n in pairs.long[split] else row for n, row in zip(numbers, read, strict=True)]
            columns = {name: [row[name] for row in read] for name in PAIR}
            with jsonl.rows_of(pairs.source, numbers, aligned=False):
                parts.append(annotate(self.trunk, self.tokenizer, columns, vector, **self.options))
            words += length_differences(*(list(map(text_of, columns[side])) for side in PAIR[1:]))
            bar.update(len(rows))
        return torch.cat(parts), words


def _examples(harmful: str, pairs: Pairs, counts: dict[str, int], wanted: int) -> list[tuple]:
    """(row number, prompt, harmful answer) of at most `wanted` rows, evenly spread."""
    split = "train" if "train" in pairs.splits else pairs.splits[0]

    def example_problem(row: dict) -> str:
        if missing := [name for name in ("prompt", "response") if name not in row]:
            return f"lacks {', '.join(missing)}"
        if wrong := jsonl.problem_of(row, lambda row: (as_chat(row["prompt"]), as_answer(row["response"]))):
            return wrong
        return "" if text_of(as_answer(row["response"])).strip() else "response is empty; an answer needs a word"

    def rows() -> Iterator[tuple[int, dict]]:
        return jsonl.read_rows(harmful, example_problem) if harmful else pairs.rows(split)

    total, answer = (jsonl.count_rows(rows(), harmful), "response") if harmful else (counts[split], "rejected")
    if wanted < 1:
        raise InputError(f"direction pairs: {wanted}; at least 1 is needed, hundreds are better")
    chosen = [(n, row if harmful else as_pair(row)) for n, row in jsonl.spread(rows(), total, wanted)]
    return [(n, row["prompt"], row[answer]) for n, row in chosen]
