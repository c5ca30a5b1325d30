"""Real public data from local files: prompts by category, labelled responses, preference pairs.

The files are read in place from `data_dir` (default: the environment variable `SRMIR_DATA`), laid out as
`<data_dir>/<folder>/<file>` with the names that each loader states. Every loader checks its columns and fails with the
file and the row (counted from 1, headers included) when one is wrong: a damaged file never becomes a smaller data set.
"""

import csv
import io
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from srmir_lib.conversations import text_of
from srmir_lib.data.preferences import from_hh
from srmir_lib.errors import InputError
from srmir_lib.rows import rows_in
from srmir_lib.settings.data import data_folder

XSAFETY_CATEGORIES: dict[str, str] = {
    "Insult_n.csv": "insult",
    "Unfairness_And_Discrimination_n.csv": "unfairness",
    "Crimes_And_Illegal_Activities_en.csv": "crimes",
    "Physical_Harm_n.csv": "physical_harm",
    "Mental_Health_n.csv": "mental_health",
    "Privacy_And_Property_n.csv": "privacy",
    "Ethics_And_Morality_n.csv": "ethics",
}
"""Which XSafety file holds the prompts of which category: its seven typical scenarios are SRMIR's seven categories."""


OVERREFUSAL_MODELS = ("gemma-2b-it", "meta-llama-3-8b-instruct", "qwen-1_8b-chat")


DIASAFETY_LABELS = {"Safe": 0, "Unsafe": 1}

ALIKE = 0.5
"""Share of the words of two texts that both have (Jaccard), from which on they belong together."""


def load_xsafety(data_dir: str | Path = "") -> list[dict]:
    """Prompts of the seven categories: rows of `prompt` (text), `category` (key), from `xsafety_en/*.csv`.

    One prompt a row, no header. Some files start with a byte-order mark, prompts may start with spaces, and one file
    has an empty second column. A prompt that a file repeats is kept once. Source: Wang et al. 2023 (XSafety), English.
    """
    rows = []
    for name, category in XSAFETY_CATEGORIES.items():
        path = data_folder(data_dir) / "xsafety_en" / name
        seen = set()
        for where, cells in _csv_rows(path):
            if not cells or not cells[0].strip():
                raise InputError(f"{where} has no prompt in its first column")
            if any(cell.strip() for cell in cells[1:]):
                raise InputError(f"{where} has text after its first column; is a quotation mark missing?")
            prompt = " ".join(cells[0].split())
            if prompt not in seen:
                rows.append({"prompt": prompt, "category": category})
            seen.add(prompt)
    return rows


def load_gptfuzz(data_dir: str | Path = "") -> list[dict]:
    """Labelled responses: rows of `question` (0-79), `prompt`, `response`, `unsafe` (1 = jailbroken).

    Files `gptfuzz/responses_labeled_train.csv` and `gptfuzz/question_list_0-79.csv`. The prompt is the bare question:
    the jailbreak template around it is not in the file. Source: Yu et al. 2023 (GPTFuzzer), human labels, some wrong.
    """
    folder = data_folder(data_dir) / "gptfuzz"
    questions = {}
    for where, row in csv_dicts(folder / "question_list_0-79.csv", ("index", "text")):
        questions[_integer(row, "index", where)] = row["text"].strip()
    rows = []
    for where, row in csv_dicts(folder / "responses_labeled_train.csv", ("question", "Response", "label")):
        question = _integer(row, "question", where)
        if question not in questions:
            raise InputError(f"{where} names question {question}, which question_list_0-79.csv lacks")
        if row["label"] not in ("0", "1"):
            raise InputError(f"{where} has label {row['label']!r}; it must be 0 or 1 (1 = jailbroken)")
        text = {"prompt": questions[question], "response": row["Response"].strip()}
        rows.append({"question": question, **text, "unsafe": int(row["label"])})
    return rows


HARMLESS, HELPFUL = "hh-rlhf/harmless-base_test.jsonl.gz", "hh-helpful/pairs.jsonl"
"""Files of dialogues that people compared, for their harmlessness and for their help."""


