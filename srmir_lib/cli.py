"""The command line `srmir`. It checks what it is asked before it imports anything slow.

Exit codes: 0 done; 1 a notebook failed or the disk did; 2 the request is wrong; 130 interrupted. Errors are one line.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

import yaml

from srmir_lib.artifacts import InputError
from srmir_lib.execute import StageFailed
from srmir_lib.reference import bless
from srmir_lib.run import Result, Runner


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
        print("srmir: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srmir", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run the notebooks of a preset; what is up to date is skipped")
    run.add_argument("notebooks", nargs="*", metavar="NN", help="only these (01, A0, 04_grpo_linear)")
    run.add_argument("--from", dest="start", default="", metavar="NN", help="from this notebook on")
    run.add_argument("--all", action="store_true", help="the appendices A1-A5 as well")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a parameter")
    _command(commands, "status", _status, "how each notebook of a preset stands")
    _command(commands, "report", _report, "write outputs/PRESET/report/index.html")
    _command(commands, "bless", _bless, "copy a finished preset, without weights, to outputs/reference")
    return parser


def _command(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    """A subcommand that works on a preset."""
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("preset", metavar="PRESET", help="a folder under params/, such as lab")
    command.set_defaults(function=function)
    return command


def _run(options: argparse.Namespace) -> None:
    runner = Runner(options.preset)
    names = runner.select(options.notebooks, options.start, options.all)
    tasks = runner.plan(names, dict(map(_setting, options.set)))
    results = []
    for result in runner.run(tasks, say=lambda line: print(line, flush=True)):
        results.append(result)
        print(f"{result.name}: {result.state}, {_number(result.seconds, '.0f')} s", flush=True)
    print(f"\n{_table(results)}\n\n{_write_report(options.preset)}")


def _status(options: argparse.Namespace) -> None:
    runner = Runner(options.preset)
    print(_table(runner.status(runner.plan(runner.select(everything=True), check_inputs=False))))


def _report(options: argparse.Namespace) -> None:
    Runner(options.preset)
    print(_write_report(options.preset))


def _bless(options: argparse.Namespace) -> None:
    print(bless(Runner(options.preset)))


def _write_report(preset: str) -> str:
    from srmir_lib.report import build_report

    return str(build_report(preset))


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--set {text}: write NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: {value!r} is not a YAML value") from error


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(results: Sequence[Result]) -> str:
    """Stages as an aligned table; seconds and memory are those of the run that made the results."""
    rows = [("stage", "state", "seconds", "peak MB", "started (UTC)")]
    for r in results:
        started = (r.started or "-")[:19].replace("T", " ")
        rows.append((r.name, r.state, _number(r.seconds, ".0f"), _number(r.peak_memory_mb, ".0f"), started))
    seconds = sum(r.seconds or 0 for r in results)
    rows.append(("total", "", f"{seconds:.0f}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    aligned = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e:<{widths[4]}}".rstrip()
        for a, b, c, d, e in rows
    ]
    return "\n".join(aligned)
