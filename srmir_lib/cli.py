"""The command line `srmir`. It checks what it is asked before it imports anything slow.

Exit codes: 0 done; 1 a notebook failed or the disk did; 2 the request is wrong; 130 interrupted. Errors are one line.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from srmir_lib.errors import InputError
from srmir_lib.rows import FORMS
from srmir_lib.runner.execute import StageFailed
from srmir_lib.runner.manifest import elapsed
from srmir_lib.runner.seeds import run_seeds
from srmir_lib.runner.series import Result, Runner
from srmir_lib.runner.stage import find_root

LONG = "rows that are longer than the model reads: refuse (default), cut the middle of their longest messages, skip"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop ends kernels as ctrl-C does
    options = _parser().parse_args(arguments)
    try:
        options.function(options)
        return 0
    except (InputError, StageFailed, OSError) as error:
        print(f"srmir: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print(f"srmir: interrupted; {options.interrupted}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srmir", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run the notebooks of a preset; what is up to date is skipped")
    run.add_argument("notebooks", nargs="*", metavar="NN", help="only these (01, A0, 04_grpo_linear)")
    run.add_argument("--from", dest="start", default="", metavar="NN", help="from this notebook on")
    run.add_argument("--all", action="store_true", help="the preset's appendices as well")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="at most so many side by side (default: 1)")
    about = "accelerate's configuration, for notebooks with num_processes above 1 (default: torchrun, on this machine)"
    run.add_argument("--accelerate", type=Path, metavar="F", help=about)
    about = "another value of a parameter, or of one in a group (training.beta=0.05)"
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=about)
    about = "run the notebooks of a preset with several seeds, and record their metrics in outputs/reference/seeds"
    seeds = _command(commands, "seeds", _seeds, about)
    seeds.add_argument("notebooks", nargs="*", metavar="NN", help="only these; what they read must be done")
    about = "towns, such as 7 or 110-114; docs/claims.md says which are for what, and which are used up"
    seeds.add_argument("--seeds", nargs="+", type=_towns, required=True, metavar="N", help=about)
    seeds.add_argument("--again", action="store_true", help="also what is on record with the same parameters")
    about = "what the named notebooks read is that of seed N for all: the same data, other trainings"
    seeds.add_argument("--data", type=int, metavar="N", help=about)
    about = "memory and time that a preset on a real model takes here, told before anything is loaded"
    _command(commands, "plan", _plan, about)
    _command(commands, "status", _status, "how each notebook of a preset stands")
    _command(commands, "report", _report, "write outputs/PRESET/report/index.html")
    about = "copy a finished preset, without weights, to outputs/reference, and write RESULTS.md from there"
    kept = _command(commands, "bless", _bless, about, nargs="?", default="")
    kept.add_argument("notebooks", nargs="*", metavar="NN", help="only these; the others keep the reference they have")

    about = "what works with a model and with preference pairs, told before hours are spent"
    look = _question(commands, "check", _check, about)
    look.add_argument("--model", default="", metavar="ID", help="folder or id of a model; no weights are loaded")
    look.add_argument("--data", default="", metavar="F", help=f"prompt, chosen, rejected, category: {FORMS}")
    look.add_argument("--categories", action="store_true", help="name all categories, however many there are")

    about = "write params/NAME for a model and pairs of your own: notebooks 01 to 05 and A0"
    make = _question(commands, "new-preset", _new_preset, about)
    make.add_argument("name", metavar="NAME", help="the new preset; one that exists is never overwritten")
    make.add_argument("--base-model", required=True, metavar="ID", help="folder or id of a causal model")
    make.add_argument("--preferences", required=True, metavar="F", help=f"prompt, chosen, rejected, category: {FORMS}")
    about = "how reward models share the base model (default: shared, if the model serves)"
    make.add_argument("--design", default="", choices=("shared", "separate"), help=about)

    about = "score the responses of a file by a set of reward models"
    rows = f"prompt, response and, if known, category: {FORMS} (one split: DIR/test)"
    score = _file_command(commands, "score", _score, about, rows)
    score.add_argument("--models", required=True, metavar="DIR", help="the set: a folder shadow_rms")
    score.add_argument("--router", default="", metavar="DIR", help="routes the rows without a category")
    scale = score.add_mutually_exclusive_group()
    scale.add_argument("--calibration", default="", metavar="F", help="another calibration.json than the set's own")
    scale.add_argument("--raw", action="store_true", help="scores in each model's own units")
    score.add_argument("--base-model", default="", metavar="DIR", help="where the base model lies, if it was moved")

    about = "add Legend margins to preference pairs"
    rows = f"prompt, chosen, rejected (or two dialogues): {FORMS}, which becomes one with all its splits"
    annotate = _file_command(commands, "annotate", _annotate, about, rows)
    annotate.add_argument("--model", required=True, metavar="ID", help="folder or id of the model that is read")
    where = annotate.add_mutually_exclusive_group()
    where.add_argument("--harmful", default="", metavar="F", help="harmful prompts with an unaligned model's responses")
    where.add_argument("--direction", default="", metavar="F", help="a direction kept by --save-direction")
    annotate.add_argument("--save-direction", default="", metavar="F", help="keep the direction, in safetensors")
    annotate.add_argument("--direction-pairs", type=int, default=400, metavar="N", help="rows it is estimated from")
    annotate.add_argument("--refusal", action="append", default=[], metavar="TEXT", help="a safe answer; give several")
    annotate.add_argument("--layer", type=int, metavar="L", help="hidden state: 0 the embedding, -1 the last (default)")
    annotate.add_argument("--pooling", choices=("last", "mean"), help="last token (default), or mean over the answer")
    annotate.add_argument("--scale", default="unit", choices=("none", "unit", "binned"), help="unit: mean square 1")
    annotate.add_argument("--negative", default="keep", choices=("keep", "clip", "drop", "flip"), help="if below zero")

    about = "make preference pairs of pools of answers, by what the model itself represents"
    rows = f"prompt and responses, a list: {FORMS} (one split: DIR/test)"
    rerank = _file_command(commands, "rerank", _rerank, about, rows)
    rerank.add_argument("--model", required=True, metavar="ID", help="folder or id of the causal model that is read")
    by = rerank.add_mutually_exclusive_group(required=True)
    about = "pairs (prompt, chosen, rejected) that its read-outs are learned from, a thousand at most"
    by.add_argument("--labelled", default="", metavar="F", help=about)
    by.add_argument("--readouts", default="", metavar="DIR", help="read-outs kept by --save-readouts")
    rerank.add_argument("--save-readouts", default="", metavar="DIR", help="keep the read-outs in a new folder")
    rerank.add_argument("--layer", type=int, metavar="L", help="one hidden state, -1 the last (default: all layers)")
    rerank.add_argument("--pooling", choices=("last", "mean"), help="last token (default), or mean over the answer")
    return parser


def _command(commands, name: str, function, text: str, **optional) -> argparse.ArgumentParser:
    """A subcommand that works on a preset."""
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("preset", metavar="PRESET", help="a folder under params/, such as lab", **optional)
    command.set_defaults(function=function, interrupted="the same command goes on from here")
    return command


def _question(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    """A subcommand that looks at other people's files."""
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(function=function, interrupted="nothing was written")
    return command


