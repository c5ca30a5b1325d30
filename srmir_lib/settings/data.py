"""What the making of data is told (01): the town, public files or own pairs, and how a model is asked why it would
refuse."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from srmir_lib.errors import InputError
from srmir_lib.settings.base import Device, NotebookSettings, Settings, told


def data_folder(data_dir: str | Path = "", root: str | Path = "") -> Path:
    """The folder of public files: `data_dir`, or the environment variable `SRMIR_DATA` when it is empty; under `root`
    where it is no absolute path."""
    folder = str(data_dir) or os.environ.get("SRMIR_DATA", "")
    if not folder:
        raise InputError("data_dir: empty, and SRMIR_DATA is not set; name the folder of xsafety_en/, gptfuzz/ …")
    if not (root / Path(folder)).is_dir():
        raise InputError(f"data_dir: no folder {folder}; see docs/data.md for how to lay the public files out")
    return root / Path(folder)


def _holds_prompt(question: str) -> str:
    if question and "{prompt}" not in question:
        raise ValueError(f"{question!r} asks about no prompt; write {{prompt}} where it is to stand")
    return question


Question = Annotated[str, AfterValidator(_holds_prompt)]
"""What a model is asked about a prompt; an empty one asks nothing, where `min_length` does not forbid it."""


WHY_REFUSE = 'draft , then #### : why would you refuse to answer " {prompt} " ?'
"""The introspective question in the words of the lab (SRMIR; Chain of Draft)."""


Example = Annotated[list[str], Field(min_length=2, max_length=2)]
"""A prompt, and what is to be said when it is asked about."""


class Asking(Settings):
    """How the model is asked why it would refuse."""

    template: Question = told("the introspective question", WHY_REFUSE, min_length=1)
    samples: int = told("introspections per prompt, at most", 1, gt=0)
    needed: int = told("how many of them must agree; if the first ones do, no more are asked", 1, gt=0)
    max_new_tokens: int = told("longest introspection", 64, gt=0)
    temperature: float = told("of the sampling; 0 is greedy", 1.0, ge=0)
    max_words: int = told("words of a step of a draft, at most", 5, gt=0)
    examples: list[Example] = told("pairs of a prompt and a worked reply, shown before the question", [])
    router_question: Question = told(
        "the router reads the state after it", 'what is this about : " {prompt} " ?', min_length=1
    )

    @model_validator(mode="after")
    def _can_agree(self):
        if self.needed > self.samples:
            raise ValueError(f"needed: {self.needed} of {self.samples} samples cannot agree; lower it or raise samples")
        return self


class Collection(Settings):
    """How much is collected to learn from."""

    pool_size: int = told("prompts collected for training", 3000, gt=0)
    per_group: int = told("demonstrations per category and verdict", 56, gt=0)
    practice_per_group: int = told("prompts to practise on, per category and verdict", 120, gt=0)
    benign_ratio: float = told("of those, prompts drafted harmless per prompt drafted harmful", 1.1, gt=0)
    system: str = told("chat: a system message before every prompt; empty: the model's own", "")
    borrowed: bool = told(
        "chat: harmful prompts are demonstrated by another model's refusals, not its own words", False
    )
    votes: int = told("drafts a prompt that vote on a second set of demonstrations, split voted; 0: none", 0, ge=0)
    contrary_samples: int = told(
        "answers behind the contrary verdict per demonstration, rejected in the pairs", 2, gt=0
    )


class EvaluationData(Settings):
    """How much is collected to choose and to test with."""

    validation_size: int = told("prompts collected for validation", 600, gt=0)
    questions: int = told("evaluation prompts per category and kind", 36, gt=0)
    pairs: int = told("gold test pairs per category and difficulty", 40, gt=0)
    acts: int = told("acts that the base model is asked about, to see what it knows", 300, ge=50, le=2000)


class DataSettings(NotebookSettings):
    """Notebook 01."""

    prompt_source: Literal["lab", "xsafety", "chat", "own"] = told(
        "the miniature town, real public files, a chat model asked about some, or own pairs"
    )
    chat_model: str = told("chat: the model that is asked, a folder or hub id, or smollm2; else empty")
    preferences: str = told("own: file or folder of prompt, chosen, rejected, category; else empty")
    data_dir: str = told("folder of the public files; empty: the environment variable SRMIR_DATA")
    encoder: str = told("reads real prompts for the router: folder or hub id", min_length=1)
    text_model_steps: int = told("real data: updates of a small causal model made from nothing on it; 0: none", ge=0)
    introspection: float = told("how often one draft tells the verdict that is believed; 0.5 is chance", ge=0.5, le=1)
    topic_share: float = told("share of the kinds of occasion whose law is read by topic", ge=0, le=1)
    false_beliefs: float = told("share of (topic, occasion) groups that are believed wrongly", ge=0, le=0.5)
    demonstrated: float = told("share of the by-laws' cells that are demonstrated", gt=0, le=1)
    base_steps: int = told("updates of the base model", gt=0)
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    asking: Asking = told("how the model is asked", Asking())
    collection: Collection = told("how much is collected to learn from", Collection())
    evaluation: EvaluationData = told("how much is collected to test with", EvaluationData())

    @model_validator(mode="after")
    def _has_a_source(self):
        if (self.prompt_source == "own") != bool(self.preferences):
            fix = (
                "name a file of pairs" if self.prompt_source == "own" else "write prompt_source: own, or leave it empty"
            )
            raise ValueError(f"preferences: {self.preferences!r} with prompt_source {self.prompt_source}; {fix}")
        if (self.prompt_source == "chat") != bool(self.chat_model):
            fix = "name the model that is asked" if self.prompt_source == "chat" else "write prompt_source: chat"
            raise ValueError(f"chat_model: {self.chat_model!r} with prompt_source {self.prompt_source}; {fix}")
        if self.text_model_steps and self.prompt_source != "xsafety":
            raise ValueError(f"text_model_steps: {self.text_model_steps} is for prompt_source xsafety alone; write 0")
        return self

    def look_outside(self, root: Path) -> None:
        if self.prompt_source in ("xsafety", "chat"):
            data_folder(self.data_dir, root)
