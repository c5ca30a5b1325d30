"""What a preset will take: shapes against real models, work against arithmetic by hand, and refusals."""

from pathlib import Path

import pytest
import torch
from conftest import write_tiny_model

from srmir_lib.cli import main
from srmir_lib.errors import InputError
from srmir_lib.models import plan
from srmir_lib.models.loading import load_policy
from srmir_lib.models.plan import PROMPT, QUESTION, Size, Work, check_fits, plan_of, policy, size_of, told, training
from srmir_lib.runner.series import Runner

ROOT = Path(__file__).resolve().parents[1]
SMALL = Size(weights=1000, layers=2, width=8, vocabulary=50, kv=32)
RULES = {"prompts_per_step": 3, "num_generations": 4, "max_completion_length": 20, "micro_batch": 6}
RULES |= {"gradient_checkpointing": False}


def test_a_shape_is_that_of_the_loaded_model(tiny_model):
    model, size = load_policy(tiny_model, "cpu"), size_of(str(tiny_model))
    assert size.weights == sum(weight.numel() for weight in model.parameters())
    cache = model(torch.zeros(1, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(part.numel() for layer in cache.layers for part in (layer.keys, layer.values))
    assert 7 * size.kv == held and (size.layers, size.width) == (2, 32)


def test_grpo_by_hand():
    work = policy(RULES, 5, SMALL, 4, models=7)
    answers, length = 12, PROMPT + 20
    assert work.sampled == 5 * answers * 20 and work.trained == 5 * answers * length
    assert work.read == 5 * answers * (2 * length + 7 * QUESTION)
    assert work.operations(1000) == {
        "read": 2000 * work.read,
        "trained": 6000 * work.trained,
        "sampled": 2000 * work.sampled,
    }
    kept = 6 * length * (2 * 8 * 16 * 4 + 500)
    assert work.holds == max(kept, 12 * length * 32 * 4)
    less = policy(RULES | {"gradient_checkpointing": True}, 5, SMALL, 4)
    assert less.holds < work.holds


def test_works_add_up_and_hold_the_most_of_both():
    assert Work(1, 2, 3, 9) + Work(10, 20, 30, 5) == Work(11, 22, 33, 9)
    assert training(100, 3, RULES, 10, SMALL, 2).trained == 300


@pytest.mark.parametrize("preset", ["smollm2", "smollm2-full", "qwen2.5-0.5b", "llama-3.1-8b"])
def test_every_notebook_of_the_real_presets_has_a_row(preset, tmp_path, monkeypatch):
    model = write_tiny_model(tmp_path / "model")
    runner = Runner(preset)
    tasks = runner.plan(runner.select(), check_inputs=False)
    monkeypatch.setattr(plan, "measured_rate", lambda *_: 1e12)
    rows = plan_of({task.name: task.parameters for task in tasks}, str(model), "cpu")
    assert [row["notebook"] for row in rows] == [task.name for task in tasks]
    assert all(row["seconds"] > 0 and row["memory"] > plan.BASE for row in rows)
    assert all(row["sampled"] > 0 for row in rows if row["notebook"][:2] in ("01", "A0", "04", "05", "06"))


def test_more_processes_take_less_time_and_larger_batches_more_memory(tmp_path, monkeypatch):
    model = str(write_tiny_model(tmp_path / "model"))
    monkeypatch.setattr(plan, "measured_rate", lambda *_: 1e12)
    runner = Runner("smollm2")
    (task,) = runner.plan(["04_grpo_linear"], check_inputs=False)
    (one,) = plan_of({task.name: task.parameters}, model, "cpu")
    (two,) = plan_of({task.name: task.parameters | {"num_processes": 2}}, model, "cpu")
    assert two["seconds"] == pytest.approx(one["seconds"] / 2)
    assert two["memory"] == 2 * one["memory"], "of one machine"
    large = task.parameters | {"training": task.parameters["training"] | {"micro_batch": 32}}
    assert plan_of({task.name: large}, model, "cpu")[0]["memory"] > one["memory"]


def test_a_lora_rival_takes_training_and_weights_of_its_own(tmp_path):
    runner = Runner("smollm2")
    tasks = {
        task.name: task.parameters for task in runner.plan(["01_data", "02_shadow_reward_models"], check_inputs=False)
    }
    own = tasks["02_shadow_reward_models"]
    two, none = (plan.of_reward_models(own | {"lora": names}, SMALL, 4, tasks) for names in (["a", "b"], []))
    texts = 2 * own["training"]["batch_size"]
    assert two.trained - none.trained == 2 * own["max_steps"] * texts * 2 * PROMPT and two.read == none.read
    large = Size(weights=2 * 10**9, layers=2, width=8, vocabulary=50, kv=32)
    held = plan.of_reward_models(own | {"lora": ["a"], "labelled": ""}, large, 2, tasks).holds
    assert held == 8 * 10**9 + texts * 2 * PROMPT * 2 * 8 * plan.KEPT * 4, "more than what the trunk may keep"


def test_a_table_and_what_does_not_fit():
    row = {"notebook": "04_grpo_linear", "read": 1.5e6, "trained": 2e6, "sampled": 3e5, "memory": 5e9, "seconds": 600}
    text = told([row], {"04_grpo_linear": {"peak_memory_mb": 2100, "seconds": 720, "cpu": "X"}})
    assert "1,500    2,000      300" in text and "5.0 GB    10 min   measured: 2.1 GB, 12 min on X" in text
    assert "in all about 0.2 hours here, were nothing else at work, 5.0 GB" in text
    check_fits([row], 6e9)
    with pytest.raises(InputError, match="memory: 04_grpo_linear 5.0 GB, and there are 4.0 GB; lower micro_batch"):
        check_fits([row], 4e9)


def test_a_measured_rate_is_one():
    rate = plan.measured_rate(64, "float32", torch.device("cpu"), 0.05)
    assert 1e7 < rate < 1e14


@pytest.mark.parametrize("preset", ["lab", "realdata"])
def test_a_preset_without_a_real_causal_model_is_one_line(preset, capsys):
    assert main(["plan", preset]) == 2
    assert f"{preset}: no real causal model (base_model of 02) to plan for" in capsys.readouterr().err


def test_a_preset_of_other_prompts_than_a_chat_models_is_one_line(tiny_model, tmp_path, monkeypatch, capsys):
    """How many pairs a file of one's own has, a plan does not know."""
    (tmp_path / "params" / "mine").mkdir(parents=True)
    for name in ("notebooks", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    own = {"01_data": "prompt_source: own\npreferences: pairs.jsonl"}
    own["02_shadow_reward_models"] = f"base_model: {tiny_model}"
    for name, told_there in own.items():
        (tmp_path / "params" / "mine" / f"{name}.yaml").write_text(f"preset: mine\n{told_there}\n")
    monkeypatch.setenv("SRMIR_ROOT", str(tmp_path))
    assert main(["plan", "mine"]) == 2
    assert "mine: only the work of prompt_source chat (01) can be counted" in capsys.readouterr().err
