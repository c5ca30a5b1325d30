"""Training with TRL's real trainers on a tiny random model: it learns, repeats, resumes, stops, and cleans up."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fit_set import fit_set
from peft import PeftModel
from safetensors.torch import load_file, save_file

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.router import Router
from srmir_lib.errors import InputError
from srmir_lib.models.loading import fingerprint, load_policy, load_tokenizer
from srmir_lib.papers.pcrm import pcrm_dpo_loss
from srmir_lib.policies import training
from srmir_lib.policies.callbacks import distinct_bigrams, log_likelihood
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.policies.training import (
    prompt_order,
    train_dpo,
    train_grpo,
    train_sft,
)
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.rows import read_jsonl
from srmir_lib.settings.policies import DPOSettings, GRPOSettings, SFTSettings
from srmir_lib.settings.reward_training import RewardSettings

COMMON = {
    "learning_rate": 1e-2,
    "lr_scheduler": "constant",
    "max_steps": 6,
    "micro_batch": 8,
    "lora_r": 8,
    "lora_alpha": 16,
    "seed": 3,
    "device": "cpu",
}
GROUP = {
    "prompts_per_step": 2,
    "num_generations": 4,
    "num_iterations": 1,
    "max_completion_length": 6,
    "temperature": 1.0,
    "beta": 0.02,
    "epsilon": 0.2,
    "scale_rewards": "group",
    "loss_type": "grpo",
    "use_bias_correction_kl": True,
    "monitor_every": 2,
    "checkpoint_every": 2,
}
PROMPTS = Dataset.from_list([{"prompt": user_message(f"please help {i}"), "category": "insult"} for i in range(5)])


def grpo(**changes) -> GRPOSettings:
    return GRPOSettings.checked({**COMMON, **GROUP, **changes})


def count_e(prompts, completions, category, **columns):
    """A reward that a random model can earn at once: letters e, and a check that data columns arrive."""
    assert category == ["insult"] * len(prompts) == ["insult"] * len(completions)
    return [float(completion[0]["content"].count("e")) for completion in completions]


def killed_in_the_sixth_call():
    """The steps at which it was called, and a reward as `count_e` that is interrupted once."""
    calls = []

    def reward(**columns):
        calls.append(columns["trainer_state"].global_step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return count_e(**columns)

    reward.__name__ = "count_e"  # the trainer names two of its metrics after the function
    return calls, reward


def numbers(history):
    """A history without its clocks."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "step_time")} for row in history]


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo") / "policy"
    return folder, train_grpo(tiny_model, PROMPTS, count_e, folder, grpo())


def test_grpo_saves_an_adapter_and_its_history_and_nothing_else(undisturbed, tiny_model):
    folder, history = undisturbed
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    for key in ("reward", "kl", "entropy", "completions/mean_length", "num_tokens", "seconds"):
        assert all(math.isfinite(row[key]) for row in history), key
    assert history[0]["kl"] == 0 and history[-1]["kl"] > 0
    assert ["coherence/log_likelihood" in row for row in history] == [True, False] * 3
    assert read_jsonl(folder / "history.jsonl") == history
    assert [path.name for path in folder.parent.iterdir()] == ["policy"], "checkpoints hold pickles and must be gone"
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    moved = [name for name, value in load_file(folder / "adapter_model.safetensors").items() if value.abs().max() > 0]
    assert len(moved) == 2 * 2 * 7, "two LoRA matrices for each of seven linear maps in two layers, all trained"
    policy = load_policy(tiny_model, "cpu", adapter=folder)
    assert policy.peft_config["default"].r == 8


def test_grpo_on_texts_is_grpo_on_messages(undisturbed, tiny_model, tmp_path):
    _, history = undisturbed
    texts = PROMPTS.remove_columns("prompt").add_column("prompt", [row[0]["content"] for row in PROMPTS["prompt"]])
    assert numbers(train_grpo(tiny_model, texts, count_e, tmp_path / "texts", grpo())) == numbers(history)
    with pytest.raises(InputError, match="row 1: prompt is null"):
        train_grpo(tiny_model, Dataset.from_dict({"prompt": ["a", None]}), count_e, tmp_path / "none", grpo())


