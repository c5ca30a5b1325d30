"""What of this library works with a model, told before its weights are loaded and hours are spent."""

from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig

from srmir_lib.artifacts import as_written
from srmir_lib.models.generation import end_tokens
from srmir_lib.models.kinds import (
    end_problem,
    language_problem,
    margins_problem,
    pooled_problem,
    separate_problem,
    shared_problem,
    tokenizer_problem,
    window_of,
)
from srmir_lib.models.loading import config_of, model_files, read_tokenizer


@dataclass(frozen=True)
class Ability:
    """One thing that is done with a model here: generation, design shared, separate or pooled, margins."""

    name: str
    works: bool
    why: str  # if it does not work: the reason and the fix, in the words of the error; else what to mind, or ""


def abilities(model: str | Path) -> list[Ability]:
    """What works with a model, by id or folder, and why not; only its configuration and tokenizer are read.

    What is no model at all (no folder, an adapter, weights that are pickles) is an `InputError`.
    """
    config, tokenizer = config_of(model), read_tokenizer(model)
    if Path(model).is_dir():
        model_files(Path(model))
    with as_written(model, "not as a model is saved", "fetch it again"):
        words = tokenizer_problem(tokenizer)
        language = language_problem(config) or words
        window, limit = window_of(config), ""
        if window is not None:
            limit = f"conversations of at most {window} tokens, its sliding window, with the question behind them"
        problems = {
            "generation": language or end_problem(end_tokens(tokenizer, _generation_config(model, config))),
            "shared": shared_problem(config) or words,
            "separate": separate_problem(config) or words,
            "pooled": pooled_problem(config, tokenizer),
            "margins": margins_problem(config, tokenizer),
        }
    minded = {"shared": limit}
    return [Ability(name, not why, why or minded.get(name, "")) for name, why in problems.items()]


def _generation_config(model: str | Path, config) -> GenerationConfig:
    """What `from_pretrained` gives a model for one: its own file or, without it, what its configuration says."""
    try:
        return GenerationConfig.from_pretrained(str(model))
    except OSError:
        return GenerationConfig.from_model_config(config)
