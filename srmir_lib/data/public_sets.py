"""Public data as the lab's data are: files of `public_files` and `labelled_files` as `datasets` folders that the
notebooks read.

Prompts of the seven categories train the router; the router says which category a labelled response or a human
preference belongs to, where people did not name its harm. Splits share no prompt (XSafety), no opening question
(hh-rlhf) and no answer.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import public_files as sources
from srmir_lib.data.labelled_sets import labelled_answers
from srmir_lib.data.router import Router, fit_real_router, router_accuracy


def public_data(
    data_dir: str | Path, encoder: str, seed: int, device: str
) -> tuple[dict[str, DatasetDict], Router, dict[str, dict[str, float]]]:
    """The folders `prompts`, `preferences` and `labelled`, the router that says what theirs is about, and numbers.

    The numbers: `router`, how often a held-out prompt reaches its category (`router_accuracy`); `left_out`, the pairs
    that were, by reason; `repeats`, the labelled responses left out because they stand in an earlier split, by split.
    """
    prompts = real_prompts(data_dir, seed)
    router = fit_real_router(prompts, encoder, device)
    preferences, left_out = human_preferences(router, data_dir, seed)
    labelled, repeats = labelled_answers(router, data_dir, seed, far=0, gptfuzz_taught=True)
    numbers = {"router": router_accuracy(router, prompts["test"]), "left_out": left_out, "repeats": repeats}
    return {"prompts": prompts, "preferences": preferences, "labelled": labelled}, router, numbers


def real_prompts(data_dir: str | Path = "", seed: int = 0) -> DatasetDict:
    """XSafety's prompts of the seven categories, with the columns of every `prompts/` folder; the file is the category.
    Nothing is known about families or held-out registers here."""
    parts = sources.split_by_group(sources.load_xsafety(data_dir), "prompt", (0.7, 0.15), seed)
    fixed = {"kind": "harmful", "subkind": "", "family": "none", "held_out": False, "reference": ""}

    def columns(row: Mapping) -> dict:
        known = {"prompt": user_message(row["prompt"]), "category": row["category"], "gold_category": row["category"]}
        return known | fixed

    return _dataset_dict(parts, columns)


def human_preferences(router: Router, data_dir: str | Path = "", seed: int = 0) -> tuple[DatasetDict, dict[str, int]]:
    """hh-rlhf's harmless pairs as a `preferences/` folder, and how many pairs were left out, by reason.

    Split by the dialogue's opening question, without pairs of which an answer stands in an earlier split word for word;
    the category is that of the last question. `origin` is "policy": both answers were sampled from a language model,
    and people chose. `difficulty` is "human": nobody knows how far apart the two are.
    """
    pairs, left_out = sources.load_hh_pairs(data_dir)
    rows = [pair | {"opening": pair["prompt"][0]["content"]} for pair in pairs]
    parts = sources.split_by_group(rows, "opening", (0.7, 0.1), seed)
    kept = sources.without_repeats(parts, ["chosen", "rejected"])
    left_out["answer in an earlier split"] = len(rows) - sum(map(len, kept.values()))
    category = _routed(router, [row["prompt"][-1]["content"] for row in rows])

    def columns(row: Mapping) -> dict:
        answers = {side: assistant_message(row[side]) for side in ("chosen", "rejected")}
        about = {"category": category[row["prompt"][-1]["content"]], "origin": "policy", "difficulty": "human"}
        return {"prompt": row["prompt"]} | answers | about

    return _dataset_dict(kept, columns), left_out


def training_conversations(preferences, labelled) -> Dataset:
    """Every conversation of the training splits once, better or worse, safe or not: rows of `messages`.

    What is trained on them has read these texts; `texts_in` says which, so that a test can leave them out.
    """
    talks = [row["prompt"] + row[side] for row in preferences for side in ("chosen", "rejected")]
    talks += [row["prompt"] + row["completion"] for row in labelled]
    return Dataset.from_list([{"messages": talk} for talk in {str(talk): talk for talk in talks}.values()])


def taught_and_tested(parts: Mapping[str, Sequence[dict]], columns: Sequence[str]) -> set[str]:
    """Answers in `columns` that stand in the split train and in another one, as of `all_words`: to be none."""
    told = {name: sources.answer_words(rows, columns) for name, rows in parts.items()}
    return told.pop("train") & set().union(*told.values())


def share_a_prompt(folders: Mapping[str, Sequence]) -> bool:
    """Whether two splits of a folder have a prompt in common."""
    told = [{str(prompt) for prompt in rows["prompt"]} for rows in folders.values()]
    return len(set().union(*told)) < sum(map(len, told))


def texts_in(conversations) -> set[str]:
    """All texts of rows of `messages`, as of `all_words`."""
    return {sources.all_words(turn["content"]) for row in conversations for turn in row["messages"]}


def _routed(router: Router, texts: Sequence[str]) -> dict[str, str]:
    unique = sorted(set(texts))
    return dict(zip(unique, router.route(unique), strict=True))


def _dataset_dict(parts: Mapping[str, Sequence[dict]], columns: Callable[[Mapping], dict]) -> DatasetDict:
    """The splits with the `columns` that are made of each row."""
    return DatasetDict({name: Dataset.from_list([columns(row) for row in rows]) for name, rows in parts.items()})