def test_grpo_raises_the_reward(tiny_model, tmp_path):
    history = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "p", grpo(max_steps=25, prompts_per_step=4, beta=0.0))
    rewards = [row["reward"] for row in history]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(undisturbed, tiny_model, tmp_path):
    _, history = undisturbed
    again = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "again", grpo())
    assert numbers(again) == numbers(history)
    other = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "other", grpo(seed=4))
    assert numbers(other) != numbers(history)


def test_micro_batches_change_nothing_but_memory(undisturbed, tiny_model, tmp_path):
    _, history = undisturbed
    small = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "small", grpo(micro_batch=4, loss_type="dapo"))
    whole = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "whole", grpo(loss_type="dapo"))
    assert small[0]["reward"] == whole[0]["reward"] == history[0]["reward"]
    assert small[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-4)


def test_a_killed_run_resumes_from_a_complete_checkpoint_to_the_same_result(undisturbed, tiny_model, tmp_path):
    folder, history = undisturbed
    calls, killed_at_step_six = killed_in_the_sixth_call()
    with pytest.raises(KeyboardInterrupt):
        train_grpo(tiny_model, PROMPTS, killed_at_step_six, tmp_path / "policy", grpo())
    checkpoints = tmp_path / ".policy.checkpoints"
    assert not (tmp_path / "policy").exists() and (checkpoints / "checkpoint-4" / "complete").is_file()
    assert len(list(checkpoints.glob("checkpoint-*"))) == 2
    # A kill while checkpoint 6 was being written: it is the newest, it is damaged, and it has no mark.
    shutil.copytree(checkpoints / "checkpoint-4", checkpoints / "checkpoint-6")
    (checkpoints / "checkpoint-6" / "complete").unlink()
    (checkpoints / "checkpoint-6" / "adapter_model.safetensors").write_bytes(b"cut")

    calls.clear()
    resumed = train_grpo(tiny_model, PROMPTS, killed_at_step_six, tmp_path / "policy", grpo(), resume=True)
    assert calls == [4, 5], "steps 1 to 4 are not generated again"
    assert numbers(resumed) == numbers(history)
    left, right = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "policy", folder))
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert not checkpoints.exists()


def test_grpo_goes_on_from_an_adapter_which_is_its_reference(undisturbed, tiny_model, tmp_path):
    start, _ = undisturbed
    still = grpo(learning_rate=1e-30, max_steps=2)
    history = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "still", still, start=start)
    begun, ended = (load_file(path / "adapter_model.safetensors") for path in (start, tmp_path / "still"))
    assert begun.keys() == ended.keys() and all(torch.allclose(begun[name], ended[name]) for name in begun)
    assert [row["kl"] for row in history] == [0, 0], "an adapter that does not move is its own reference"
    assert [path.name for path in (tmp_path / "still").iterdir() if path.is_dir()] == [], "the reference is not saved"

    _, killed_at_step_six = killed_in_the_sixth_call()
    whole = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "whole", grpo(), start=start)
    assert whole[0]["kl"] == 0 < whole[-1]["kl"]
    with pytest.raises(KeyboardInterrupt):
        train_grpo(tiny_model, PROMPTS, killed_at_step_six, tmp_path / "policy", grpo(), start=start)
    resumed = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "policy", grpo(), resume=True, start=start)
    assert numbers(resumed) == numbers(whole), "a killed run goes on to the same result"


def test_a_start_of_another_shape_or_none_is_refused(undisturbed, tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"start: .* has lora_r, lora_alpha = \(8, 16\), the settings say \(4, 16\)"):
        train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "p", grpo(lora_r=4), start=undisturbed[0])
    with pytest.raises(InputError, match="start: .*nowhere is no PEFT adapter folder"):
        train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "p", grpo(), start=tmp_path / "nowhere")


def test_a_finished_adapter_is_kept_only_for_the_same_training(undisturbed, tiny_model, tmp_path):
    folder, history = undisturbed
    shutil.copytree(folder, tmp_path / "policy")

    def forbidden(**columns):
        raise AssertionError("trained again")

    assert train_grpo(tiny_model, PROMPTS, forbidden, tmp_path / "policy", grpo(), resume=True) == history
    for prompts, settings in ((PROMPTS, grpo(beta=0.03)), (PROMPTS.select(range(4)), grpo())):
        with pytest.raises(AssertionError, match="trained again"):
            train_grpo(tiny_model, prompts, forbidden, tmp_path / "policy", settings, resume=True)
    assert read_jsonl(tmp_path / "policy" / "history.jsonl") == history, "an earlier adapter stays until the new one is"


