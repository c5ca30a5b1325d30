"""What the designs of reward models share before they train: settings, the choice of pairs, tokens, the folder."""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from srmir_lib.artifacts import InputError, read_json, write_json
from srmir_lib.embeddings import conversation_ids
from srmir_lib.pair_targets import check_pair_objective
from srmir_lib.probes import ProbeSettings
from srmir_lib.reward_model import ALL, read_config
from srmir_lib.taxonomy import UNKNOWN
from srmir_lib.templates import text_of


@dataclass(frozen=True)
class RewardSettings:
    """How each reward model is trained. The notebook's parameters hold the values; there are no others."""

    max_steps: int  # updates of one model
    batch_size: int  # pairs per update
    learning_rate: float
    lora_rank: int
    lora_alpha: int
    max_length: int  # tokens of the longest allowed conversation; a longer pair is an error, never dropped
    cross_ratio: float = 0.0  # training "cross": pairs of other categories, per pair of the model's own
    unknown_ratio: float = 0.0  # pairs of no category (benign prompts, say), per pair of the model's own
    objective: str = "bradley_terry"  # "margin": the gap must exceed the column `margin`; "pcrm_…": stay below a limit
    limit: list[float] = field(default_factory=list)  # objective pcrm_…: its scale, offset, shift; none: the authors'
    limit_cap: float = 30.0  # objective pcrm_…: the largest limit
    targets: str = "own"  # whose margin or limit a pair gets: its own; "shuffled", another's; "mean", that of all
    similarity_model: str = ""  # objective pcrm_cosine: a frozen encoder, id or folder; "": the base model
    center_rewards_coefficient: float = 0.0  # pulls the two scores of a pair towards a sum of zero
    averaged_fits: int = 1  # fits from one start, in different orders of the pairs, whose weights are averaged (WARM)
    question: str = ""  # an introspective question with {prompt}, whose draft is read before judging; "" asks nothing
    draft_tokens: int = 24  # of that draft, at most
    bf16: bool = False
    probe: ProbeSettings = field(default_factory=ProbeSettings)  # design shared: what is asked after the text
    batch_tokens: int = 8192  # design shared: tokens in one forward pass of the trunk
    keep_gb: float = 1.5  # design shared: states of the trunk kept across epochs, at most; else they are read again

    def __post_init__(self):
        check_pair_objective(self)
        if self.averaged_fits < 1:
            raise InputError(f"averaged_fits: {self.averaged_fits} must be at least 1")
        object.__setattr__(self, "probe", replace(self.probe, rank=self.lora_rank, alpha=self.lora_alpha))


