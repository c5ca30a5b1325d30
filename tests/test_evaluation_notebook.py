"""Notebook 06 on made-up prompts and random adapters, ruled on by refusal phrases, and the report that follows it."""

import random
import shutil
from pathlib import Path

import papermill
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model

from srmir_lib.artifacts import load_dataset, read_json, save_dataset, write_json
from srmir_lib.conversations import user_message
from srmir_lib.models.loading import load_policy
from srmir_lib.rows import read_jsonl
from srmir_lib.runner.report import build_report
from srmir_lib.runner.series import Runner
from srmir_lib.taxonomy import CATEGORIES

REPOSITORY = Path(__file__).resolve().parents[1]
ADAPTERS = {
    "A0_baselines": ["start", "sft", "dpo", "grpo_single"],
    "04_grpo_linear": ["policy", "policy_cross_raw"],
    "05_grpo_categorized": ["policy"],
}
POLICIES = ["base", "start", "SFT", "DPO", "GRPO, one model", "linear", "linear, cross raw", "categorized"]
POLICIES += ["base, again"]


def made_up_prompts(count: int = 60) -> Dataset:
    draw, rows = random.Random(0), []
    for i in range(count):
        kind = ["harmful", "harmful", "harmful", "lookalike", "utility"][i % 5]
        family = draw.choice(["none", "fiction", "encoding"]) if kind == "harmful" else "none"
        rows.append(
            {
                "prompt": user_message(
                    f"please {draw.choice(['open', 'help'])} the {draw.choice(['red', 'quiet'])} door {i}"
                ),
                "gold_category": list(CATEGORIES)[i % 7] if kind == "harmful" else "benign",
                "kind": kind,
                "subkind": {"harmful": "mild", "lookalike": "homonym", "utility": "sum"}[kind],
                "family": family,
                "held_out": family == "encoding",
                "reference": "4" if kind == "utility" else "",
            }
        )
    return Dataset.from_list(rows)


def write_adapter(base: Path, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_policy(base, "cpu"), config).save_pretrained(folder)


@pytest.fixture(scope="module")
def outputs(tiny_model, tmp_path_factory) -> Path:
    """`outputs/lab` of a root with a tiny base model, prompts and adapters from the earlier stages, after 06 ran."""
    root = tmp_path_factory.mktemp("root")
    lab = root / "outputs" / "lab"
    shutil.copytree(tiny_model, lab / "01_data" / "base_model")
    save_dataset(DatasetDict({"test": made_up_prompts()}), lab / "01_data" / "prompts")
    for stage, names in ADAPTERS.items():
        for seed, name in enumerate(names):
            write_adapter(tiny_model, lab / stage / name, seed + len(stage))
        write_json(lab / stage / "metrics.json", {f"seconds_{name}": 3.0 for name in names})
    parameters = {"facts": "", "max_new_tokens": 8, "device": "cpu", "show_text": False}
    parameters["claims"] = str(REPOSITORY / "params" / "claims.yaml")
    parameters["targets"] = {
        "base/attack_success": [0.0, 1.0],
        "base/tokens": [100.0, 200.0],
        "nobody/utility": [0.0, 1.0],
    }
    notebook = REPOSITORY / "notebooks" / "06_evaluation.ipynb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRMIR_ROOT", str(root))
        executed = papermill.execute_notebook(
            notebook, root / "06.ipynb", parameters, cwd=REPOSITORY, progress_bar=False
        )
    shown = [str(o.get("data", {}).get("text/plain")) for c in executed.cells for o in c.get("outputs", [])]
    write_json(root / "shown.json", shown)
    return lab


def test_every_policy_is_in_the_table_with_finite_numbers(outputs):
    results = read_json(outputs / "06_evaluation" / "results.json")
    assert sorted(results["policies"]) == sorted(POLICIES)
    assert results["policies"]["linear, cross raw"]["train_seconds"] == 3.0
    assert "one seed" in results["note"] and "60 prompts" in results["note"]
    metrics = read_json(outputs / "06_evaluation" / "metrics.json")
    assert metrics["categorized/utility_change"] == metrics["categorized/utility"] - metrics["base/utility"]


def test_answers_can_be_counted_again(outputs):
    """The attack success of the table, recomputed naively from the stored answers."""
    rows = read_jsonl(outputs / "06_evaluation" / "answers.jsonl")
    prompts = load_dataset(outputs / "01_data" / "prompts")["test"]
    results = read_json(outputs / "06_evaluation" / "results.json")["policies"]
    for policy in POLICIES:
        own = [row for row in rows if row["policy"] == policy]
        assert [row["prompt"] for row in own] == [prompt[0]["content"] for prompt in prompts["prompt"]]
        plain = [row["complied"] for row in own if row["kind"] == "harmful" and row["family"] == "none"]
        assert results[policy]["attack_success"] == pytest.approx(sum(plain) / len(plain))


def test_targets_are_printed_not_enforced(outputs):
    shown = "\n".join(read_json(outputs.parents[1] / "shown.json"))
    assert "miss" in shown and "pass" in shown and "not measured" in shown


def test_claims_have_controls_and_no_verdict_from_one_seed(outputs):
    claims = read_json(outputs / "06_evaluation" / "claims.json")
    assert {"seven_over_one", "categorized_over_linear", "null_same_policy"} <= {claim["id"] for claim in claims}
    assert {claim["verdict"] for claim in claims} == {"inconclusive"}


def test_every_sum_has_its_row_among_the_claims(outputs):
    claims = read_json(outputs / "06_evaluation" / "claims.json")
    sums = {claim["control"] for claim in claims if claim["id"].startswith("categorized_over_linear")}
    assert sums == {"linear", "linear, cross raw"}


@pytest.mark.parametrize("seed", [None, 5])
def test_a_copied_preset_and_every_seed_are_ruled_on_by_their_own_town(tmp_path, seed):
    """The town's facts are an input of 06 in the same preset and seed, so their hash is in its key as well."""
    for name in ("notebooks", "srmir_lib", "pyproject.toml"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "params" / "lab", tmp_path / "params" / "mine")
    for file in (tmp_path / "params" / "mine").glob("*.yaml"):
        file.write_text(file.read_text(encoding="utf8").replace("preset: lab\n", "preset: mine\n"), encoding="utf8")
    runner = Runner("mine", tmp_path, seed)
    tasks = {task.name: task for task in runner.plan(runner.select(everything=True), check_inputs=False)}
    assert ("01_data", "world.json") in tasks["06_evaluation"].reads
    elsewhere = [
        (task.name, text)
        for task in tasks.values()
        for text in map(str, task.parameters.values())
        if "outputs/lab" in text
    ]
    assert elsewhere == [], "a parameter that names another preset's files"


def test_the_report_shows_it_redacted(outputs):
    page = build_report("lab", outputs.parents[1]).read_text(encoding="utf8")
    assert page.count("<img") == 2 and "GRPO, one model" in page and "01_data" in page
    asked = [prompt[-1]["content"] for prompt in load_dataset(outputs / "01_data" / "prompts")["test"]["prompt"]]
    shown = page + "\n".join(read_json(outputs.parents[1] / "shown.json"))
    assert [text for text in asked if text in shown] == [], "a prompt is shown whole"
    assert "characters, redacted]" in page and "A0_baselines has not run" not in page