def test_new_contents_of_whatever_pays_a_run_or_of_a_base_model_start_it_anew(tiny_model, tmp_path):
    pairs = Dataset.from_list(
        [
            {
                "prompt": user_message(f"help {i}"),
                "chosen": assistant_message("no"),
                "rejected": assistant_message("yes"),
                "category": "insult",
            }
            for i in range(4)
        ]
    )
    folder, router = tmp_path / "set", Router(["insult", "crimes"], torch.eye(2), torch.zeros(2))
    policys, models = (shutil.copytree(tiny_model, tmp_path / name) for name in ("policys", "models"))
    few = RewardSettings(
        max_steps=1, batch_size=4, learning_rate=1e-3, lora_rank=2, lora_alpha=4, max_length=64, cross_ratio=0.0
    )
    fit_set(models, {"train": pairs}, folder, ["insult"], few, design="separate")
    router.route = lambda prompts: ["insult"] * len(prompts)

    def run() -> list[dict]:
        reward = RewardFunction(ShadowRewardModels.load(folder, "cpu"), "categorized", router)
        return train_grpo(policys, PROMPTS, reward, tmp_path / "p", grpo(max_steps=2), resume=True)

    def recalibrate(mean: float) -> None:
        Calibration(("insult",), (mean,), (1.0,), 2).save(folder / "calibration.json")

    def retrain() -> None:
        weights = load_file(folder / "insult" / "adapter_model.safetensors")
        save_file({name: value + 0.01 for name, value in weights.items()}, folder / "insult/adapter_model.safetensors")

    def another(base: Path) -> None:
        weights = load_file(base / "model.safetensors")
        save_file({k: v * 1.01 for k, v in weights.items()}, base / "model.safetensors", {"format": "pt"})

    def rebase() -> None:
        """The same adapters on another base model, as if they had been trained there."""
        another(models)
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | {"base_sha256": fingerprint(models)})

    recalibrate(0.0)
    kept = run()
    assert run() == kept, "nothing has changed, so its clocks are the finished run's"
    for change in (retrain, rebase, lambda: recalibrate(1.0), lambda: router.bias.add_(1.0), lambda: another(policys)):
        change()
        fresh = run()
        assert fresh != kept, "a run with other rewards was taken for this one"
        assert run() == fresh
        kept = fresh


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_the_run(tiny_model, tmp_path, bad):
    def reward(prompts, **columns):
        return [0.0, bad] + [1.0] * (len(prompts) - 2)

    with pytest.raises(InputError, match=f"reward of row 1 is {bad}"):
        train_grpo(tiny_model, PROMPTS, reward, tmp_path / "policy", grpo())
    assert not (tmp_path / "policy").exists()


def test_a_policy_that_breaks_down_stops_the_run(tiny_model, tmp_path):
    settings = grpo(learning_rate=1e30, checkpoint_every=0)
    with pytest.raises(InputError, match="policy: the policy broke down after step 1 .*lower learning_rate"):
        train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "policy", settings)
    assert not (tmp_path / "policy").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tiny_model, tmp_path):
    data = Dataset.from_list([{"prompt": user_message("a"), "completion": assistant_message("b")}])
    settings = SFTSettings(**{**COMMON, "learning_rate": 1e30}, batch_size=8, max_length=64)
    with pytest.raises(InputError, match="sft: loss is nan at step 2; nothing was saved; lower learning_rate"):
        train_sft(tiny_model, data, tmp_path / "sft", settings)
    assert not (tmp_path / "sft").exists()


def test_prompts_come_all_once_before_one_comes_twice():
    order = prompt_order(5, grpo(prompts_per_step=2, max_steps=6))
    assert len(order) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert list(order) == list(prompt_order(5, grpo())) and list(order) != list(prompt_order(5, grpo(seed=4)))
    assert len(prompt_order(5, grpo(num_iterations=2))) == 6, "a batch of completions serves two updates"


