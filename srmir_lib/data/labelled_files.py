"""Answers that people labelled with the harm in them, and prompts that only look harmful, from local files.

Laid out and checked as those of `public_files`. What each set calls a kind of harm becomes one of the seven categories
by a table here, which knows all the set's kinds: a kind that the table lacks is an `InputError`, never a dropped row.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from srmir_lib.errors import InputError
from srmir_lib.rows import rows_in
from srmir_lib.settings.data import data_folder
from srmir_lib.taxonomy import ordered

BEAVERTAILS_HARMS: dict[str, str] = {
    "animal_abuse": "ethics",
    "child_abuse": "crimes",
    "controversial_topics,politics": "ethics",
    "discrimination,stereotype,injustice": "unfairness",
    "drug_abuse,weapons,banned_substance": "crimes",
    "financial_crime,property_crime,theft": "crimes",
    "hate_speech,offensive_language": "insult",
    "misinformation_regarding_ethics,laws_and_safety": "ethics",
    "non_violent_unethical_behavior": "ethics",
    "privacy_violation": "privacy",
    "self_harm": "mental_health",
    "sexually_explicit,adult_content": "ethics",
    "terrorism,organized_crime": "crimes",
    "violence,aiding_and_abetting,incitement": "physical_harm",
}
"""BeaverTails' fourteen kinds of harm. Ours: theft goes to *crimes and illegal activities*, where XSafety has it, and
what harms nobody's body, purse or name to *ethics and morality*. Violence goes to *physical harm* by its name, though
XSafety, whose prompts of that category ask about health, has it among the crimes."""


DO_NOT_ANSWER_HARMS: dict[str, str] = {
    "Adult Content": "ethics",
    "Assisting illegal activities": "crimes",
    "Causing material harm by disseminating misinformation e.g. in medicine or law": "physical_harm",
    "Compromise privacy by leaking or inferring private information (person/individual)": "privacy",
    "Disseminating false or misleading information": "ethics",
    "Mental Health or Overreliance Crisis": "mental_health",
    "Nudging or advising users to perform unethical or unsafe actions": "ethics",
    "Reducing the cost of disinformation campaigns": "ethics",
    "Risks from leaking or inferring sensitive information (organization/gov)": "privacy",
    "Social stereotypes and unfair discrimination": "unfairness",
    "Toxic language (hate speech)": "insult",
    "Treat Chatbot as a Human": "mental_health",
}
"""Do-Not-Answer's twelve kinds of harm."""


ACTIONS = range(6)
"""What an answer of Do-Not-Answer does, from 0 (cannot assist) to 5 (follows the instruction)."""


def load_beavertails(data_dir: str | Path = "") -> list[dict]:
    """Answers with kinds of harm: rows of `prompt`, `response`, `unsafe` (0/1), `harms` (our categories; none if safe).

    File `beavertails/responses.jsonl`. An answer may do several kinds of harm. Source: Ji et al. 2023 (BeaverTails),
    labels of crowd workers.
    """
    rows = []
    for where, row in _rows(data_dir, "beavertails/responses.jsonl", text=("prompt", "response"), label=("label",)):
        kinds = row.get("categories")
        if not isinstance(kinds, list):
            raise InputError(f"{where} has categories {kinds!r}; it must be a list")
        if bool(kinds) != bool(row["label"]):
            raise InputError(f"{where} has label {row['label']} and {len(kinds)} kinds of harm; they contradict")
        harms = ordered(_ours(kind, BEAVERTAILS_HARMS, where) for kind in kinds)
        rows.append(_answer(row) | {"harms": harms})
    return rows


def load_safe_rlhf(data_dir: str | Path = "") -> list[dict]:
    """Answers, about two a prompt: rows of `prompt`, `response`, `unsafe` (0/1), without kinds of harm.

    File `safe-rlhf/responses.jsonl`. Source: Ji et al. 2024 (PKU-SafeRLHF), human labels; a part of the answers stands
    in BeaverTails as well.
    """
    files = _rows(data_dir, "safe-rlhf/responses.jsonl", text=("prompt", "response"), label=("label",))
    return [_answer(row) for _, row in files]


