"""`srmir new-preset`: parameter files for a model and pairs of one's own, with what a reader may want to change, and
beside them a trial: the same in two updates."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from srmir_lib.artifacts import atomic_path
from srmir_lib.errors import InputError
from srmir_lib.runner.manifest import cores
from srmir_lib.runner.notebook import Notebook
from srmir_lib.taxonomy import ALL

LEFT_OUT = (
    "left out: 00, the tour of a toy; 06, whose referee knows the lab's town only (A0, 04 and 05 show answers before "
    "and after); A1 to A8, studies of the lab and of public data"
)
ANSWERS = 4
"""Answers to each prompt of an update of a policy."""

TRIAL = "-trial"
"""What the name of a preset that only tries another one ends with."""


@dataclass(frozen=True)
class Facts:
    """What a preset is made of. `counts`: training pairs by category; `tokens`: of each pair; `answer`: of a long
    chosen answer; `probe`: what is asked with a category and without; `size`: weights of the model; `cuda`:
    whether it runs on a GPU."""

    base_model: str
    preferences: str
    design: str
    counts: Mapping[str, int]
    tokens: Sequence[int]
    answer: int
    probe: tuple[str, str]
    size: int
    cuda: bool

    @property
    def longest(self) -> int:
        return max(self.tokens)

    def amounts(self, trial: bool) -> "Amounts":
        """How much is trained. A reward model makes two passes over the pairs of a category of middling size, 8 at a
        time; a trial trains everything for two updates."""
        fit = min(240, max(20, sum(self.counts.values()) // len(self.counts) // 4))
        return Amounts(2, 1, 2, 2, 8) if trial else Amounts(fit, 10, 30, 4, 60)


@dataclass(frozen=True)
class Amounts:
    """How much is trained: updates of a reward model, of the imitation before, and of a policy; prompts in an update of
    a policy; and how many are answered to compare."""

    fit: int
    start: int
    policy: int
    prompts: int
    compared: int


def write_preset(root: Path, name: str, facts: Facts) -> str:
    """Write `params/<name>/` and its trial, checked against the notebooks; returns what will run, what not, and a rough
    time.

    A preset that exists is never overwritten.
    """
    presets = {name: facts.amounts(trial=False), name + TRIAL: facts.amounts(trial=True)}
    files = {}
    for preset, amounts in presets.items():
        check_name(root, preset)
        files[preset] = {notebook: _text(preset, *parts) for notebook, parts in _files(facts, amounts).items()}
        for notebook, text in files[preset].items():
            Notebook.load(root / "notebooks" / f"{notebook}.ipynb").parameters(yaml.safe_load(text), f"{notebook}.yaml")
    for preset, texts in files.items():
        with atomic_path(root / "params" / preset) as fresh:
            fresh.mkdir()
            for notebook, text in texts.items():
                (fresh / f"{notebook}.yaml").write_text(text, encoding="utf8")
    whole, trial = (rough_seconds(facts, amounts) for amounts in presets.values())
    each = ", ".join(f"{notebook.split('_')[0]} {_time(value)}" for notebook, value in whole.items())
    what = f"{len(facts.tokens)} pairs of {_listed(facts.counts)}"
    return (
        f"params/{name}: 01 to 05 and A0, for {facts.base_model} (design {facts.design}) on {what}\n{LEFT_OUT}\n"
        f"rough time on this machine: {_time(sum(whole.values()))} ({each}); lower max_steps where it is too long\n"
        f"next: srmir run {name}{TRIAL} shows in {_time(sum(trial.values()))} or so that everything runs; "
        f"srmir run {name} runs it"
    )


def check_name(root: Path, name: str) -> None:
    """Refuse a name that is no plain folder, or one that is taken."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in ("seeds", "reference"):
        raise InputError(f"{name}: no name for a preset; write letters, digits, - and _, not seeds or reference")
    if (root / "params" / name).exists():
        raise InputError(f"params/{name}: exists, and is never overwritten; choose another name, or delete it first")