def test_a_model_stored_in_bfloat16_trains_in_it_where_the_processor_has_units(tiny_model, tmp_path, monkeypatch):
    model = tmp_path / "model"
    load_policy(tiny_model, "cpu").bfloat16().save_pretrained(model)
    load_tokenizer(tiny_model).save_pretrained(model)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    history = train_grpo(model, PROMPTS, count_e, tmp_path / "policy", grpo())
    assert len(history) == 6 and all(math.isfinite(row["loss"]) for row in history)
    weights = load_file(tmp_path / "policy/adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}, "the adapter stays in single precision"
    assert all(weights[name].any() for name in weights if "lora_B" in name), "and has learned"
    assert load_policy(model, "cpu", adapter=tmp_path / "policy").dtype == torch.bfloat16


def test_several_updates_per_batch_use_the_clipped_ratio(tiny_model, tmp_path):
    settings = grpo(num_iterations=2, learning_rate=0.1, epsilon=0.01)
    history = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "policy", settings)
    assert ["reward" in row for row in history] == [True, False] * 3
    assert history[0]["clip_ratio/region_mean"] == 0 and history[1]["clip_ratio/region_mean"] > 0


def test_sft_learns_the_completions_and_dpo_the_preferences(tiny_model, tmp_path):
    pairs = [
        {
            "prompt": user_message(f"open the door {i}"),
            "completion": assistant_message("I can not answer that"),
            "chosen": assistant_message("I can not answer that"),
            "rejected": assistant_message("first get ready"),
            "category": "crimes",
        }
        for i in range(8)
    ]
    tuning = {**COMMON, "batch_size": 8, "max_length": 64}
    data = Dataset.from_list(pairs)
    sft = train_sft(tiny_model, data, tmp_path / "sft", SFTSettings(**tuning))
    assert len(sft) == 6 and sft[-1]["loss"] < 0.8 * sft[0]["loss"]
    dpo = train_dpo(tiny_model, data, tmp_path / "dpo", DPOSettings(**tuning, beta=0.1))
    assert dpo[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "the policy starts as its own reference"
    assert dpo[-1]["rewards/margins"] > 0.5
    further = train_sft(tiny_model, data, tmp_path / "further", SFTSettings(**tuning), start=tmp_path / "sft")
    assert further[0]["loss"] < sft[-1]["loss"] < sft[0]["loss"], "it goes on where the first one ended"
    more = train_dpo(tiny_model, data, tmp_path / "more", DPOSettings(**tuning, beta=0.1), start=tmp_path / "sft")
    assert more[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "the start is the reference"
    assert [path for path in (tmp_path / "more").iterdir() if path.is_dir()] == [], "the reference is not saved"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dpo", "further", "more", "sft"]
    assert train_sft(tiny_model, data, tmp_path / "sft", SFTSettings(**tuning), resume=True) == sft


def test_dpo_with_limits_is_the_dpo_form_of_pcrm(tiny_model, tmp_path):
    """TRL's loss of the second update against half of our function, from the log-probabilities after the first."""
    answers = [("I can not answer that", "first get ready"), ("no", "open the window then check"), ("I can not", "yes")]
    pairs = Dataset.from_list(
        [
            {"prompt": user_message(f"open {i}"), "chosen": assistant_message(a), "rejected": assistant_message(b)}
            for i, (a, b) in enumerate(answers)
        ]
    )
    limits = [1.0, 2.0, 7.0]
    tuning = {**COMMON, "batch_size": 6, "micro_batch": 6, "max_length": 64, "beta": 0.5, "lr_scheduler": "constant"}
    for steps in (1, 2):
        settings = DPOSettings(**tuning | {"max_steps": steps})
        history = train_dpo(tiny_model, pairs.add_column("limit", limits), tmp_path / str(steps), settings)
    tokenizer, base = load_tokenizer(tiny_model), load_policy(tiny_model, "cpu")
    ratios = {side: [] for side in ("chosen", "rejected")}
    policy = PeftModel.from_pretrained(load_policy(tiny_model, "cpu"), tmp_path / "1").eval()
    for row in pairs:
        start = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
        for side, found in ratios.items():
            ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=False)])
            with torch.no_grad():
                logits = (model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1) for model in (policy, base))
                own, reference = (part.gather(1, ids[0, start:, None]).sum().item() for part in logits)
            found.append(own - reference)
    chosen, rejected = (torch.tensor(found) for found in ratios.values())
    expected = pcrm_dpo_loss(chosen, rejected, torch.tensor(limits), 0.5).item() / 2
    started = pcrm_dpo_loss(torch.zeros(3), torch.zeros(3), torch.tensor(limits), 0.5).item() / 2
    assert history[0]["loss"] == pytest.approx(started, abs=1e-4), "the policy starts as its own reference"
    assert history[1]["loss"] == pytest.approx(expected, abs=1e-3) and abs(expected - started) > 0.01
    for bad in (0.0, math.inf, math.nan):
        with pytest.raises(InputError, match=f"limit: {bad} of pair 1; give every pair a finite number above 0"):
            train_dpo(tiny_model, pairs.add_column("limit", [1.0, bad, 2.0]), tmp_path / "x", settings)