def load_hh_pairs(data_dir: str | Path = "", file: str = HARMLESS) -> tuple[list[dict], dict[str, int]]:
    """Human preferences: rows of `prompt` (conversation), `chosen`, `rejected` (texts); what was left out.

    The `file`, `HARMLESS` or `HELPFUL`, has two whole dialogues a row. The last assistant turn is the answer; what
    precedes it must be the same in both. The second value counts the pairs left out, by reason: `prompts differ`,
    `same answer`, `empty answer`. Source: Bai et al. 2022 (hh-rlhf).
    """
    path = data_folder(data_dir) / file
    pairs, rows = list(rows_in(path)), []
    left_out = Counter({"prompts differ": 0, "same answer": 0, "empty answer": 0})
    for number, pair in pairs:
        try:
            chosen, rejected = from_hh(pair["chosen"]), from_hh(pair["rejected"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: row {number} is not a pair of dialogues ({error})") from error
        answers = chosen[-1]["content"], rejected[-1]["content"]
        if chosen[:-1] != rejected[:-1]:
            left_out["prompts differ"] += 1
        elif not all(answers):
            left_out["empty answer"] += 1
        elif answers[0] == answers[1]:
            left_out["same answer"] += 1
        else:
            rows.append({"prompt": chosen[:-1], "chosen": answers[0], "rejected": answers[1]})
    if not rows:
        raise InputError(f"{path}: no usable pairs among {len(pairs)} rows")
    return rows, dict(left_out)


def load_diasafety(data_dir: str | Path = "", split: str = "test") -> list[dict]:
    """Replies in context: rows of `prompt`, `response`, `unsafe` (0/1), `kind` (its own five kinds of unsafety).

    File `diasafety/<split>.json`, split train, val or test. Source: Sun et al. 2022 (DiaSafety).
    """
    if split not in ("train", "val", "test"):
        raise InputError(f"diasafety: split {split!r}; use train, val or test")
    path, rows = data_folder(data_dir) / "diasafety" / f"{split}.json", []
    for where, row in _json_rows(path, None, ("context", "response", "category", "label")):
        if row["label"] not in DIASAFETY_LABELS:
            raise InputError(f"{where} has label {row['label']!r}; it must be Safe or Unsafe")
        text = {"prompt": row["context"].strip(), "response": row["response"].strip()}
        rows.append({**text, "unsafe": DIASAFETY_LABELS[row["label"]], "kind": row["category"]})
    return rows


def load_overrefusal(data_dir: str | Path = "") -> list[dict]:
    """Benign prompts, each answered and refused: rows of `prompt`, `response`, `answered`.

    Files `overrefusal-completions/<model>_harmless_{baseline,actadd}_evaluations.json`; `actadd` is the model steered
    to refuse. `answered` (bool) is the source's automatic label. Source: Arditi et al. 2024.
    """
    rows = []
    for model in OVERREFUSAL_MODELS:
        for steering in ("baseline", "actadd"):
            path = data_folder(data_dir) / "overrefusal-completions" / f"{model}_harmless_{steering}_evaluations.json"
            for _, row in _json_rows(path, "completions", ("prompt", "response", "is_jailbreak_substring_matching")):
                text = {"prompt": row["prompt"].strip(), "response": row["response"].strip()}
                rows.append(text | {"answered": bool(row["is_jailbreak_substring_matching"])})
    return rows


def split_by_group(rows: Sequence[dict], group: str, fractions: Sequence[float], seed: int) -> dict[str, list[dict]]:
    """Split into train, validation and test so that no value of column `group` is in two of them (order kept).

    `fractions` are the shares of *groups* for train and validation; the test split has the rest. Seeded.
    """
    groups = sorted({row[group] for row in rows})
    random.Random(seed).shuffle(groups)
    ends = [round(len(groups) * sum(fractions[: n + 1])) for n in range(2)]
    names = ["train"] * ends[0] + ["validation"] * (ends[1] - ends[0]) + ["test"] * (len(groups) - ends[1])
    if len(set(names)) < 3:
        raise InputError(f"{len(groups)} values of {group} with fractions {tuple(fractions)} leave a split empty")
    home = dict(zip(groups, names, strict=True))
    return {name: [row for row in rows if home[row[group]] == name] for name in ("train", "validation", "test")}


def families(texts: Iterable[str]) -> dict[str, str]:
    """Of each text the first of its family, by the alphabet: texts that are `alike`, also by way of others."""
    words = {text: frozenset(all_words(text).split()) for text in sorted(texts)}
    found: list[list[str]] = []
    for text, own in words.items():
        like, rest = [], []
        for family in found:
            (like if any(alike(own, words[other]) for other in family) else rest).append(family)
        found = [*rest, [*(other for family in like for other in family), text]]
    return {text: min(family) for family in found for text in family}


def alike(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two texts, each as its words, belong together: both have `ALIKE` of the words that either has."""
    return len(one & other) >= ALIKE * len(one | other)


def without_repeats(parts: Mapping[str, Sequence[dict]], columns: Sequence[str]) -> dict[str, list[dict]]:
    """The same splits without rows of which a text of `columns` stands in an earlier split, as of `all_words`."""
    seen, kept = set(), {}
    for name, rows in parts.items():
        texts = [answer_words([row], columns) for row in rows]
        kept[name] = [row for row, own in zip(rows, texts, strict=True) if not own & seen]
        seen.update(*texts)
    return kept


def answer_words(rows: Iterable[Mapping], columns: Sequence[str]) -> set[str]:
    """The texts in `columns` of `rows` (texts or messages), as of `all_words`; one without a word does not count."""
    return {all_words(text_of(row[column])) for row in rows for column in columns} - {""}


def all_words(text: str) -> str:
    """The words of a text in small letters: equal for texts that differ in case and punctuation only."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _csv_rows(path: Path) -> list[tuple[str, list[str]]]:
    """Each row of a UTF-8 file, with or without a byte-order mark, as (where it stands, for an error; its cells)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        found = [(f"{path}: row {number}", cells) for number, cells in enumerate(rows, start=1)]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); is the download complete?") from error
    except csv.Error as error:
        raise InputError(f"{path}: not valid CSV ({error}); is the file truncated?") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return found


def csv_dicts(path: Path, columns: Iterable[str]) -> Iterable[tuple[str, dict]]:
    """Rows as (where, column -> text); the header must hold `columns`, every row as many cells as the header."""
    (first, header), *rows = _csv_rows(path)
    if missing := [name for name in columns if name not in header]:
        raise InputError(f"{first} (the header) lacks the columns {', '.join(missing)}")
    if not rows:
        raise InputError(f"{path}: no rows after the header")
    for where, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{where} has {len(cells)} cells, the header {len(header)}; is it truncated?")
        yield where, dict(zip(header, cells, strict=True))


def _json_rows(path: Path, key: str | None, columns: Sequence[str]) -> Iterable[tuple[str, dict]]:
    """Rows of a file (under `key`, of the one object in it) as (where, row); every row must hold `columns`."""
    rows = list(rows_in(path))
    if key:
        found = rows[0][1].get(key) if len(rows) == 1 else None
        rows = list(enumerate(found, start=1)) if isinstance(found, list) else []
    if not rows:
        raise InputError(f"{path}: no list of rows{f' under {key!r}' if key else ''}")
    for number, row in rows:
        where = f"{path}: row {number}"
        if missing := [name for name in columns if not isinstance(row, dict) or name not in row]:
            raise InputError(f"{where} lacks {', '.join(missing)}")
        yield where, row


def _integer(row: Mapping[str, str], column: str, where: str) -> int:
    if not row[column].strip().isdigit():
        raise InputError(f"{where} has {column} {row[column]!r}; it must be a whole number")
    return int(row[column])
