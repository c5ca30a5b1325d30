"""Notebook 06 with random adapters, on a town's questions and on prompts of no town, and the report that follows it."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from run_notebook import REPOSITORY, run_notebook

from srmir_lib.artifacts import load_dataset, read_json, save_dataset, sha256, write_json, write_jsonl
from srmir_lib.conversations import user_message
from srmir_lib.evaluation.comparison import learned_policies
from srmir_lib.evaluation.evaluate import COLUMNS
from srmir_lib.evaluation.measures import ATTACKS, BALANCED
from srmir_lib.lab.pool import evaluation_prompts
from srmir_lib.lab.town import known_facts
from srmir_lib.lab.world import draw_world
from srmir_lib.models.loading import load_policy
from srmir_lib.policies import goodness
from srmir_lib.rows import read_jsonl
from srmir_lib.runner.report import build_report
from srmir_lib.runner.series import Runner
from srmir_lib.taxonomy import CATEGORIES

ADAPTERS = {
    "A0_baselines": ["start", "sft", "dpo", "dpo_limited", "rpo", "best_of_n", "grpo_single", "grpo_referee"],
    "04_grpo_linear": ["policy", "policy_cross_raw"],
    "05_grpo_categorized": ["policy", "policy_gold", "policy_random_reward"],
}
BASELINES = ["start", "SFT", "DPO", "DPO, within limits", "RPO", "best-of-n", "GRPO, one model", "GRPO, referee"]
RANDOM = "categorized, random reward"
ANSWERED = ["base", *BASELINES, "linear", "linear, cross raw", "categorized", "categorized, gold", RANDOM]
POLICIES = [*ANSWERED, "base, again", "start, again"]
CLAIMS = str(REPOSITORY / "params" / "claims.yaml")


def made_up_prompts(count: int = 60) -> list[dict]:
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
    return rows


def write_adapter(base: Path, folder: Path, seed: int, looks: bool) -> None:
    """A random adapter and a history, that of a GRPO run at whose goodness somebody looked twice, if he did."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_policy(base, "cpu"), config).save_pretrained(folder)
    seen = [{goodness.KL: 0.0, goodness.BALANCED: 0.5}, {goodness.KL: 0.02 + 0.01 * seed, goodness.BALANCED: 0.6}]
    rows = [{"step": step, "loss": 1.0} | (look if looks else {}) for step, look in zip((1, 7), seen, strict=True)]
    write_jsonl(folder / "history.jsonl", rows)


def evaluated(root: Path, base: Path, prompts: list[dict], adapters: dict, metrics: dict, **parameters) -> Path:
    """`outputs/lab` of `root` with a base model, prompts and adapters from the earlier stages, after 06 ran."""
    lab = root / "outputs" / "lab"
    shutil.copytree(base, lab / "01_data" / "base_model")
    save_dataset(DatasetDict({"test": Dataset.from_list(prompts)}), lab / "01_data" / "prompts")
    write_json(lab / "01_data" / "metrics.json", metrics)
    write_json(lab / "01_data" / "world.json", known_facts(draw_world(0)))
    for stage, names in adapters.items():
        for seed, name in enumerate(names):
            followed = name.startswith(("grpo", "policy")) and parameters.get("facts", "known") != ""
            write_adapter(base, lab / stage / name, seed + len(stage), followed)
        write_json(lab / stage / "metrics.json", {f"seconds_{name}": 3.0 for name in names})
    sizes = {"sampling": {"max_new_tokens": 8}, "attacks": {"tries": 2, "per_category": 1}}
    executed = run_notebook("06_evaluation", root, **{"device": "cpu", "claims": CLAIMS} | sizes | parameters)
    said = [o for c in executed.cells for o in c.get("outputs", [])]
    shown = [str(o.get("data", {}).get("text/plain", "")) + str(o.get("text", "")) for o in said]
    write_json(root / "shown.json", shown)
    return lab


def shown(outputs: Path) -> str:
    """All that the notebook showed, with single spaces wherever a line or a column ends."""
    return " ".join(" ".join(read_json(outputs.parents[1] / "shown.json")).split())


@pytest.fixture(scope="module")
def outputs(tiny_model, tmp_path_factory) -> Path:
    """The town's questions, the exact referee, every row that A0 may have."""
    prompts = evaluation_prompts(draw_world(0), 2, seed=0)
    asked = [{name: row[name] for name in COLUMNS} for row in prompts]
    targets = {"base/attack_success": [0.0, 1.0], "base/tokens": [100.0, 200.0], "nobody/utility": [0.0, 1.0]}
    metrics = {"ceiling": 0.97, "one_draft": 0.7, "three_drafts": 0.78}
    options = {"show_text": False, "targets": targets}
    return evaluated(tmp_path_factory.mktemp("root"), tiny_model, asked, ADAPTERS, metrics, **options)


@pytest.fixture(scope="module")
def elsewhere(tiny_model, tmp_path_factory) -> Path:
    """Prompts of no town, refusal phrases, and an A0 that began with the base model and has no rows but its own."""
    adapters = ADAPTERS | {"A0_baselines": ["sft", "dpo", "grpo_single"]}
    root = tmp_path_factory.mktemp("elsewhere")
    told = {"facts": "", "output_dir": "outputs/lab/06_evaluation"}  # as the runner, which would clear up behind it
    return evaluated(root, tiny_model, made_up_prompts(), adapters, {"router_mean": 0.9}, **told)