def select_pairs(
    labels: Sequence[str],
    category: str,
    categories: Sequence[str],
    training: str = "own",
    cross_ratio: float = 0.0,
    unknown_ratio: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Rows that one model sees, sorted. "own": its category's pairs and a sample of the unknown ones; "cross": also a
    sample of the other categories'. `ALL` sees whatever the models of `categories` see together, each row once."""
    if training not in ("own", "cross"):
        raise InputError(f"training: {training!r} is neither own nor cross")
    if category == ALL:
        parts = (select_pairs(labels, c, categories, training, cross_ratio, unknown_ratio, seed) for c in categories)
        return sorted(set().union(*parts))
    own = [row for row, label in enumerate(labels) if label == category]
    if not own:
        raise InputError(f"preferences: no pair of category {category}; collect some, or leave the category out")
    generator = torch.Generator().manual_seed(seed * 1000 + list(categories).index(category))
    chosen = list(own)
    unknown = [row for row, label in enumerate(labels) if label == UNKNOWN]
    others = [row for row, label in enumerate(labels) if label in categories and label != category]
    for pool, ratio in ((unknown, unknown_ratio), (others, cross_ratio if training == "cross" else 0.0)):
        order = torch.randperm(len(pool), generator=generator).tolist()
        chosen += [pool[at] for at in order[: round(ratio * len(own))]]
    return sorted(chosen)


def tokenize_pairs(tokenizer, pairs, max_length: int, think=list):
    """Preference rows -> `Dataset` of `chosen_ids` and `rejected_ids`, as `RewardTrainer` takes them.

    `think` maps prompts to conversations (an `Introspector`; the default leaves them as they are).
    TRL drops pairs that are too long, in silence; here any is an `InputError` that counts them.
    """
    from datasets import Dataset

    check_round_trip(tokenizer, [text_of(answer) for answer in pairs["chosen"]])
    prompts = think(pairs["prompt"])
    columns = {f"{side}_ids": conversation_ids(tokenizer, prompts, pairs[side]) for side in ("chosen", "rejected")}
    lengths = [max(map(len, both)) for both in zip(columns["chosen_ids"], columns["rejected_ids"], strict=True)]
    too_long = sum(length > max_length for length in lengths)
    if too_long:
        raise InputError(
            f"preferences: {too_long} pairs exceed max_length {max_length}; the longest has {max(lengths)}"
        )
    return Dataset.from_dict(columns)


def check_round_trip(tokenizer, texts: Sequence[str]) -> None:
    """Refuse a tokenizer that loses words: decoded again, each text must have its letters, white space, case and
    compatible characters aside."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    for row, (text, back) in enumerate(zip(texts, map(tokenizer.decode, ids), strict=True)):
        plain, again = ("".join(unicodedata.normalize("NFKC", words).split()).casefold() for words in (text, back))
        if plain != again:
            raise InputError(
                f"tokenizer: the chosen answer of row {row} has {len(plain)} letters and comes back with {len(again)}, "
                "or with others; use a tokenizer that keeps every word"
            )


def changed(settings, changes: dict):
    """The same settings but for `changes`, such as {"objective": "pcrm_length"}; an unknown name is an `InputError`."""
    known = [entry.name for entry in fields(settings)]
    for name in changes:
        if name not in known:
            raise InputError(f"objectives: there is no setting {name!r}; there are {', '.join(known)}")
    try:
        return replace(settings, **changes)
    except (TypeError, AttributeError) as error:
        raise InputError(f"objectives: {dict(changes)} holds a value of the wrong type ({error})") from error


def settings_of(folder: str | Path) -> RewardSettings:
    """The settings that a set in `folder` was trained with, so that another set can be trained alike."""
    config = read_config(folder)
    file = Path(folder) / ("fit.json" if config["design"] == "shared" else f"{config['categories'][0]}/fit.json")
    try:
        settings = dict(read_json(file)["key"]["settings"])
        return RewardSettings(**settings | {"probe": ProbeSettings(**settings["probe"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: no settings ({error!r}); train the set again (02)") from error


def pairs_seen(folder: str | Path) -> int:
    """How many different pairs the models of a set were trained on, added up over the models."""
    config, folder = read_config(folder), Path(folder)
    if config["design"] == "shared":
        return sum(read_json(folder / "fit.json")["key"]["pairs"].values())
    return sum(read_json(folder / name / "fit.json")["key"]["pairs"] for name in config["categories"])


def write_config(
    where: Path, final: Path, design: str, base_model, base_sha256: str, categories, settings, training: str
) -> None:
    """`config.json` of a set in the folder `where`; `final` is where that folder will lie, for the relative path."""
    folder = Path(base_model)
    where.mkdir(parents=True, exist_ok=True)
    config = {
        "design": design,
        "categories": list(categories),
        "base_model": os.path.relpath(folder.resolve(), final.resolve()) if folder.is_dir() else str(base_model),
        "base_is_folder": folder.is_dir(),
        "base_sha256": base_sha256,
        "objective": settings.objective,
        "question": settings.question,
        "draft_tokens": settings.draft_tokens,
        "training": training,
        **({"probe": asdict(settings.probe)} if design == "shared" else {}),
    }
    write_json(where / "config.json", config)
