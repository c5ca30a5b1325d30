"""A reward that is learned again while a policy trains: from what the policy says by then, and to the same result when
the training is killed."""

import random
import shutil

import pytest
import torch
from datasets import Dataset
from fit_set import fit_set
from test_training import grpo, numbers

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.conversations import assistant_message, opens_with_refusal, user_message
from srmir_lib.errors import InputError
from srmir_lib.evaluation.training_report import of_one_reward, well_behaved
from srmir_lib.models.generation import generate
from srmir_lib.models.loading import load_policy
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.policies.training import train_grpo
from srmir_lib.reward_models.shadow import ShadowRewardModels, calibrate_sets
from srmir_lib.settings.policies import RefreshSettings
from srmir_lib.settings.reward_training import RewardSettings
from srmir_lib.studies.refreshed import refreshed_reward

NAMES = ["insult", "crimes"]
SETTINGS = RewardSettings(max_steps=8, batch_size=4, learning_rate=1e-2, lora_rank=2, lora_alpha=4, max_length=96)
PROMPTS = Dataset.from_list([{"prompt": user_message(f"please help {i}"), "category": NAMES[i % 2]} for i in range(5)])
ANSWERS = ("i can not answer that .", "first get ready , then open the door .")
DEMONSTRATIONS = Dataset.from_list(
    [
        {
            "prompt": user_message(f"open door {i}"),
            "completion": assistant_message(ANSWERS[i % 2]),
            "category": NAMES[i // 2 % 2],
        }
        for i in range(16)
    ]
)
PREFERENCES = Dataset.from_list(
    [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": assistant_message(f"{origin} {i}"),
            "category": row["category"],
            "origin": origin,
        }
        for i, row in enumerate(DEMONSTRATIONS)
        for origin in ("policy", "shuffled")
    ]
)
SAMPLING = {"max_new_tokens": 6, "temperature": 1.0}
UPDATES = {"max_steps": 5, "learning_rate": 5e-2}