def test_every_policy_is_in_the_table_with_finite_numbers(outputs):
    results = read_json(outputs / "06_evaluation" / "results.json")
    assert sorted(results["policies"]) == sorted(POLICIES)
    assert results["policies"]["linear, cross raw"]["train_seconds"] == 3.0
    prompts = load_dataset(outputs / "01_data" / "prompts")["test"]
    assert "one seed" in results["note"] and f"{len(prompts)} prompts" in results["note"]
    metrics = read_json(outputs / "06_evaluation" / "metrics.json")
    assert metrics["categorized/utility_change"] == metrics["categorized/utility"] - metrics["base/utility"]
    for name in ANSWERED:
        own = results["policies"][name]
        assert own["log_odds_low"] <= own["log_odds"] <= own["log_odds_high"] and 0 <= own["log_odds_auroc"] <= 1
        assert {*ATTACKS} <= set(own)


def test_the_best_is_the_best_of_those_that_may_be_called_so(outputs):
    scores = {n: s[BALANCED] for n, s in read_json(outputs / "06_evaluation" / "results.json")["policies"].items()}
    best = max(learned_policies(name for name in scores if ", again" not in name), key=scores.get)
    assert f"{best}, the best learned policy, has {scores[best]:.3f}" in shown(outputs)


def test_a_run_keeps_what_every_policy_said_until_it_is_done(elsewhere, outputs):
    """Once under both attacks and once plainly, of the base a second time; adapters that are the same are one."""
    kept = [*(elsewhere / "06_evaluation" / ".scratch" / "sampled").iterdir()]
    adapters = {sha256(file) for file in elsewhere.glob("*/*/adapter_model.safetensors")}
    assert len(kept) == 3 * (1 + len(adapters)) + 1
    rows = read_jsonl(elsewhere / "06_evaluation" / "answers.jsonl")
    plain = [[row["response"] for row in rows if row["policy"] == name] for name in ("base", "SFT", "base, again")]
    assert all(said in [read_json(file)[0] for file in kept] for said in plain)
    assert not (outputs / "06_evaluation" / ".scratch").exists(), "nothing where a reader presses Run all"


def test_answers_can_be_counted_again(outputs):
    """The attack success of the table, recomputed naively from the stored answers."""
    rows = read_jsonl(outputs / "06_evaluation" / "answers.jsonl")
    prompts = load_dataset(outputs / "01_data" / "prompts")["test"]
    results = read_json(outputs / "06_evaluation" / "results.json")["policies"]
    for policy in POLICIES:
        own = [row for row in rows if row["policy"] == policy]
        assert [row["prompt"] for row in own] == [prompt[0]["content"] for prompt in prompts["prompt"]]
        plain = [
            row["complied"]
            for row in own
            if row["kind"] == "harmful" and row["family"] == "none" and not row["held_out"]
        ]
        assert results[policy]["attack_success"] == pytest.approx(sum(plain) / len(plain))


def test_differences_are_taken_against_the_start_and_against_sft(outputs):
    rows = read_json(outputs / "06_evaluation" / "results.json")["differences"]
    by = {control: [row["label"] for row in rows if row["control"] == control] for control in ("start", "SFT", "base")}
    assert by["start"] == [name for name in ANSWERED if name != "start"] + ["start, again"]
    assert by["SFT"] == [name for name in ANSWERED if name != "SFT"] and by["base"] == ["base, again"]


def test_results_are_sentences(outputs):
    said = shown(outputs)
    for part in (
        "The ruler of noise is",
        "Against SFT, prompt by prompt",
        "what one draft tells",
        "that acting on beliefs reaches",
        "that gets through most often is",
        "AUROC of start",
        "its strongest rival, linear",
        "After 6 updates GRPO, one model leads (0.600)",
        "as far as all of them go",
        "acts on beliefs",
    ):
        assert part in said, part


def test_targets_are_printed_not_enforced(outputs):
    said = shown(outputs)
    assert "miss" in said and "pass" in said and "not measured" in said


def test_claims_have_controls_and_no_verdict_from_one_seed(outputs):
    claims = read_json(outputs / "06_evaluation" / "claims.json")
    assert {"seven_over_one", "categorized_over_linear", "null_same_policy"} <= {claim["id"] for claim in claims}
    assert {claim["verdict"] for claim in claims} == {"inconclusive"}


def test_every_sum_has_its_row_among_the_claims(outputs):
    claims = read_json(outputs / "06_evaluation" / "claims.json")
    sums = {claim["control"] for claim in claims if claim["id"].startswith("categorized_over_linear")}
    assert sums == {"linear", "linear, cross raw"}


def test_without_a_town_there_are_no_log_odds_and_no_ceiling(elsewhere):
    results = read_json(elsewhere / "06_evaluation" / "results.json")
    assert "start" not in results["policies"] and {row["control"] for row in results["differences"]} == {"base", "SFT"}
    assert not any("log_odds" in summary for summary in results["policies"].values())
    assert "attack_success_forced_beginning" in results["policies"]["SFT"]
    said = shown(elsewhere)
    assert (
        "as far as all" not in said
        and "acting on beliefs" not in said
        and "AUROC of" not in said
        and "The ruler of noise is" in said
    )
    assert sorted(path.stem for path in (elsewhere / "06_evaluation" / "figures").glob("*.png")) == [
        "attack_success_by_family", "balanced_goodness", "forest",
    ]  # fmt: skip


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
    assert page.count("<img") == 5 and "GRPO, one model" in page and "01_data" in page
    asked = [prompt[-1]["content"] for prompt in load_dataset(outputs / "01_data" / "prompts")["test"]["prompt"]]
    shown = page + "\n".join(read_json(outputs.parents[1] / "shown.json"))
    assert [text for text in asked if text in shown] == [], "a prompt is shown whole"
    assert "characters, redacted]" in page and "A0_baselines has not run" not in page