def test_rpo_is_dpo_with_the_loss_of_imitation_beside_it(tiny_model, tmp_path):
    """TRL's loss of the second update, by hand from the log-probabilities after the first."""
    pairs = [("I can not answer that", "first get ready"), ("no", "open the window then check"), ("I can not", "yes")]
    rows = [{"prompt": user_message(f"open {i}"), "chosen": a, "rejected": b} for i, (a, b) in enumerate(pairs)]
    rows = [row | {side: assistant_message(row[side]) for side in ("chosen", "rejected")} for row in rows]
    tuning = {**COMMON, "batch_size": 3, "micro_batch": 3, "max_length": 64, "beta": 0.5, "sft_weight": 0.25}
    for steps in (1, 2):
        settings = DPOSettings(**tuning | {"max_steps": steps})
        history = train_dpo(tiny_model, Dataset.from_list(rows), tmp_path / str(steps), settings)
    policy = PeftModel.from_pretrained(load_policy(tiny_model, "cpu"), tmp_path / "1").eval()
    tokenizer, base, dpo, tokens = load_tokenizer(tiny_model), load_policy(tiny_model, "cpu"), [], []
    for row in rows:
        start, found = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]), {}
        for side in ("chosen", "rejected"):
            ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=False)])
            with torch.no_grad():
                logits = (model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1) for model in (policy, base))
                found[side] = [part.gather(1, ids[0, start:, None]) for part in logits]
        gap = sum(sign * (own - other).sum() for sign, (own, other) in zip((1, -1), found.values(), strict=True))
        dpo.append(math.log1p(math.exp(-0.5 * gap.item())))
        tokens += found["chosen"][0].flatten().tolist()
    imitation = -sum(tokens) / len(tokens)
    assert history[1]["loss"] == pytest.approx(sum(dpo) / 3 + 0.25 * imitation, abs=1e-3) and imitation > 1
    assert history[0]["rewards/margins"] == 0 and history[0]["loss"] > math.log(2) + 0.25
    with pytest.raises(InputError, match="sft_weight: within limits pairs are read swapped as well; set it to 0"):
        train_dpo(tiny_model, Dataset.from_list(rows).add_column("limit", [1.0] * 3), tmp_path / "x", settings)


def test_several_rewards_are_normalised_each_in_its_group_before_they_are_summed(tiny_model, tmp_path, monkeypatch):
    """One pays in ones, the other in hundreds: neither is louder. The advantages are those that the trainer's loss
    gets."""
    small, large = [float(i * i % 5) for i in range(8)], [100.0 * (i * 3 % 7) for i in range(8)]
    seen = []

    class Watched(training.GRPOTrainer):
        def compute_loss(self, model, inputs, *arguments, **options):
            seen.append(inputs["advantages"].tolist())
            return super().compute_loss(model, inputs, *arguments, **options)

    monkeypatch.setattr(training, "GRPOTrainer", Watched)
    monkeypatch.setattr(training, "_save", lambda trainer, *rest: trainer.state.log_history)
    # TRL shuffles the rows of a batch among its micro-batches: here there is one, and their order does not matter
    history = train_grpo(tiny_model, PROMPTS, [lambda **c: small, lambda **c: large], tmp_path / "p", grpo(max_steps=1))
    summed = []
    for group in (range(4), range(4, 8)):
        for paid in (small, large):
            mean = sum(paid[i] for i in group) / 4
            spread = (sum((paid[i] - mean) ** 2 for i in group) / 3) ** 0.5
            summed += [(i, (paid[i] - mean) / (spread + 1e-4)) for i in group]
    sums = [sum(value for i, value in summed if i == row) for row in range(8)]
    spread = (sum(value**2 for value in sums) / 7) ** 0.5  # their mean is 0
    assert sorted(seen[0]) == pytest.approx(sorted(value / spread for value in sums), abs=1e-3)
    plain = [a + b for a, b in zip(small, large, strict=True)]
    assert history[0]["reward"] == pytest.approx(sum(plain) / 16), "the mean of both is reported"
    with pytest.raises(InputError, match="scale_rewards: several rewards are scaled by group, not by batch"):
        train_grpo(tiny_model, PROMPTS, [count_e, count_e], tmp_path / "q", grpo(scale_rewards="batch"))