def _file_command(commands, name: str, function, text: str, rows: str) -> argparse.ArgumentParser:
    """A subcommand that makes one file of another."""
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("--input", required=True, metavar="F", help=rows)
    command.add_argument("--output", required=True, metavar="F", help="appears when it is finished, never in part")
    command.add_argument("--too-long", default="refuse", choices=("refuse", "cut", "skip"), help=LONG)
    command.add_argument("--prefix", default="", metavar="TEXT", help="begins the names of the new columns")
    command.add_argument("--device", default="auto", type=_device, help="auto (default), cpu, cuda, cuda:1, …")
    command.set_defaults(function=function, interrupted="the output is as it was before")
    return command


def _run(options: argparse.Namespace) -> None:
    runner = Runner(options.preset)
    names = runner.select(options.notebooks, options.start, options.all)
    tasks = runner.plan(names, dict(map(_setting, options.set)))
    results = []
    for result in runner.run(tasks, _say, options.jobs, config=options.accelerate and options.accelerate.resolve()):
        results.append(result)
        _say(f"{result.name}: {result.state}, {_number(result.seconds)} s")
    results.sort(key=lambda result: names.index(result.name))
    print(f"\n{_table(results)}\n")
    _report(options)


def _seeds(options: argparse.Namespace) -> None:
    seeds = [seed for towns in options.seeds for seed in towns]
    for line in run_seeds(options.preset, seeds, options.notebooks, None, options.again, options.data, _say):
        _say(line)


def _say(line: str) -> None:
    print(line, flush=True)


