"""One HTML file that shows a run: main table, forest plot, samples side by side, every stage's figures and numbers.

The file carries everything inside it (styles, pictures) and no script; text that came out of a model is escaped, and
the page's content policy forbids scripts and outside links besides. What did not run is said, never invented.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from srmir_lib.artifacts import atomic_path, read_json, read_jsonl
from srmir_lib.errors import InputError
from srmir_lib.evaluation.measures import HEADINGS
from srmir_lib.runner.manifest import elapsed
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


STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#666;--paper:#fff;--line:#ddd;--card:#f6f6f4}
@media(prefers-color-scheme:dark){:root{--ink:#e8e6e3;--soft:#a5a29d;--paper:#181a1b;--line:#3a3d3f;--card:#222527}}
*{box-sizing:border-box}body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}h1{font-size:1.6rem;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.2rem 0 .5rem;border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,figcaption,summary{color:var(--soft)}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.82rem}
th,td{padding:.3rem .5rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;overflow-wrap:normal}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
td.text,th.text{text-align:left;min-width:6.5rem;overflow-wrap:break-word}figure{margin:1rem 0}
figure img{max-width:100%;height:auto;background:#fff;padding:.4rem;border:1px solid var(--line)}
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.6rem}
.answer{background:var(--card);padding:.5rem .7rem;border-left:3px solid var(--line);font-size:.85rem}
.answer span{white-space:pre-wrap}
.answer b{display:block}.answer i{color:var(--soft);display:block}.missing{font-style:italic}
@media print{body{max-width:none;font-size:10pt}h2,h3{break-after:avoid}figure,.answer,tr{break-inside:avoid}
.wide{overflow:visible}details::details-content{content-visibility:visible;height:auto}
table{font-size:6.5pt}th,td{padding:.1rem .2rem}}
"""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def build_report(preset: str, root: str | Path | None = None) -> Path:
    """Write `outputs/<preset>/report/index.html` from what the stages left there, and return its path.

    Reads manifests, metrics, figures and, of 06, `results.json`, `claims.json` and `samples.jsonl`. No output folder
    for the preset is an `InputError`; a missing stage becomes a sentence.
    """
    outputs = (Path(root) if root else find_root()) / "outputs" / preset
    if not outputs.is_dir():
        raise InputError(f"{outputs}: no results of this preset; run `srmir run {preset}` first")
    body = [_header(preset, outputs), _evaluation(outputs / "06_evaluation")]
    body += [_stage(outputs / name, title) for name, title in STAGES.items()]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>SRMIR report: {escape(preset)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    target = outputs / "report" / "index.html"
    with atomic_path(target) as fresh:
        fresh.write_text(page, encoding="utf8")
    return target


def results_table(policies: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    """The main table, one row per policy, ready to print: policy -> summary becomes heading -> text.

    Columns that no policy has are left out; a cell that one policy lacks is a dash.
    """
    columns = [name for name in HEADINGS if any(name in summary for summary in policies.values())]
    return [
        {"policy": policy}
        | {
            HEADINGS[name][0]: f"{HEADINGS[name][1] * summary[name]:.{HEADINGS[name][2]}f}" if name in summary else "–"
            for name in columns
        }
        for policy, summary in policies.items()
    ]


def table_html(rows: Sequence[Mapping[str, object]], text_columns: Sequence[str] = ()) -> str:
    """Rows with the same keys as an HTML table that scrolls on a narrow screen; everything escaped."""
    if not rows:
        return ""

    def cell(tag: str, name: str, value: object) -> str:
        return f"<{tag}{' class=text' if name in text_columns else ''}>{escape(_text(value))}</{tag}>"

    head = "".join(cell("th", name, name) for name in rows[0])
    lines = "".join(f"<tr>{''.join(cell('td', n, v) for n, v in row.items())}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _header(preset: str, outputs: Path) -> str:
    manifests = {name: _manifest(outputs / name) for name in STAGES}
    done = [manifest for manifest in manifests.values() if manifest]
    rows = [
        {
            "stage": name,
            "state": _state(outputs / name, manifest),
            "started": (manifest or {}).get("started", "–"),
            "seconds": (manifest or {}).get("seconds", "–"),
            "peak memory (MB)": (manifest or {}).get("peak_memory_mb", "–"),
        }
        for name, manifest in manifests.items()
    ]
    total = sum(manifest.get("seconds") or 0 for manifest in done)
    passed = elapsed(
        (manifest["started"], manifest.get("seconds") or 0) for manifest in done if manifest.get("started")
    )
    facts = f"{len(done)} of {len(STAGES)} stages, {total:,.0f} seconds in all, {passed:,.0f} elapsed."
    commits = sorted({str(m.get("git_commit"))[:10] + (" + changes" if m.get("git_dirty") else "") for m in done})
    facts += f" Code: {', '.join(commits)}." if commits else ""
    versions = dict(done[-1].get("versions") or {}) if done else {}
    shown = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    return (
        f"<h1>SRMIR report: {escape(preset)}</h1><p>{escape(facts)}</p>"
        f"{table_html(rows)}<p>{escape('Versions: ' + shown if shown else '')}</p>"
    )


def _evaluation(folder: Path) -> str:
    """The main table, the forest plot, the claims and the samples, or one sentence when 06 has no results."""
    if not (folder / "results.json").is_file():
        return '<h2>Results</h2><p class="missing">06_evaluation has not run: no table, no forest plot, no samples.</p>'
    results = read_json(folder / "results.json")
    parts = [f"<h2>Results</h2><p>{escape(str(results.get('note', '')))}</p>"]
    parts.append(table_html(results_table(results["policies"])))
    parts.append(_figures({"forest": _pictures(folder).get("forest")}))
    if (folder / "claims.json").is_file():
        claims = [{name: claim.get(name) for name in CLAIM} for claim in read_json(folder / "claims.json")]
        parts.append("<h3>Claims that this run can speak about</h3>")
        parts.append(table_html(claims, [name for name in CLAIM if name not in ("estimate", "low", "high")]))
    if (folder / "samples.jsonl").is_file():
        parts.append("<h2>Samples side by side</h2>")
        parts += [_sample(sample) for sample in read_jsonl(folder / "samples.jsonl", ("prompt", "answers"))]
    return "".join(parts)


def _sample(sample: Mapping) -> str:
    """One prompt and every policy's answer: {"prompt", "about", "answers": [{"policy", "response", "rung"}]}."""
    answers = "".join(
        f'<div class="answer"><b>{escape(a["policy"])}</b><span>{escape(a["response"])}</span>'
        f"<i>{escape(a.get('rung', ''))}</i></div>"
        for a in sample["answers"]
    )
    about = escape(str(sample.get("about", "")))
    return f'<h3>{escape(sample["prompt"])}</h3><p>{about}</p><div class="answers">{answers}</div>'


def _stage(folder: Path, title: str) -> str:
    head = f'<h2 id="{folder.name}">{folder.name[:2]} · {escape(title)}</h2>'
    if not folder.is_dir():
        return f'{head}<p class="missing">{folder.name} has not run in this preset.</p>'
    # The forest plot already stands at the top.
    parts = [head, _figures({name: data for name, data in _pictures(folder).items() if name != "forest"})]
    if (folder / "metrics.json").is_file():
        metrics = [{"metric": name, "value": value} for name, value in read_json(folder / "metrics.json").items()]
        parts.append(_folded(f"Metrics ({len(metrics)})", table_html(metrics)))
    parameters = (_manifest(folder) or {}).get("parameters") or {}
    rows = [{"parameter": name, "value": value} for name, value in parameters.items()]
    parts.append(_folded("Parameters", table_html(rows, ("value",))) if rows else "")
    return "".join(parts)


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _figures(pictures: Mapping[str, bytes | None]) -> str:
    """Pictures as data inside the page, each under its name; `None` is left out."""
    return "".join(
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{escape(name.replace('_', ' '))}</figcaption></figure>"
        for name, data in pictures.items()
        if data
    )


def _pictures(folder: Path) -> dict[str, bytes]:
    """The figures that a stage saved: name -> PNG."""
    return {path.stem: path.read_bytes() for path in sorted((folder / "figures").glob("*.png"))}


def _manifest(folder: Path) -> dict | None:
    return read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else None


def _state(folder: Path, manifest: dict | None) -> str:
    if manifest is None:
        return "by hand" if (folder / "metrics.json").is_file() else "no result"
    return "done" if manifest.get("ok", True) else "failed"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
