"""What the making of data is told (01): the town, public files or own pairs, and how a model is asked why it would
refuse."""

from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from srmir_lib.settings.base import Device, NotebookSettings, Settings, told


def _holds_prompt(question: str) -> str:
    if question and "{prompt}" not in question:
        raise ValueError(f"{question!r} asks about no prompt; write {{prompt}} where it is to stand")
    return question


Question = Annotated[str, AfterValidator(_holds_prompt)]
"""What a model is asked about a prompt; an empty one asks nothing, where `min_length` does not forbid it."""


WHY_REFUSE = 'draft , then #### : why would you refuse to answer " {prompt} " ?'
"""The introspective question in the words of the lab (SRMIR; Chain of Draft)."""


class Introspection(Settings):
    """How the model is asked why it would refuse."""

    template: Question = told("the introspective question", WHY_REFUSE, min_length=1)
    long_template: Question = told(
        "the same, asked for a Chain of Thought, to compare lengths",
        'think step by step , then #### : why would you refuse to answer " {prompt} " ?',
        min_length=1,
    )
    samples: int = told("introspections per prompt, at most", 3, gt=0)
    needed: int = told("how many of them must agree; if the first ones do, no more are asked", 2, gt=0)
    max_new_tokens: int = told("longest introspection", 64, gt=0)
    router_question: Question = told(
        "the router reads the state after it", 'what is this about : " {prompt} " ?', min_length=1
    )

    @model_validator(mode="after")
    def _can_agree(self):
        if self.needed > self.samples:
            raise ValueError(f"needed: {self.needed} of {self.samples} samples cannot agree; lower it or raise samples")
        return self


class EvaluationData(Settings):
    """How much is collected to choose and to test with."""

    validation_size: int = told("prompts collected for validation", 400, gt=0)
    questions: int = told("evaluation prompts per category and kind", 20, gt=0)
    pairs: int = told("gold test pairs per category and difficulty", 40, gt=0)


class DataSettings(NotebookSettings):
    """Notebook 01."""

    prompt_source: Literal["lab", "xsafety", "own"] = told("the miniature town, real public files, or own pairs")
    preferences: str = told("own: file or folder of prompt, chosen, rejected, category; else empty")
    data_dir: str = told("folder of the public files; empty: the environment variable SRMIR_DATA")
    encoder: str = told("reads real prompts for the router: folder or hub id", min_length=1)
    text_model_steps: int = told("real data: updates of a small causal model made from nothing on it; 0: none", ge=0)
    grammar: Literal["act", "topic"] = told("which by-laws the town has")
    introspection_accuracy: float = told("how often beliefs about harm are right; 0.5 is chance", ge=0.5, le=1.0)
    base_steps: int = told("updates of the base model", gt=0)
    pool_size: int = told("prompts collected for training", gt=0)
    per_group: int = told("demonstrations per category and verdict", gt=0)
    benign_ratio: float = told("prompts believed harmless per prompt believed harmful", gt=0)
    policy_samples: int = told("policy answers per demonstration, rejected in the pairs", gt=0)
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    introspection: Introspection = told("how the model is asked", Introspection())
    evaluation: EvaluationData = told("how much is collected to test with", EvaluationData())

    @model_validator(mode="after")
    def _has_a_source(self):
        if (self.prompt_source == "own") != bool(self.preferences):
            fix = (
                "name a file of pairs" if self.prompt_source == "own" else "write prompt_source: own, or leave it empty"
            )
            raise ValueError(f"preferences: {self.preferences!r} with prompt_source {self.prompt_source}; {fix}")
        if self.text_model_steps and self.prompt_source != "xsafety":
            raise ValueError(f"text_model_steps: {self.text_model_steps} is for prompt_source xsafety alone; write 0")
        return self