def _files(facts: Facts, amounts: Amounts) -> dict[str, tuple[str, dict]]:
    """Notebook -> its purpose, and its parameters: name -> (value, comment)."""
    names, few = list(facts.counts), min(facts.counts.values())
    called = {ALL: "everything"} if names == [ALL] else {}
    base = {"base_model": (facts.base_model, "")}
    hidden = {"show_text": (False, "true: show texts whole; false: their beginnings, masked")}
    update = {"learning_rate": 1e-4, "micro_batch": 4, "max_length": facts.longest}
    grpo = {"learning_rate": 5e-5, "prompts_per_step": amounts.prompts, "num_generations": ANSWERS, "micro_batch": 4}
    grpo |= {"max_completion_length": min(256, facts.answer + 8)}
    room = facts.longest + 4 * grpo["max_completion_length"]  # broken characters are read as several tokens each
    steps = {"max_steps": (amounts.policy, "updates of each policy; a first look, more is better")}
    shared = facts.design == "shared"
    nobody = {"facts": ("", "nobody knows the truth about these prompts")}
    rates = {"single_learning_rate": 5e-4 if shared else 1e-4, "max_length": facts.longest, "keep_gb": 1.5}
    several = len(names) > 1
    return {
        "01_data": (
            "Own pairs, in splits by prompt, and a router to their categories on the base model's states.",
            {
                "prompt_source": ("own", ""),
                "preferences": (
                    facts.preferences,
                    "rows of prompt, chosen, rejected and, if there are several, category",
                ),
                "encoder": (facts.base_model, "reads the prompts for the router: the base model"),
            },
        ),
        "02_shadow_reward_models": (
            f"A reward model for each of {_listed(names)}, and one for all; the smallest has {few} training pairs.",
            base
            | {
                "design": (facts.design, "shared: one trunk, probes; separate: a LoRA model each"),
                "max_steps": (amounts.fit, "updates of each model; 03 takes it over"),
                "learning_rate": (1e-3 if shared else 1e-4, "of each; halve it if the accuracy jumps about"),
            }
            | hidden
            | {
                "training": (rates, "max_length: the longest pair; keep_gb: memory for what the trunk has read"),
                "probe": (
                    {"text": facts.probe[0], "single_text": facts.probe[1], "names": called, "tokens": 0},
                    "design shared: what is asked behind an answer; names: what to call a category in it",
                ),
            },
        ),
        "03_margins": (
            "One scale, margins off the base model's states, and the models once more with them. `refusals` (see the "
            "notebook) are answers that stand for good ones; write others where the pairs are not about safety.",
            base
            | {
                "objectives": (
                    {"margin": {"objective": "margin"}},
                    "the models once more, with margins; PCRM's limits: add pcrm: {objective: pcrm_length}",
                ),
                "facts": ("", "nobody knows the truth about these prompts,"),
                "best_of": (0, "so that nobody can judge what the models pick"),
            },
        ),
        "A0_baselines": (
            "Imitation, DPO, the best of n samples, and GRPO with one reward model; 04 and 05 begin with its start/.",
            base
            | nobody
            | {"start_steps": (amounts.start, "updates of imitation that every policy begins with")}
            | steps
            | {
                "batch_size": (
                    amounts.prompts * ANSWERS,
                    "sequences in an update, as prompts_per_step * num_generations of grpo",
                ),
                "max_prompts": (amounts.compared, "validation prompts that all are compared on"),
            }
            | hidden
            | {"start": (update, ""), "sft": (update, ""), "dpo": (update | {"learning_rate": 2e-5}, "")}
            | {"best_of_n": (update | {"max_length": room}, "")}
            | {"grpo": (grpo, "as training in 04 and 05")},
        ),
        "04_grpo_linear": (
            "A policy that follows the sum of all reward models.",
            base
            | {"variants": (["own_calibrated", "cross_calibrated"][: 1 + several], "the first is policy/")}
            | steps
            | nobody
            | hidden
            | {"training": (grpo, "micro_batch: memory; beta: how dear it is to leave the start")},
        ),
        "05_grpo_categorized": (
            "A policy that follows the reward model of each prompt's category.",
            base
            | {"variants": (["router", "soft"][: 1 + several], "the first is policy/")}
            | steps
            | nobody
            | hidden
            | {
                "signal_prompts": (amounts.compared, "practice prompts on whose samples it is seen what rewards tell"),
                "training": (grpo, "as in 04"),
                "alarm": (
                    {"prompts": amounts.compared, "provoke": False},
                    "provoke: true: one more run, that should ring",
                ),
            },
        ),
    }


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _text(name: str, purpose: str, values: Mapping[str, tuple]) -> str:
    """A parameter file: a group's entries below its name, a line each."""
    lines = [f"# {purpose}", f"preset: {name}"]
    for key, (value, comment) in values.items():
        inner = value if isinstance(value, Mapping) else {}
        lines.append(f"{key}:{'' if inner else ' ' + _yaml(value)}" + f"  # {comment}" * bool(comment))
        lines += [f"  {own}: {_yaml(entry)}" for own, entry in inner.items()]
    return "\n".join(lines) + "\n"


def _yaml(value: object) -> str:
    """A value as YAML 1.1 in one line."""
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_/][\w/.-]*", value):
        return json.dumps(value, ensure_ascii=False)
    return yaml.safe_dump(value).removesuffix("...\n").strip()


def rough_seconds(facts: Facts, amounts: Amounts) -> dict[str, float]:
    """Seconds by notebook, by the arithmetic of its forward and backward passes; right within a factor of a few."""
    speed = 3e13 if facts.cuda else 1.5e10 * cores()
    models, pairs = len(facts.counts), len(facts.tokens)
    read = 2 * sum(facts.tokens)  # both answers
    mean, probe = sum(facts.tokens) / pairs, 20
    updates = 3 * models * amounts.fit * 8 * 2
    fitted = updates * probe + read if facts.design == "shared" else updates * mean * 2
    batch = amounts.prompts * ANSWERS
    # A sampled token costs several that are read.
    sequences = amounts.policy * batch * (mean + 5 * min(256, facts.answer + 8))
    tokens = {
        "01_data": read / 2,
        "02_shadow_reward_models": 3 * fitted + 3 * read,
        "03_margins": fitted + 5 * read,
        "A0_baselines": 3 * 5 * sequences + 3 * amounts.start * batch * mean,
        "04_grpo_linear": 3 * 2 * sequences,
        "05_grpo_categorized": 3 * 3 * sequences,
    }
    return {name: 20 + 2 * facts.size * count / speed for name, count in tokens.items()}


def _time(seconds: float) -> str:
    if seconds < 90:
        return "a minute"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.0f} hours"
