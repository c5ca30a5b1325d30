"""The report: what it holds, what it admits is missing, and a real browser reading poisoned model output."""

import fcntl
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from srmir_lib.artifacts import read_json, write_json, write_jsonl
from srmir_lib.errors import InputError
from srmir_lib.evaluation.plots import forest_plot
from srmir_lib.runner.report import build_report, results_table

POISON = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def run(tmp_path):
    """A repository root with a finished 06, a 02 whose figure is only in its notebook, and nothing else."""
    folder = tmp_path / "outputs" / "lab" / "06_evaluation"
    summary = {"goodness": 0.5, "attack_success": 0.72, "tokens": 11.25}
    write_json(
        folder / "results.json",
        {"note": "one seed", "policies": {"base": summary, "linear": summary | {"goodness": 0.75, "utility": 1.0}}},
    )
    write_json(
        folder / "claims.json",
        [{"id": "x", "claim": "it helps", "source": "Cheng & Cao 2025", "estimate": 0.25, "low": 0.1, "high": 0.4,
          "seeds": 1, "control": "base", "verdict": "inconclusive"}],
    )  # fmt: skip
    write_jsonl(
        folder / "samples.jsonl",
        [
            {
                "prompt": f"what? {POISON}",
                "about": POISON,
                "answers": [{"policy": POISON, "response": POISON, "rung": "full"}],
            }
        ],
    )
    write_json(folder / "metrics.json", {"goodness/base": 0.5})
    manifest = {"ok": True, "seconds": 12.5, "started": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2.13.0"}}
    write_json(
        folder / "manifest.json", manifest | {"parameters": {"seed": 7, "note": POISON}, "git_commit": "c0ffee" * 6}
    )
    (folder / "figures").mkdir()
    forest_plot([{"label": "a", "estimate": 0, "low": -1, "high": 1}], "gain").savefig(
        folder / "figures" / "forest.png"
    )
    other = tmp_path / "outputs" / "lab" / "02_shadow_reward_models" / "figures"
    other.mkdir(parents=True)
    shutil.copy(folder / "figures" / "forest.png", other / "curves.png")
    return tmp_path


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.handlers, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.words.append(data)


def parse(path):
    page = Collector()
    page.feed(path.read_text(encoding="utf8"))
    return page, " ".join(page.words)


def test_it_holds_the_table_the_figures_and_the_facts(run):
    page, text = parse(build_report("lab", run))
    for expected in (
        "goodness, harmful",
        "0.750",
        "72.0",
        "it helps",
        "inconclusive",
        "torch 2.13.0",
        "c0ffeec0ff",
        "seed",
    ):
        assert expected in text
    assert page.tags.count("img") == 2, "the forest plot once, and the figure of 02"


def test_missing_stages_are_said_so(run):
    _, text = parse(build_report("lab", run))
    assert "01_data has not run" in text and "04_grpo_linear has not run" in text
    shutil.rmtree(run / "outputs" / "lab" / "06_evaluation")
    _, text = parse(build_report("lab", run))
    assert "06_evaluation has not run: no table" in text


def test_a_preset_has_the_stages_that_it_has_parameters_for(run):
    mine = run / "outputs" / "mine"
    shutil.copytree(run / "outputs" / "lab" / "02_shadow_reward_models", mine / "02_shadow_reward_models")
    (run / "params" / "mine").mkdir(parents=True)
    for name in ("01_data", "02_shadow_reward_models"):
        (run / "params" / "mine" / f"{name}.yaml").write_text("preset: mine\n", encoding="utf8")
    _, text = parse(build_report("mine", run))
    assert "0 of 2 stages" in text and "01_data has not run" in text and "00_tour" not in text
    assert "This preset evaluates no policies" in text and "06_evaluation has not run" not in text


def test_parameters_left_at_the_defaults_stand_apart(run):
    (run / "notebooks").mkdir()
    cell = {"cell_type": "code", "source": "seed: int = 0\nnote: str = ''\nsteps: int = 8\nsizes: list = [1]"}
    cell["metadata"] = {"tags": ["parameters"]}
    write_json(run / "notebooks" / "06_evaluation.ipynb", {"cells": [cell], "metadata": {}})
    file = run / "outputs" / "lab" / "06_evaluation" / "manifest.json"
    told = {"seed": 7, "note": "", "steps": 8, "sizes": [1], "gone": 1}
    write_json(file, read_json(file) | {"parameters": told})
    page = build_report("lab", run).read_text(encoding="utf8")
    changed, _, usual = page.partition("<summary>Parameters</summary>")[2].partition("left at the notebook")
    names = [re.findall(r"<tr><td>(\w+)</td>", part) for part in (changed, usual)]
    assert names == [["seed", "gone"], ["note", "steps", "sizes"]]


def test_a_stage_that_runs_now_is_said_so(run):
    write_json(run / "outputs" / "lab" / ".01_data.work" / "key.json", "key")
    with (run / "outputs" / "lab" / ".01_data.work" / "key.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _, text = parse(build_report("lab", run))
        assert "01_data is running now" in text and "01_data has not run" not in text
    assert "01_data has not run" in parse(build_report("lab", run))[1], "its run was killed"


def test_nothing_active_and_nothing_from_outside(run):
    page, text = parse(build_report("lab", run))
    assert "script" not in page.tags and not page.handlers
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert text.count("document.title='owned'") >= 8, "the poison must be there to be read, as text"
    assert "url(" not in build_report("lab", run).read_text(encoding="utf8")


def test_no_results_and_a_damaged_record_are_clear_errors(run):
    with pytest.raises(InputError, match="run `srmir run smoke` first"):
        build_report("smoke", run)
    earlier = build_report("lab", run).read_text(encoding="utf8")
    (run / "outputs" / "lab" / "02_shadow_reward_models" / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="02_shadow_reward_models/metrics.json: not valid JSON"):
        build_report("lab", run)
    assert (run / "outputs" / "lab" / "report" / "index.html").read_text(encoding="utf8") == earlier


def test_results_table_by_hand():
    rows = results_table({"a": {"attack_success": 0.1234}, "b": {"goodness": 0.5, "unlisted": 3.0}})
    assert rows == [
        {"policy": "a", "goodness, harmful": "–", "attack success, plain (%)": "12.3"},
        {"policy": "b", "goodness, harmful": "0.500", "attack success, plain (%)": "–"},
    ]


def test_an_interval_stands_behind_its_number_and_columns_can_be_chosen():
    summary = {"log_odds": 1.26, "log_odds_low": -0.5, "log_odds_high": 3.0, "tokens": 4.0}
    column = "log-odds of refusing (nats)"
    assert results_table({"a": summary}, ["log_odds"]) == [{"policy": "a", column: "1.3 (-0.5 to 3.0)"}]
    assert list(results_table({"a": summary})[0]) == ["policy", column, "tokens per answer"]


def browse(page, tmp_path, *flags):
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        *flags,
    ]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout


@needs_browser
def test_a_browser_finds_the_table_the_figures_and_no_script(run, tmp_path):
    dom = browse(build_report("lab", run), tmp_path, "--dump-dom")
    assert "<title>SRMIR report: lab</title>" in dom, "a script changed the title: model output was executed"
    assert dom.count("<table") >= 4 and dom.count("<figure") == 2
    assert not re.search(r"<script|<[a-z]+[^>]* onerror=", dom)


@needs_browser
def test_it_fits_a_phone(run, tmp_path):
    """A probe script is added to a copy: the page must not be wider than the window (tables scroll in their box)."""
    page = build_report("lab", run)
    probe = "<script>document.title='width '+document.documentElement.scrollWidth+' of '+innerWidth</script>"
    copy = tmp_path / "probe.html"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf8"))
    copy.write_text(html.replace("</body>", probe + "</body>"), encoding="utf8")
    dom = browse(copy, tmp_path, "--window-size=500,900", "--dump-dom")
    width, window = map(int, re.search(r"width (\d+) of (\d+)", dom).groups())
    assert width <= window, f"the page is {width} px wide in a window of {window} px"


def test_results_are_read_as_strict_json(run):
    path = run / "outputs" / "lab" / "06_evaluation" / "results.json"
    path.write_text(json.dumps({"policies": {}})[:-1], encoding="utf8")
    with pytest.raises(InputError, match="not valid JSON"):
        build_report("lab", run)