@pytest.fixture(scope="module")
def before(trunk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("before") / "shadow_rms"
    fit_set(trunk, {"train": PREFERENCES}, folder, NAMES, SETTINGS)
    models = ShadowRewardModels.load(folder, trunk)
    calibrate_sets({"": models}, {"": folder}, PREFERENCES["prompt"], PREFERENCES["rejected"])
    return folder


def refreshed(before, trunk, **changes):
    reward = RewardFunction(ShadowRewardModels.load(before, trunk), "categorized")
    taught = DEMONSTRATIONS, {"train": PREFERENCES, "validation": PREFERENCES}
    refresh = RefreshSettings(every=2, prompts=12).changed(**changes)
    return refreshed_reward(reward, before, trunk, *taught, refresh, seed=3, **SAMPLING)


@pytest.fixture(scope="module")
def trained(before, trunk, tiny_model, tmp_path_factory):
    """(the policy's folder, its history, what each refresh learned from and became, the reward)."""
    reward, learned = refreshed(before, trunk), []
    refit = reward.refit

    def noted(pairs, folder):
        learned.append((pairs, refit(pairs, folder)))
        return learned[-1][1]

    reward.refit = noted
    folder = tmp_path_factory.mktemp("grpo") / "policy"
    return folder, train_grpo(tiny_model, PROMPTS, reward, folder, grpo(**UPDATES)), learned, reward


def test_pairs_hold_what_the_policy_says_at_the_refresh(trained, before, trunk, tiny_model, tmp_path):
    _, history, learned, _ = trained
    assert len(learned) == 2, "after the second and the fourth of five updates"
    train_grpo(tiny_model, PROMPTS, refreshed(before, trunk), tmp_path / "four", grpo(**UPDATES | {"max_steps": 4}))
    policies = [load_policy(tiny_model, "cpu"), load_policy(tiny_model, "cpu", adapter=tmp_path / "four")]
    old, fresh = learned[1][0][:16], learned[1][0][16:]
    assert [row["rejected"][0]["content"] for row in old] == [f"shuffled {i}" for i in range(16)]
    assert all(row["chosen"][0]["content"] == ANSWERS[0] for row in fresh), "where help is shown, help is a tie"
    asked = {row["prompt"][0]["content"]: row["rejected"][0]["content"] for row in fresh}
    drawn = [row["prompt"] for row in drawn_at(4)]
    base, said = (generate(policy, trunk.tokenizer, drawn, seed=3 + 4, **SAMPLING) for policy in policies)
    expected = {p[0]["content"]: text for p, text in zip(drawn, said, strict=True) if p[0]["content"] in asked}
    assert expected == asked and base != said
    assert [row.get("refresh/pairs") for row in history] == [None, None, *[len(learned[0][0]) - 16] * 2, len(fresh)]
    assert len(fresh) > 2 and not any(map(opens_with_refusal, asked.values()))


def drawn_at(step: int) -> list[dict]:
    """The twelve demonstrations of a refresh."""
    return random.Random(f"3 {step}").sample(list(DEMONSTRATIONS), 12)


def test_the_models_that_pay_are_others_after_a_refresh_and_calibrated_alike(trained, before, trunk):
    _, _, learned, reward = trained
    first, texts = ShadowRewardModels.load(before, trunk), [row["completion"] for row in DEMONSTRATIONS]
    scores = [models.score(DEMONSTRATIONS["prompt"], texts) for models in (first, learned[0][1], learned[1][1])]
    assert min((scores[i] - scores[j]).abs().max() for i, j in ((0, 1), (1, 2))) > 1e-3
    assert reward.reward.models is learned[1][1]
    for models in (learned[0][1], learned[1][1]):
        responses = [*PREFERENCES.filter(lambda row: row["origin"] == "policy")["rejected"]]
        chosen = PREFERENCES.filter(lambda row: row["origin"] == "policy")
        again = models.calibration.apply(models.score([*chosen["prompt"]] * 2, [*responses, *chosen["chosen"]]))
        assert torch.allclose(again.mean(0), torch.zeros(2), atol=1e-4), "on the validation pairs, as the first were"


def test_a_killed_run_goes_on_with_the_reward_that_it_had(trained, before, trunk, tiny_model, tmp_path):
    folder, history, _, _ = trained
    reward, calls = refreshed(before, trunk), []
    pay = reward.reward

    class Killed:
        models = pay.models

        def __call__(self, *arguments, **columns):
            calls.append(columns["trainer_state"].global_step)
            if len(calls) == 5:
                raise KeyboardInterrupt
            pay.models = self.models
            return pay(*arguments, **columns)

    reward.reward = Killed()
    with pytest.raises(KeyboardInterrupt):
        train_grpo(tiny_model, PROMPTS, reward, tmp_path / "policy", grpo(**UPDATES))
    kept = tmp_path / ".policy.checkpoints" / "refresh-4" / "pairs.json"
    assert read_json(kept), "what a refresh learned from lies beside the checkpoints"
    calls.clear()
    resumed = train_grpo(tiny_model, PROMPTS, reward, tmp_path / "policy", grpo(**UPDATES), resume=True)
    assert calls == [4] and numbers(resumed) == numbers(history)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert train_grpo(tiny_model, PROMPTS, refreshed(before, trunk), folder, grpo(**UPDATES), resume=True) == history


def test_another_refresh_is_another_training(before, trunk):
    plain = refreshed(before, trunk).fingerprint
    assert refreshed(before, trunk).fingerprint == plain
    others = {refreshed(before, trunk, **changes).fingerprint for changes in ({"every": 1}, {"prompts": 3})}
    assert len(others | {plain}) == 3


def test_a_reward_counts_as_followed_up_to_its_first_refresh():
    rows = [{"step": i, "reward": 1.0 + i, "kl": 0.01 * (i > 1), "completions/mean_length": 5.0} for i in range(1, 13)]
    rows += [{"step": i, "reward": -i, "kl": 0.01, "completions/mean_length": 5.0} for i in range(13, 25)]
    marked = rows[:12] + [row | {"refresh/pairs": 7} for row in rows[12:]]
    assert of_one_reward(rows) == rows and of_one_reward(marked) == rows[:12]
    assert well_behaved(marked)["reward rose"] and not well_behaved(rows)["reward rose"]


def test_models_that_new_pairs_cannot_train_are_refused(before, trunk, tmp_path):
    shutil.copytree(before, tmp_path / "set")
    fit = read_json(before / "fit.json")
    fit["key"]["settings"]["objective"] = "margin"
    write_json(tmp_path / "set" / "fit.json", fit)
    with pytest.raises(InputError, match="refreshed: .*set takes an encoder or margins to be trained again"):
        refreshed(tmp_path / "set", trunk)