def test_data_that_cannot_be_trained_on_is_refused(tiny_model, tmp_path):
    settings = SFTSettings(**COMMON, batch_size=8, max_length=4)
    long = Dataset.from_list([{"prompt": user_message("a b c d e"), "completion": assistant_message("f g h")}])
    with pytest.raises(InputError, match=r"max_length: 1 conversations \(100%\) exceed 4 tokens"):
        train_sft(tiny_model, long, tmp_path / "sft", settings)
    with pytest.raises(InputError, match="missing columns: completion"):
        train_sft(tiny_model, PROMPTS, tmp_path / "sft", settings)
    with pytest.raises(InputError, match="missing columns: prompt"):
        train_grpo(tiny_model, PROMPTS.remove_columns("prompt"), count_e, tmp_path / "policy", grpo())
    with pytest.raises(InputError, match="micro_batch: 8 must divide batch_size = 12"):
        train_sft(
            tiny_model, long, tmp_path / "sft", SFTSettings.checked({**COMMON, "batch_size": 12, "max_length": 4})
        )


def test_a_template_without_end_token_is_refused(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "."))
    data = Dataset.from_list([{"prompt": user_message("a"), "completion": assistant_message("b")}])
    with pytest.raises(InputError, match="chat template: .*without the end token '<|end|>'"):
        train_sft(tmp_path / "model", data, tmp_path / "sft", SFTSettings(**COMMON, batch_size=8, max_length=64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": "5e-6"}, "learning_rate = '5e-6': it is text, and must be a number; write 5.0e-6"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0: it must be greater than 0"),
        ({"beta": math.nan}, "beta = nan: it must be a finite number"),
        ({"beta": -1}, "beta = -1: it must be greater than or equal to 0"),
        ({"max_steps": 2.5}, "max_steps = 2.5: it must be a valid integer"),
        ({"max_steps": 0, "seed": -1}, "seed = -1: .*; max_steps = 0: |max_steps = 0: .*; seed = -1: "),
        ({"num_generations": 1}, "num_generations = 1: it must be greater than or equal to 2"),
        ({"loss_type": "bnpo"}, "loss_type = 'bnpo': it must be one of 'grpo' or 'dapo'"),
        ({"use_bias_correction_kl": 1}, "use_bias_correction_kl = 1: it must be a valid boolean"),
        ({"epsilom": 0.2}, "there is no setting epsilom; there are .*epsilon"),
        ({"device": "gpu"}, "device: 'gpu' is none of auto, cpu"),
        ({"micro_batch": 3}, "must divide prompts_per_step . num_generations = 8"),
        ({"num_iterations": 4}, "checkpoint_every: 2 must be a multiple"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as refused:
        grpo(**changes)
    assert "\n" not in str(refused.value)


def test_settings_are_read_from_parameters_of_the_same_names():
    parameters = {**COMMON, **GROUP, "preset": "lab", "variants": ["own"]}
    assert GRPOSettings.of(parameters) == grpo()
    del parameters["seed"]
    with pytest.raises(InputError, match="seed: not given; write a value"):
        GRPOSettings.of(parameters)


def test_distinct_bigrams_by_hand():
    assert distinct_bigrams("a b a b") == 2 / 3  # ab ba ab
    assert distinct_bigrams("no no no no") == 1 / 3
    assert distinct_bigrams("one two three") == distinct_bigrams("one") == distinct_bigrams("") == 1


def test_log_likelihood_equals_one_row_at_a_time_by_the_models_own_loss(tiny_model):
    model, tokenizer = load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model)
    prompts = [tokenizer(text)["input_ids"] for text in ("please help", "open the red door then", "a")]
    answers = [tokenizer(text)["input_ids"] for text in ("first get ready then", "no", "it is done")]
    values = log_likelihood(model, prompts, answers, micro_batch=2)
    for prompt, answer, value in zip(prompts, answers, values, strict=True):
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        assert value.item() == pytest.approx(-loss.item(), abs=1e-5)


def test_the_adapter_names_its_base_model(undisturbed, tiny_model):
    config = json.loads((undisturbed[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model) and config["peft_type"] == "LORA"
