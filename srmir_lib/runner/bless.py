"""The blessed run: what a reader sees without running anything. Words, pictures and numbers; no weights."""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from srmir_lib.artifacts import as_written, atomic_path, read_json
from srmir_lib.errors import InputError
from srmir_lib.runner.report import results_table
from srmir_lib.runner.series import Runner

KEPT = ("manifest.json", "metrics.json", "results.json", "claims.json")


PICTURES = ("dials.png",)
"""Figures that README shows, kept beside the notebook that drew them; of the others the notebook holds a copy."""


CLAIM = ("claim", "world", "towns", "control", "estimate", "this_run", "verdict", "overall")
"""Columns of a table of claims, as far as a notebook has them."""


RECORDS = ("objectives", "token_objectives", "designs")
"""Folders of a reference that no blessing makes: what a notebook recorded there, fit by fit."""


LARGEST = 1_000_000


MAIN = {
    "02": r"pair_accuracy|held_out|minus|auroc|_hits_|false_alarms",
    "03": r"^margin_|^refusal_bit|^accuracy|pair_accuracy|spread|best_of_16",
    "04": r"^(reward|kl)_",
    "05": r"^(reward|kl|alarm|suspicion)_",
    "A1": r"^pair_accuracy|minus_bt|token_auroc|sd_ratio|balanced_goodness",
    "A2": r"balanced_goodness|minus_dpo|rerank_vs|auroc|readout_accuracy|^order_by_states|^KL",
    "A3": r"balanced_goodness|minus_one|follows|gaps_kept",
    "A5": r"_vs_|_over_",
    "A6": r"(?!)",  # its claims say it
    "A7": r"balanced_goodness|spread|KL",
    "A8": r"^(pair_accuracy|auroc)",
}
"""By number of a notebook: which of its metrics `RESULTS.md` shows, where it has too many to show them all."""


INTRODUCTION = """# Results

Written by `srmir bless` from `outputs/reference/`; do not edit. Each part but A6 is one run: it describes itself, and
decides no claim. A6 puts many towns together, and decides; a verdict of fewer towns than docs/claims.md asks for is
interim. A metric has the name under which its notebook saves it; square brackets hold the interval that it computed."""


ABOUT = (
    "[The notebook with its outputs](outputs/reference/{preset}/{notebook}/{notebook}.ipynb), run on {started:.10} at "
    "commit {git_commit!s:.7} on {cpu} with {threads} of {cores} cores in {seconds:.0f} s{again} and "
    "{peak_memory_mb:.0f} MB."
)


def bless(runner: Runner, wanted: Sequence[str] = ()) -> Path:
    """Copy each stage's executed notebook and numbers to `outputs/reference/<preset>/`, all of them or none; those
    `wanted` alone (by number or prefix), where any is named.

    A stage that is not done, or no longer what its notebook, parameters and code would give, is an `InputError`; so is
    a file of 1 MB or more. Of the appendices A1 to A8, which `srmir run` leaves out, those that are done come along;
    the others keep the reference they have, and so do the `RECORDS`. `RESULTS.md` is written anew.
    Paths of this machine are made relative to the repository, and of redacted texts not even the beginning is kept.
    """
    tasks = runner.plan(runner.select(everything=True), check_inputs=False)
    needed = runner.select(wanted) if wanted else runner.select()
    states = {result.name: result.state for result in runner.status(tasks)}
    left = [task.name for task in tasks if task.name not in needed and (wanted or states[task.name] != "done")]
    tasks = [task for task in tasks if task.name not in left]
    if wrong := [f"{name} is {states[name]}" for name in needed if states[name] != "done"]:
        raise InputError(f"{', '.join(wrong)}; only a finished run can be a reference: run `srmir run {runner.preset}`")
    target = runner.root / "outputs" / "reference" / runner.preset
    if not tasks:
        found = ", ".join(f"{name} is {states[name]}" for name in left)
        how = "run it (with the same SRMIR_DATA, if it reads that)"
        raise InputError(f"{runner.preset}: nothing to bless; {found}: {how}")
    with atomic_path(target) as fresh:
        drawn = [file for task in tasks for file in (runner.outputs / task.name / "figures").glob("*.png")]
        for name in (*left, *RECORDS):
            if (target / name).is_dir():
                shutil.copytree(target / name, fresh / name)
        for task in tasks:
            (fresh / task.name).mkdir(parents=True)
            for name in (f"{task.name}.ipynb", *KEPT):
                source = runner.outputs / task.name / name
                if source.is_file():
                    with as_written(source):
                        text = _fit_to_keep(source.read_text(encoding="utf8"), runner.root)
                    if len(text.encode()) >= LARGEST:
                        raise InputError(f"{source}: 1 MB or more; print or draw less")
                    (fresh / task.name / name).write_text(text, encoding="utf8")
        for file in drawn:
            if file.name in PICTURES:
                shutil.copyfile(file, fresh / file.parts[-3] / file.name)
    write_results(runner.root)
    return target


