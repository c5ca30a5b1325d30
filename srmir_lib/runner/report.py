"""One HTML file that shows a run: main table, forest plot, samples side by side, every stage's figures and numbers.

The file carries everything inside it (styles, pictures) and no script; text that came out of a model is escaped, and
the page's content policy forbids scripts and outside links besides. What did not run is said, never invented. How it
looks stands in `templates/report.html`; here is gathered what it shows.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from srmir_lib.artifacts import as_written, atomic_path, read_json
from srmir_lib.errors import InputError
from srmir_lib.evaluation.measures import HEADINGS
from srmir_lib.rows import read_jsonl
from srmir_lib.runner.manifest import check_times, elapsed
from srmir_lib.runner.notebook import Notebook
from srmir_lib.runner.series import at_work
from srmir_lib.runner.stage import find_root

STAGES = {
    "00_tour": "The method on toy numbers",
    "01_data": "Data from introspection",
    "02_shadow_reward_models": "Shadow reward models",
    "03_margins": "Margins and calibration",
    "04_grpo_linear": "GRPO, linear reward",
    "05_grpo_categorized": "GRPO, categorized reward",
    "A0_baselines": "Baselines",
    "06_evaluation": "Evaluation",
}


CLAIM = ("claim", "source", "measure", "treatment", "control", "estimate", "low", "high", "this_run", "verdict")


def build_report(preset: str, root: str | Path | None = None) -> Path:
    """Write `outputs/<preset>/report/index.html` from what the stages left there, and return its path.

    Reads manifests, metrics, figures and, of 06, `results.json`, `claims.json` and `samples.jsonl`. No output folder
    for the preset is an `InputError`; a missing stage becomes a sentence. Stages are those that the preset has
    parameters for; all, where nobody knows its parameters.
    """
    outputs = (Path(root) if root else find_root()) / "outputs" / preset
    if not outputs.is_dir():
        raise InputError(f"{outputs}: no results of this preset; run `srmir run {preset}` first")
    own = {file.stem for file in (outputs.parents[1] / "params" / preset).glob("*.yaml")} or STAGES.keys()
    part = {name: title for name, title in STAGES.items() if name in own or (outputs / name).is_dir()}
    stages = [_stage(outputs / name, title) for name, title in part.items()]
    results = _evaluation(outputs / "06_evaluation")
    pages = Environment(
        loader=PackageLoader("srmir_lib.runner"), autoescape=True, undefined=StrictUndefined, finalize=_shown
    )
    with as_written(outputs, "a record of a stage is damaged"):
        page = pages.get_template("report.html").render(
            preset=preset, stages=stages, results=results, evaluates="06_evaluation" in part, **_header(stages)
        )
    target = outputs / "report" / "index.html"
    with atomic_path(target) as fresh:
        fresh.write_text(page + "\n", encoding="utf8")
    return target


def results_table(
    policies: Mapping[str, Mapping[str, float]], names: Sequence[str] = tuple(HEADINGS)
) -> list[dict[str, str]]:
    """The main table, one row per policy, ready to print: policy -> summary becomes heading -> text. `names`: of the
    numbers that are wanted.

    Columns that no policy has are left out; a cell that one policy lacks is a dash; an interval stands behind.
    """
    columns = [name for name in names if any(name in summary for summary in policies.values())]
    rows = []
    for policy, summary in policies.items():
        row = {"policy": policy}
        for name in columns:
            heading, factor, decimals = HEADINGS[name]
            found = [factor * summary[key] for key in (name, f"{name}_low", f"{name}_high") if key in summary]
            texts = [f"{value:.{decimals}f}" for value in found] or ["–"]
            row[heading] = texts[0] if len(texts) == 1 else "{} ({} to {})".format(*texts)
        rows.append(row)
    return rows


def _header(stages: Sequence[Mapping]) -> dict:
    """How the stages stand, and what made them."""
    done = [stage["manifest"] for stage in stages if stage["manifest"]]
    return {
        "done": len(done),
        "seconds": sum(manifest.get("seconds") or 0 for manifest in done),
        "elapsed": elapsed((m["started"], m.get("seconds") or 0) for m in done if m.get("started")),
        "commits": sorted({str(m.get("git_commit"))[:10] + (" + changes" if m.get("git_dirty") else "") for m in done}),
        "versions": (done[-1].get("versions") or {}) if done else {},
    }


def _evaluation(folder: Path) -> dict | None:
    """The main table, the forest plot, the claims and the samples; None when 06 has no results."""
    results, claims, samples = _json(folder / "results.json"), _json(folder / "claims.json"), folder / "samples.jsonl"
    if results is None:
        return None
    with as_written(folder):
        return {
            "note": results.get("note", ""),
            "table": results_table(results["policies"]),
            "forest": _pictures(folder).get("forest"),
            "claims": claims and [{name: claim.get(name) for name in CLAIM} for claim in claims],
            "claim_texts": set(CLAIM) - {"estimate", "low", "high"},
            "samples": read_jsonl(samples, ("prompt", "answers")) if os.path.lexists(samples) else None,
        }


def _stage(folder: Path, title: str) -> dict:
    """What a stage left in its folder, if anything."""
    manifest, metrics = _json(folder / "manifest.json"), _json(folder / "metrics.json")
    with as_written(folder):
        if manifest is None:
            state = "no result" if metrics is None else "by hand"
        else:
            state = "done" if manifest.get("ok", True) else "failed"
            check_times(manifest)
        state = "running" if at_work(folder.parent / f".{folder.name}.work") else state
        stage = {"name": folder.name, "title": title, "state": state, "ran": folder.is_dir()}
        stage |= {"parameters": _parameters(folder, (manifest or {}).get("parameters") or {})}
        return stage | {"manifest": manifest or {}, "metrics": metrics, "pictures": _pictures(folder)}


def _parameters(folder: Path, told: dict) -> dict[str, dict]:
    """The parameters that a stage ran with: those that its notebook has another value of, and those as it has them."""
    book = folder.parents[2] / "notebooks" / f"{folder.name}.ipynb"
    notebook = Notebook.load(book) if book.is_file() else None
    usual = json.loads(json.dumps(notebook.parameters({}, book.name))) if notebook else {}
    same = {name: value for name, value in told.items() if name in usual and usual[name] == value}
    changed = {name: value for name, value in told.items() if name not in same}
    return {"Parameters": changed, "Parameters left at the notebook's defaults": same}


def _pictures(folder: Path) -> dict[str, str]:
    """The figures that a stage saved: name -> PNG in base64."""
    files = sorted((folder / "figures").glob("*.png"))
    return {file.stem: base64.b64encode(file.read_bytes()).decode() for file in files}


def _json(path: Path) -> object:
    return read_json(path) if os.path.lexists(path) else None


def _shown(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else value
