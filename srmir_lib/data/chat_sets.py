"""Public prompts, and a real chat model that is asked about them, as the folders that the notebooks read."""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict

from srmir_lib.conversations import assistant_message, opens_with_refusal, system_message, text_of, user_message
from srmir_lib.data import labelled_files
from srmir_lib.data.chat_data import ChatData, chat_data
from srmir_lib.data.chat_prompts import chat_prompts
from srmir_lib.data.harm_classifier import harm_answers
from srmir_lib.data.introspection import counted
from srmir_lib.data.labelled_sets import (
    helpful_answers,
    judged_pairs,
    labelled_answers,
    out_of_domain,
    preferred_answers,
)
from srmir_lib.data.pairs import split_tables
from srmir_lib.data.public_files import all_words
from srmir_lib.data.router import PromptEncoder, Router, fit_router, router_accuracy
from srmir_lib.models.loading import resolve_encoder
from srmir_lib.models.trunk import Trunk
from srmir_lib.settings.data import DataSettings
from srmir_lib.taxonomy import CATEGORIES, UNKNOWN

ANSWERED = ("prompt", "completion", "category", "draft", "refuses")
PAIRED = ("prompt", "chosen", "rejected", "category", "origin", "difficulty")


def chat_sets(
    base_model: str, settings: DataSettings, device: str = "auto", keep_in: Path | None = None
) -> tuple[dict[str, DatasetDict], Router, dict[str, dict[str, float]], ChatData]:
    """The folders that 01 writes for a chat model, the router, numbers, and what the model made of training prompts.

    `prompts`: `chat_prompts`; `demonstrations` and the training and validation pairs of `preferences`: `chat_data`;
    `labelled`: answers that people labelled, `labelled_pairs`: pairs of them (`preferred_answers`), whose test pairs
    are those of `preferences` as well; `judged`: `judged_pairs`; `helpful`: `helpful_answers`.
    The router reads prompts with `settings.encoder`, and knows harmless ones as the class unknown. The numbers:
    `router`, `left_out` (texts that are in no demonstration, by reason), `yield` (`ChatData.yields`) and `repeats`, as
    of `labelled_answers`.
    `keep_in`: a folder for what the model says, so that a killed run need not ask again.
    """
    collection, seed = settings.collection, settings.seed
    sizes = collection.practice_per_group, collection.benign_ratio, settings.evaluation.questions
    prompts = after_system(chat_prompts(settings.data_dir, seed, *sizes), collection.system)
    check_later_files(settings.data_dir, seed, collection.borrowed)
    reader = PromptEncoder(base_model=resolve_encoder(settings.encoder), pooling="mean")
    router = fit_router(prompts, reader, [*CATEGORIES, UNKNOWN], device, rejected_share=0.02)
    labelled, repeats = labelled_answers(router, settings.data_dir, seed)
    labelled = after_system(labelled, collection.system)
    told = {split: preferred_answers(labelled, split) for split in ("train", "validation", "test")}
    trunk, made = Trunk.load(base_model, device, keep_in=keep_in), {}
    borrowed = borrowed_refusals(router, settings.data_dir, prompts, seed) if collection.borrowed else {}
    borrowed = after_system(borrowed, collection.system)
    ask = settings.asking.model_dump(exclude={"router_question"})
    for number, (split, most) in enumerate(
        (("train", collection.per_group), ("validation", collection.per_group // 8))
    ):
        kinds = {kind: [row for row in prompts[split] if row["kind"] == kind] for kind in ("harmful", "lookalike")}
        plain = [row for row in kinds["harmful"] if row["family"] == "none"]
        how = (
            max(1, most),
            collection.contrary_samples,
            settings.asking.max_new_tokens,
            seed + 10 * number,
            split == "train",
            borrowed.get(split),
        )
        made[split] = chat_data(trunk, plain, kinds["lookalike"], ask, *how, progress=f"introspection, {split}")
    folders = {
        "prompts": prompts,
        "demonstrations": split_tables({split: data.demonstrations for split, data in made.items()}, ANSWERED),
        "preferences": split_tables({split: data.pairs for split, data in made.items()}, PAIRED),
        "labelled": labelled,
        "labelled_pairs": DatasetDict(told),
        "judged": after_system(judged_pairs(settings.data_dir, seed), collection.system),
        "helpful": after_system(helpful_answers(settings.data_dir, seed), collection.system),
    }
    folders["preferences"]["test"] = told["test"]
    harmful = prompts["test"].filter(lambda row: row["kind"] == "harmful")
    numbers = {
        "router": router_accuracy(router, harmful),
        "left_out": counted(made["train"].left_out),
        "yield": {f"{name}_{of}": n for name, row in made["train"].yields.items() for of, n in row.items()},
        "repeats": repeats,
    }
    return folders, router, numbers, made["train"]


def after_system(sets: Mapping[str, Iterable[dict]], system: str) -> DatasetDict:
    """Splits of rows with the system message before every prompt; as they are if it is empty."""
    before = system_message(system)
    return DatasetDict(
        {
            name: Dataset.from_list([row | {"prompt": before + row["prompt"]} for row in rows])
            for name, rows in sets.items()
        }
    )


def check_later_files(data_dir: str | Path, seed: int, borrowed: bool) -> None:
    """Read what is needed only after a model has been at work, so that a missing or damaged file is told before."""
    labelled_files.load_beavertails(data_dir)
    labelled_files.load_safe_rlhf(data_dir)
    out_of_domain(data_dir)
    helpful_answers(data_dir)
    harm_answers(data_dir, seed)
    if borrowed:
        labelled_files.load_safe_answers(data_dir)


def borrowed_refusals(router: Router, data_dir: str, prompts: DatasetDict, seed: int) -> dict[str, list[dict]]:
    """Refusals that another model wrote, of harmful prompts that stand in no split of `prompts`, by the category that
    the router gives them: rows of prompt, category and completion; split validation is every eighth of them."""
    known = {all_words(text_of(prompt)) for part in prompts.values() for prompt in part["prompt"]}
    rows = [row for row in labelled_files.load_safe_answers(data_dir) if opens_with_refusal(row["response"])]
    rows = list({all_words(row["prompt"]): row for row in rows if all_words(row["prompt"]) not in known}.values())
    random.Random(seed).shuffle(rows)
    routed = router.route([row["prompt"] for row in rows])
    told = [
        {"prompt": user_message(row["prompt"]), "category": category, "completion": assistant_message(row["response"])}
        for row, category in zip(rows, routed, strict=True)
        if category != UNKNOWN
    ]
    return {"train": [row for n, row in enumerate(told) if n % 8], "validation": told[::8]}