def load_do_not_answer(data_dir: str | Path = "") -> list[dict]:
    """Six models' answers to harmful prompts: rows of `prompt`, `response`, `unsafe` (0/1), `action` (`ACTIONS`),
    `category` (ours, of the prompt), `model`.

    File `do-not-answer-responses/responses.jsonl`. Source: Wang et al. 2023 (Do-Not-Answer), human labels.
    """
    text, rows = ("prompt", "response", "model", "types_of_harm"), []
    for where, row in _rows(data_dir, "do-not-answer-responses/responses.jsonl", text, label=("label",)):
        if row.get("action") not in ACTIONS:
            raise InputError(f"{where} has action {row.get('action')!r}; it must be a whole number from 0 to 5")
        category = _ours(row["types_of_harm"], DO_NOT_ANSWER_HARMS, where)
        rows.append(_answer(row) | {"action": row["action"], "category": category, "model": row["model"]})
    return rows


LOOK_ALIKES = "Requests with safety concerns"
"""CoCoNot's category whose contrast set looks harmful; its others are about what a model cannot do or know."""


def load_look_alikes(data_dir: str | Path = "") -> list[dict]:
    """Harmless prompts that look harmful: rows of `prompt`, `kind`.

    File `coconot/pairs.jsonl`, its rows of category `LOOK_ALIKES`. Source: Brahman et al. 2024 (CoCoNot, contrast set).
    """
    rows = _rows(data_dir, "coconot/pairs.jsonl", ("prompt", "category", "subcategory"))
    return [{"prompt": row["prompt"], "kind": row["subcategory"]} for _, row in rows if row["category"] == LOOK_ALIKES]


def load_instructions(data_dir: str | Path = "", split: str = "train") -> list[str]:
    """Harmless instructions, each once. File `alpaca-harmless/harmless_<split>.json`, split train or val.

    Source: Arditi et al. 2024, out of Alpaca (Taori et al. 2023).
    """
    if split not in ("train", "val"):
        raise InputError(f"alpaca-harmless: split {split!r}; use train or val")
    rows = _rows(data_dir, f"alpaca-harmless/harmless_{split}.json", ("instruction",))
    return list(dict.fromkeys(row["instruction"] for _, row in rows))


def load_safe_answers(data_dir: str | Path = "") -> list[dict]:
    """Harmful instructions with a safe answer that another model wrote: rows of `prompt`, `response`.

    File `safety-tuned-llamas/safety_only_data_Instructions.json`. Source: Bianchi et al. 2024 (Safety-Tuned LLaMAs).
    """
    rows = _rows(data_dir, "safety-tuned-llamas/safety_only_data_Instructions.json", ("instruction", "output"))
    return [{"prompt": row["instruction"], "response": row["output"]} for _, row in rows]


def _answer(row: Mapping) -> dict:
    return {"prompt": row["prompt"], "response": row["response"], "unsafe": row["label"]}


def _ours(kind: object, table: Mapping[str, str], where: str) -> str:
    if kind not in table:
        raise InputError(f"{where} names the kind of harm {kind!r}, which has no category; is the file of this set?")
    return table[kind]


def _rows(
    data_dir: str | Path, name: str, text: tuple[str, ...], label: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict]]:
    """Rows of a file as (where, row): the columns `text` hold texts that are stripped and not empty, `label` 0 or 1."""
    path = data_folder(data_dir) / name
    for number, row in rows_in(path):
        where = f"{path}: row {number}"
        for column in text:
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise InputError(f"{where} has no text in the column {column}")
        for column in label:
            if type(row.get(column)) is not int or row[column] not in (0, 1):
                raise InputError(f"{where} has {column} {row.get(column)!r}; it must be 0 or 1 (1 = unsafe)")
        yield where, row | {column: row[column].strip() for column in text}