def write_results(root: Path) -> Path:
    """Write `RESULTS.md` from `outputs/reference/`, and return its path."""
    with atomic_path(root / "RESULTS.md") as fresh:
        fresh.write_text(results_page(root / "outputs" / "reference"), encoding="utf8")
    return root / "RESULTS.md"


def results_page(reference: Path) -> str:
    """The blessed runs as Markdown: of each notebook where and when it ran, and tables of its main metrics."""
    parts = [INTRODUCTION]
    for file in sorted(reference.glob("*/*/manifest.json"), key=lambda file: (file.parts[-3] != "lab", file.parts)):
        preset, name = file.parts[-3:-1]
        parts.append(f"## {preset}: {name}")
        if name.startswith("A6") and not (reference / "seeds").is_dir():
            parts.append("No seeds are on record (`srmir seeds`), so no claim over seeds is shown.")
        else:
            with as_written(file.parent, fix="restore it, or bless the run again"):
                manifest = read_json(file)
                attempts = manifest.get("attempts", 1)
                again = f" (of the last of {attempts} attempts)" if attempts > 1 else ""
                about = ABOUT.format(**manifest, again=again)
                parts += [about, *map(_markdown, filter(None, _tables(file.parent)))]
    return "\n\n".join(parts) + "\n"


def _tables(folder: Path) -> list[list[dict[str, str]]]:
    """What a notebook measured, as rows ready to print: its policies, or its main metrics; and its claims."""
    metrics, claims, notebook = folder / "metrics.json", folder / "claims.json", folder.name[:2]
    metrics = read_json(metrics) if metrics.is_file() else {}
    shown = {name: text for name, text in _with_intervals(metrics).items() if re.search(MAIN.get(notebook, ""), name)}
    tables = [[{"metric": f"`{name}`", "value": text} for name, text in shown.items()]]
    if notebook == "06":
        policies: dict[str, dict] = {}
        for name, value in metrics.items():
            policies.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = value
        tables = [results_table(policies)]
    if claims.is_file():
        rows = [row | {"estimate": _text(row["estimate"], row["low"], row["high"])} for row in read_json(claims)]
        rows = [row | ({"towns": len(row["seeds"])} if "seeds" in row else {}) for row in rows]
        tables.append([{name: str(row[name]) for name in CLAIM if name in row} for row in rows])
    return tables


def _with_intervals(metrics: dict[str, float]) -> dict[str, str]:
    """Metrics as text, those that are the ends of another's interval shown with it: 0.5 [0.4, 0.6]."""
    found, ends = {}, set()
    for name, value in metrics.items():
        low, high = None, None
        for mark in "/_":
            if {f"{name}{mark}low", f"{name}{mark}high"} <= metrics.keys():
                low, high = f"{name}{mark}low", f"{name}{mark}high"
        ends |= {low, high}
        found[name] = _text(value, metrics.get(low), metrics.get(high))
    return {name: text for name, text in found.items() if name not in ends}


def _text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if low is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _markdown(rows: list[dict[str, str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (rows[0], ["---"] * len(rows[0]), *cells))


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