def _plan(options: argparse.Namespace) -> None:
    runner = Runner(options.preset)
    tasks = runner.plan(runner.select(everything=True), check_inputs=False)
    parameters = {task.name: task.parameters for task in tasks}
    model = parameters.get("02_shadow_reward_models", {}).get("base_model", "")
    if not model or parameters["02_shadow_reward_models"]["design"] == "pooled":
        raise InputError(f"{options.preset}: no real causal model (base_model of 02) to plan for; see params/README.md")
    if parameters.get("01_data", {}).get("prompt_source") != "chat":
        counted = "only the work of prompt_source chat (01) can be counted before it has run"
        raise InputError(f"{options.preset}: {counted}; `srmir new-preset` says what your own data takes")
    from srmir_lib.models import plan
    from srmir_lib.models.loading import pick_device
    from srmir_lib.runner.manifest import read_manifest
    from srmir_lib.runner.smollm2 import NAME, smollm2

    model = smollm2(runner.root / "outputs/.cache") if model == NAME else model
    rows = plan.plan_of(parameters, model)
    folder = runner.root / "outputs/reference" / options.preset
    print(plan.told(rows, {name: run for name in parameters if (run := read_manifest(folder / name))}))
    plan.check_fits(rows, plan.room(pick_device()))


def _status(options: argparse.Namespace) -> None:
    runner = Runner(options.preset)
    print(_table(runner.status(runner.plan(runner.select(everything=True), check_inputs=False))))


def _report(options: argparse.Namespace) -> None:
    from srmir_lib.runner.report import build_report

    print(build_report(Runner(options.preset).preset))


def _bless(options: argparse.Namespace) -> None:
    runner = Runner(options.preset) if options.preset else None
    from srmir_lib.runner.bless import bless, write_results

    print(bless(runner, options.notebooks) if runner else write_results(find_root()))


def _check(options: argparse.Namespace) -> None:
    found = _checked(options.model, options.data, options.categories)
    print(found)
    if found.problem:
        raise InputError(found.problem)


def _checked(model: str, data: str, every: bool = False):
    """`data.check.check`; the pairs are read before anything slow is imported."""
    from srmir_lib.data.own_files import read_pairs

    pairs = read_pairs(data) if data else None
    from srmir_lib.data.check import check

    return check(model, pairs, every)


def _new_preset(options: argparse.Namespace) -> None:
    from srmir_lib.runner.new_preset import Facts, check_name, write_preset

    root = find_root()
    check_name(root, options.name)
    found = _checked(*(_lasting(path, root) for path in (options.base_model, options.preferences)))
    if found.problem:
        raise InputError(f"{found.problem}; `srmir check --model {options.base_model} --data {options.preferences}`")
    from srmir_lib.reward_models.preset_facts import preset_facts

    print(write_preset(root, options.name, Facts(**preset_facts(found, options.design))))


def _lasting(path: str, root: Path) -> str:
    """A path as notebooks find it: from the repository's root if it lies there, else in full; a hub id as it is."""
    place = Path(os.path.expanduser(path)).resolve()
    if not place.exists():
        return path
    return str(place.relative_to(root)) if place.is_relative_to(root) else str(place)


def _score(options: argparse.Namespace) -> None:
    from srmir_lib.reward_models.score_file import score_file

    o = options
    own = o.router, o.device, o.raw, o.calibration, o.base_model, o.too_long, o.prefix
    print(score_file(o.models, o.input, o.output, *own))


def _annotate(options: argparse.Namespace) -> None:
    from srmir_lib.data.annotate_file import annotate_file

    names = "harmful direction save_direction layer pooling scale negative direction_pairs device too_long prefix"
    chosen = {name: getattr(options, name) for name in names.split()}
    print(annotate_file(options.model, options.input, options.output, refusals=options.refusal, **chosen))


def _rerank(options: argparse.Namespace) -> None:
    from srmir_lib.reward_models.rerank_file import rerank_file

    names = "labelled readouts save_readouts layer pooling device too_long prefix"
    chosen = {name: getattr(options, name) for name in names.split()}
    print(rerank_file(options.model, options.input, options.output, **chosen))


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--set {text}: write NAME=VALUE")
    try:
        return name, yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: {value!r} is not a YAML value") from error


def _towns(text: str) -> list[int]:
    """The seeds that `7` or `100-109` names."""
    ends = re.fullmatch(r"(-?\d+)(?:-(\d+))?", text)
    towns = list(range(int(ends[1]), int(ends[2] or ends[1]) + 1)) if ends else []
    if not towns:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor a range such as 100-109")
    return towns


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:1, …")
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _table(results: Sequence[Result]) -> str:
    """Stages as an aligned table; seconds and memory are those of the run that made the results."""
    rows = [("stage", "state", "seconds", "peak MB", "started (UTC)")]
    for r in results:
        started = (r.started or "-")[:19].replace("T", " ")
        rows.append((r.name, r.state, _number(r.seconds), _number(r.peak_memory_mb), started))
    ran = [(r.started, r.seconds) for r in results if r.started]
    rows.append(("total", "", f"{sum(seconds for _, seconds in ran):.0f}", "", ""))
    rows.append(("elapsed", "", f"{elapsed(ran):.0f}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    sides = "<<>><"  # words to the left, numbers to the right
    cells = [[f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)
