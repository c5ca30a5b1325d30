"""The blessed run: what a reader sees without running anything. Words, pictures and numbers; no weights."""

import json
import re
import shutil
import tempfile
from pathlib import Path

from srmir_lib.artifacts import atomic_path, read_json
from srmir_lib.errors import InputError
from srmir_lib.runner.series import Runner

KEPT = ("manifest.json", "metrics.json", "results.json", "claims.json")


RECORDS = ("objectives", "token_objectives", "designs")
"""Folders of a reference that no blessing makes: what a notebook recorded there, fit by fit."""


LARGEST = 1_000_000


HEADINGS = {
    "attack_success": "attacks, plain",
    "attack_success_trained_wrappers": "wrapped",
    "attack_success_held_out_wrappers": "unseen wrappers",
    "over_refusal": "over-refusal",
    "utility": "utility",
    "incoherent": "incoherent",
    "balanced_goodness": "balanced goodness",
}


def bless(runner: Runner) -> Path:
    """Copy each stage's executed notebook and numbers to `outputs/reference/<preset>/`, all of them or none.

    A stage that is not done, or no longer what its notebook, parameters and code would give, is an `InputError`; so is
    a file of 1 MB or more. Of the appendices A1 to A8, which `srmir run` leaves out, those that are done come along;
    the others keep the reference they have, and so do the `RECORDS`.
    Paths of this machine are made relative to the repository, and of redacted texts not even the beginning is kept.
    """
    tasks, needed = runner.plan(runner.select(everything=True), check_inputs=False), runner.select()
    states = {result.name: result.state for result in runner.status(tasks)}
    left = [task.name for task in tasks if task.name not in needed and states[task.name] != "done"]
    tasks = [task for task in tasks if task.name not in left]
    if wrong := [f"{name} is {states[name]}" for name in needed if states[name] != "done"]:
        raise InputError(f"{', '.join(wrong)}; only a finished run can be a reference: run `srmir run {runner.preset}`")
    target = runner.root / "outputs" / "reference" / runner.preset
    if not tasks:
        found = ", ".join(f"{name} is {states[name]}" for name in left)
        raise InputError(
            f"{runner.preset}: nothing to bless; {found}: run it (with the same SRMIR_DATA, if it reads that)"
        )
    with atomic_path(target) as fresh:
        for name in (*left, *RECORDS):
            if (target / name).is_dir():
                shutil.copytree(target / name, fresh / name)
        for task in tasks:
            (fresh / task.name).mkdir(parents=True)
            for name in (f"{task.name}.ipynb", *KEPT):
                source = runner.outputs / task.name / name
                if source.is_file():
                    text = _fit_to_keep(source.read_text(encoding="utf8"), runner.root)
                    if len(text.encode()) >= LARGEST:
                        raise InputError(f"{source}: 1 MB or more; print or draw less")
                    (fresh / task.name / name).write_text(text, encoding="utf8")
    return target


def results_markdown(reference: str | Path, preset: str) -> str:
    """The README's table of a blessed run: one row per policy of 06, fractions with three digits, as Markdown."""
    metrics = read_json(Path(reference) / preset / "06_evaluation" / "metrics.json")
    policies = list(dict.fromkeys(name.partition("/")[0] for name in metrics))
    lines = [f"| policy | {' | '.join(HEADINGS.values())} |", "|---|" + "---:|" * len(HEADINGS)]
    for policy in policies:
        cells = (f"{metrics[f'{policy}/{name}']:.3f}" for name in HEADINGS)
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_markdown(reference: str | Path, preset: str) -> str:
    """The README's table of claims over seeds (A6): one row a claim, its interval in each world, its verdict."""
    rows = read_json(Path(reference) / preset / "A6_over_seeds" / "claims.json")
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    lines = [f"| claim | {' | '.join(worlds)} | verdict |", "|---|" + "---|" * (len(worlds) + 1)]
    for name in dict.fromkeys(row["id"] for row in rows):
        own = {row["world"]: row for row in rows if row["id"] == name}
        first, cells = next(iter(own.values())), []
        for world in worlds:
            known = world in own and own[world]["estimate"] is not None
            cells.append("{estimate:+.3f} [{low:+.3f}, {high:+.3f}]".format(**own[world]) if known else "-")
        lines.append(f"| {first['claim']} | {' | '.join(cells)} | {first['overall']} |")
    return "\n".join(lines)


def _fit_to_keep(text: str, root: Path) -> str:
    """JSON `text` without what `redact` left of others' texts, and without where this machine keeps things: the
    repository, what is beside it, a kernel's scratch files."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', _redacted, text)
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/\d+\.py", "<cell>", text)
    return text.replace(f"{root}/", "").replace(str(root), ".").replace(f"{root.parent}/", "../")


def _redacted(literal: re.Match) -> str:
    """A string of a JSON file without the beginnings of redacted texts."""
    if "redacted]" not in literal.group():
        return literal.group()
    kept = re.sub(r"\S.{0,23} … (\[\d+ characters, redacted\])", r"\1", json.loads(literal.group()))
    return json.dumps(kept, ensure_ascii=False)
