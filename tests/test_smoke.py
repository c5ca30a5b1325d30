"""The whole series, tiny, through the real runner: offline, with an empty home, in a copy of the repository."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from test_offline import attempts, offline_environment, without_network

from srmir_lib.artifacts import sha256

ROOT = Path(__file__).resolve().parents[1]
ARTEFACTS = {
    "00_tour": [],
    "01_data": ["prompts", "demonstrations", "preferences", "base_model", "router", "world.json"],
    "02_shadow_reward_models": ["shadow_rms/config.json"],
    "03_margins": ["preferences_with_margins", "calibration.json", "shadow_rms/config.json"],
    "A0_baselines": [
        f"{name}/adapter_model.safetensors"
        for name in ("start", "sft", "dpo", "dpo_limited", "rpo", "best_of_n", "grpo_single", "grpo_referee")
    ],
    "04_grpo_linear": ["policy/adapter_model.safetensors", "policy_own_normalized/history.jsonl", "history.jsonl"],
    "05_grpo_categorized": ["policy/adapter_model.safetensors", "policy_refreshed/history.jsonl", "history.jsonl"],
    "06_evaluation": ["results.json", "claims.json"],
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle")


def srmir(repository: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = offline_environment(repository.parent) | {"SRMIR_ROOT": str(repository)}
    command = [*without_network(), sys.executable, "-m", "srmir_lib", *arguments]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def series(tmp_path_factory):
    """`srmir run smoke --jobs 3` in a copy of the repository; returns (the copy, what the command printed)."""
    repository = tmp_path_factory.mktemp("smoke") / "repository"
    repository.mkdir()
    for name in ("notebooks", "params", "srmir_lib", "pyproject.toml"):
        (repository / name).symlink_to(ROOT / name)
    done = srmir(repository, "run", "smoke", "--jobs", "3")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return repository, done.stdout


@pytest.mark.timeout(1800)
def test_series_runs_with_what_others_wait_for_first_and_ends_with_the_report(series):
    repository, said = series
    order = [line.split(":")[0][:2] for line in said.splitlines() if line.endswith(": running")]
    assert order == ["01", "02", "A0", "00", "03", "04", "05", "06"]
    assert Path(said.splitlines()[-1]) == repository / "outputs/smoke/report/index.html"
    assert Path(said.splitlines()[-1]).is_file()


def test_nothing_tried_to_leave_the_machine(series):
    assert attempts(series[0].parent) == []


@pytest.mark.parametrize("name", ARTEFACTS)
def test_stage_left_its_artefacts_metrics_and_manifest(series, name):
    folder = series[0] / "outputs/smoke" / name
    assert [artefact for artefact in ARTEFACTS[name] if not (folder / artefact).exists()] == []
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics and all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["ok"] and manifest["outputs"] == {key: sha256(folder / key) for key in manifest["outputs"]}
    assert [path.name for pattern in PICKLES for path in folder.rglob(pattern)] == []


def test_no_file_names_the_folder_that_its_stage_worked_in(series):
    files = [path for path in series[0].glob("outputs/smoke/*/**/*") if path.is_file()]
    work = {path: f".{path.relative_to(series[0]).parts[2]}.work".encode() for path in files}
    assert len(files) > 50 and [str(path) for path in files if work[path] in path.read_bytes()] == []


def test_executed_notebooks_hold_no_errors_and_the_figures_they_saved(series):
    for path in series[0].glob("outputs/smoke/*/*.ipynb"):
        text = path.read_text()
        assert '"output_type": "error"' not in text, path.name
        drawn = len(list((path.parent / "figures").glob("*.png")))
        assert text.count('"image/png"') >= drawn, f"{path.name}: saved {drawn} figures, and shows fewer"


def test_appendices_run(series):
    done = srmir(series[0], "run", "smoke", "A1", "A2", "A3", "A7", "--jobs", "2")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    for name, measure in (
        ("A1_bayesian_rewards", "pair_accuracy_ava_p"),
        ("A2_representation_reranking", "rerank_vs_sampling_kept"),
        ("A3_hardness", "gaps_kept_at_start"),
        ("A7_other_reward_models", "spread_within_prompt_pcrm"),
    ):
        assert json.loads((series[0] / "outputs/smoke" / name / "metrics.json").read_text())[measure] > 0


def test_second_run_skips_everything_and_changes_nothing(series):
    repository, _ = series
    before = sha256(repository / "outputs/smoke")
    done = srmir(repository, "run", "smoke")
    assert done.returncode == 0 and done.stdout.count(": skipped") == len(ARTEFACTS)
    assert sha256(repository / "outputs/smoke") == before
