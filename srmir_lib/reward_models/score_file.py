"""`srmir score`: a set of reward models on any file of prompts and responses (JSON lines, a JSON list, parquet) or
`datasets` folder.

The file is read to check every row, before anything slow is imported; to find those that are too long, before the
first is scored; and to score it, in chunks, so that memory does not grow with it. The output takes its place when it is
finished, and not before.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from srmir_lib.artifacts import read_json
from srmir_lib.conversations import as_answer, as_chat, conversation_ids, shortened
from srmir_lib.data.jsonl import (
    check_output,
    chunked,
    count_rows,
    counted,
    long_rows,
    problem_of,
    read_rows,
    seven_digits,
    taken,
    write_rows,
)
from srmir_lib.data.own_files import spelled_as_key
from srmir_lib.errors import InputError, numbered
from srmir_lib.taxonomy import ALL, UNKNOWN

COLUMNS = ("scores", "routed", "mean")


def score_file(
    models: str,
    source: str,
    target: str,
    router: str = "",
    device: str = "auto",
    raw: bool = False,
    calibration: str = "",
    base_model: str = "",
    too_long: str = "refuse",
    prefix: str = "",
    chunk: int = 512,
) -> str:
    """Write the rows of `source` to `target`, in their order, with three more columns, whose names begin with `prefix`;
    returns a line on what was done.

    `source`: as `rows.rows_in` reads it; `target`: JSON lines.
    `scores`: category -> number, higher is better, calibrated unless `raw`; `mean`: their mean; `routed`: the score
    of the row's own category, which is its column `category` (a key, however its blanks and signs are written),
    else what the folder `router` says, else null (the mean if that is "unknown"). `calibration`: another file than
    the set's own; `base_model`: where the base model lies now; `too_long`: a row that is longer than the model
    reads is an `InputError` (refuse), is scored without the middle of its longest messages (cut), or is left out
    (skip); `chunk`: rows in memory at a time.
    """
    started, categories, names = time.monotonic(), _categories(models), [prefix + name for name in COLUMNS]
    scale = Path(calibration or Path(models) / "calibration.json")
    if not raw and not scale.is_file():
        raise InputError(
            f"{scale}: no such file, so the scores have no common scale; score a set that 02 or 03 trained, "
            "name its calibration.json with --calibration, or take raw scores with --raw"
        )
    if router and not Path(router, "router.json").is_file():
        raise InputError(f"{router}: no router.json there; name the folder router that 01_data wrote")

    def rows() -> Iterator[tuple[int, dict]]:
        return read_rows(source, lambda row: taken(names, row) or _problem(row, categories))

    total = count_rows(rows(), source)
    check_output(target, [source, models, *filter(None, [router, calibration])])
    scorer = _Scorer(models, router, device, raw, calibration, base_model)
    long = long_rows(source, chunked(rows(), chunk), scorer.problems, too_long)

    def columns(found: Sequence[dict], cut: Sequence[bool]) -> list[dict]:
        new = scorer([scorer.cut(row) if longer else row for row, longer in zip(found, cut, strict=True)])
        return [dict(zip(names, own, strict=True)) for own in new]

    done = write_rows(source, target, rows(), columns, long, too_long, total, "scored", chunk)
    kind, so_many = "raw" if raw else "calibrated", f"{done} rows{counted(len(long), too_long)}"
    return f"{target}: {so_many}, {kind} scores for {', '.join(categories)}, {time.monotonic() - started:.0f} s"


class _Scorer:
    """The loaded models, their scale, and what routes the rows without a category."""

    def __init__(self, models: str, router: str, device: str, raw: bool, calibration: str, base_model: str):
        from srmir_lib.data.router import Router
        from srmir_lib.reward_models.calibration import Calibration
        from srmir_lib.reward_models.shadow import ShadowRewardModels

        self.models = ShadowRewardModels.load(models, device, base_model or None)
        self.calibration = None if raw else Calibration.load(calibration) if calibration else self.models.calibration
        if self.calibration is not None and list(self.calibration.categories) != self.models.categories:
            found = ", ".join(self.calibration.categories)
            raise InputError(f"{calibration or models}: calibration of {found}, which are other models; name theirs")
        self.router = Router.load(router, device) if router else None
        self.single = self.models.categories == [ALL]  # one model for everything answers for any category
        strange = set(self.router.classes) - {UNKNOWN, *self.models.categories} if router else set()
        if strange and not self.single:
            raise InputError(f"{router}: routes to {', '.join(sorted(strange))}, for which {models} has no model")

    def problems(self, rows: Sequence[dict]) -> list[str]:
        """Of each row what makes it longer than the model reads, or ""."""
        scorer, chats, answers = self.models.scorer, *([row[key] for row in rows] for key in ("prompt", "response"))
        if self.models.design == "pooled":
            return scorer.pair_tokenizer.too_long(scorer.tokenizer, chats, answers)
        ids = conversation_ids(scorer.trunk.tokenizer, chats, answers)
        return [scorer.too_long(len(tokens)) for tokens in ids]

    def cut(self, row: dict) -> dict:
        """A row that is too long, as the models may read it; an encoder cuts by itself, as in its training."""
        if self.models.design == "pooled":
            return row

        def as_row(parts: Sequence) -> dict:
            return row | dict(zip(("prompt", "response"), parts, strict=True))

        parts = as_chat(row["prompt"]), as_answer(row["response"])
        return as_row(shortened(parts, lambda parts: not any(self.problems([as_row(parts)]))))

    def __call__(self, rows: Sequence[dict]) -> list[tuple]:
        """The new columns of each row, in the order of `COLUMNS`."""
        import torch

        from srmir_lib.papers.srmir import categorized_reward

        prompts, responses = ([row[key] for row in rows] for key in ("prompt", "response"))
        scores = self.models.score(prompts, responses)
        scores = scores if self.calibration is None else self.calibration.apply(scores)
        names = [_own(row, self.models.categories) for row in rows]
        homeless = [at for at, name in enumerate(names) if name is None]
        if self.router and homeless:
            with numbered(homeless):
                routes = self.router.route([prompts[at] for at in homeless])
            for at, name in zip(homeless, routes, strict=True):
                names[at] = name
        place = {name: at for at, name in enumerate(self.models.categories)}
        default = 0 if self.single else -1
        routed = categorized_reward(scores, torch.tensor([place.get(name, default) for name in names]))
        columns = zip(scores.tolist(), routed.tolist(), scores.mean(dim=1).tolist(), names, strict=True)
        return [
            (
                {name: seven_digits(score) for name, score in zip(place, own, strict=True)},
                seven_digits(one) if name is not None else None,
                seven_digits(mean),
            )
            for own, one, mean, name in columns
        ]


def _categories(models: str) -> list[str]:
    """The categories of a set, read without loading it; the set is checked when it is loaded."""
    if not Path(models).is_dir():
        raise InputError(
            f"{models}: no such folder of reward models; 02 and 03 write theirs to shadow_rms/ in outputs/"
        )
    config = read_json(Path(models) / "config.json")
    categories = config.get("categories") if isinstance(config, dict) else None
    if not isinstance(categories, list) or not categories or not all(isinstance(name, str) for name in categories):
        raise InputError(f"{models}/config.json: has no categories; it is not a set of reward models")
    return categories


def _own(row: dict, categories: Sequence[str]) -> object:
    """The category that a row names, as a model's key where its spelling is all that differs ("Other things")."""
    category = row.get("category")
    key = spelled_as_key(category) if isinstance(category, str) else category
    return key if key in categories else category


def _problem(row: dict, categories: Sequence[str]) -> str:
    """What is wrong with a row, or ""."""
    missing = [name for name in ("prompt", "response") if name not in row]
    if missing:
        return f"lacks {', '.join(missing)}"
    if wrong := problem_of(row, lambda row: (as_chat(row["prompt"]), as_answer(row["response"]))):
        return wrong
    category = _own(row, categories)
    if category is not None and category != UNKNOWN and category not in categories and categories != [ALL]:
        return f"category is {row['category']!r}; there are models for {', '.join(categories)}, and {UNKNOWN}"
    return ""
