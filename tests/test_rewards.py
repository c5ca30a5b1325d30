"""Rewards: the pure functions by hand, the advantages against TRL's own table, and the callable that TRL calls."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import GRPOConfig, GRPOTrainer

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.router import Router
from srmir_lib.errors import InputError, RowError
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.papers.grpo import group_advantages
from srmir_lib.papers.srmir import categorized_reward, linear_reward, tune_weights
from srmir_lib.policies.reward import RandomModels, RandomRouter, RewardFunction, one_by_one
from srmir_lib.reward_models.calibration import Calibration

CATEGORIES = ["insult", "crimes", "privacy"]


class FakeModels:
    """Scores by reading: model j gives `(j + 1) * length of the completion`; `asked` counts rows per model."""

    def __init__(self, calibration: Calibration | None = None, fingerprint: str = ""):
        self.categories, self.calibration, self.fingerprint = CATEGORIES, calibration, fingerprint
        self.asked = dict.fromkeys(CATEGORIES, 0)

    def score(self, prompts, completions, categories=None):
        lengths = torch.tensor([float(len(completion[-1]["content"])) for completion in completions])
        scores = lengths.unsqueeze(1) * torch.tensor([1.0, 2.0, 3.0])
        for name in CATEGORIES:
            self.asked[name] += len(prompts) if categories is None else categories.count(name)
        return scores if categories is None else scores[range(len(prompts)), [CATEGORIES.index(c) for c in categories]]


class FakeRouter:
    """Routes by the first word; counts how often it is asked."""

    classes = ["crimes", "insult", "privacy"]

    def __init__(self):
        self.asked = []

    def route(self, prompts):
        self.asked += prompts
        return [text.split()[0] for text in prompts]

    def probabilities(self, prompts):
        self.asked += prompts
        return torch.tensor([[0.2, 0.5, 0.3]] * len(prompts))


def batch(*pairs):
    return [user_message(prompt) for prompt, _ in pairs], [assistant_message(answer) for _, answer in pairs]


PROMPTS, COMPLETIONS = batch(("insult a", "xx"), ("insult a", "xxxx"), ("privacy b", "x"), ("unknown c", "xx"))
LABELS = ["insult", "insult", "privacy", "unknown"]
Z = Calibration(tuple(CATEGORIES), (1.0, 0.0, 0.0), (2.0, 1.0, 3.0), rows=10)
# Raw scores of the four rows: (2 4 6) (4 8 12) (1 2 3) (2 4 6); calibrated: (.5 4 2) (1.5 8 4) (0 2 1) (.5 4 2).


def test_linear_reward_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, -4.0, 8.0]])
    assert linear_reward(scores, torch.tensor([0.5, 0.25, 0.25])).tolist() == [1.75, 1.0]
    for weights in ([0.5, 0.25, 0.0], [1.5, -0.5, 0.0]):
        with pytest.raises(InputError, match="at least 0 and sum to 1"):
            linear_reward(scores, torch.tensor(weights))


def test_tuned_weights_go_to_the_models_that_know():
    guess = torch.tensor([1.0, -1.0]).repeat(100)
    know = torch.tensor([1.0] * 18 + [-1.0] * 2).repeat(10)  # right in nine of ten pairs, whatever the guess says
    weights = tune_weights(torch.stack([guess, know], dim=1))
    assert weights.sum().item() == pytest.approx(1) and weights[1] > 0.9
    twins = tune_weights(torch.stack([know - 3 * (guess < 0), know - 3 * (guess < 0)], dim=1))
    assert twins.tolist() == pytest.approx([0.5, 0.5], abs=1e-3), "two models that always agree share the weight"


def test_categorized_reward_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 6.0]])
    assert categorized_reward(scores, torch.tensor([2, 0, -1])).tolist() == [3.0, 1.0, 3.0]


def test_group_advantages_by_hand():
    # Group (1, 3): mean 2, std with Bessel's correction sqrt(2). Group (5, 5): no spread, no signal.
    high = 1 / (math.sqrt(2) + 1e-4)
    assert group_advantages(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2).tolist() == pytest.approx([-high, high, 0, 0])


rows = st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8)


@settings(max_examples=50, deadline=None)
@given(rows, st.floats(-10, 10), st.floats(0.5, 10))
def test_advantages_ignore_a_groups_offset_and_under_routing_its_scale(rewards, offset, scale):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    plain = group_advantages(rewards, 4, eps=0.0 if rewards.view(2, 4).std(1).min() > 1e-3 else 1.0)
    assert plain.view(2, 4).sum(1).abs().max() < 1e-6
    if rewards.view(2, 4).std(1).min() > 1e-3:
        moved = torch.cat([rewards[:4] * scale + offset, rewards[4:]])
        assert torch.allclose(group_advantages(moved, 4, eps=0.0), plain, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(rows, st.integers(0, 7))
def test_linear_reward_lies_between_the_lowest_and_highest_score(scores, one):
    scores = torch.tensor([scores])
    assert scores.min() - 1e-3 <= linear_reward(scores, torch.full((8,), 1 / 8)) <= scores.max() + 1e-3
    assert linear_reward(scores, torch.eye(8)[one]) == categorized_reward(scores, torch.tensor([one]))


def test_group_advantages_are_the_trainers(tiny_model, tmp_path):
    """The real trainer, one step; rewards and advantages are read from the table that `log_completions` writes."""
    words = iter(range(1000))
    trainer = GRPOTrainer(
        model=load_policy(tiny_model, "cpu"),
        reward_funcs=[lambda completions, **columns: [math.sin(next(words)) * 3 for _ in completions]],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=12,
            num_generations=4,
            max_completion_length=4,
            max_steps=1,
            log_completions=True,
            num_completions_to_print=0,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": [user_message(f"please {i}") for i in range(3)]}),
        processing_class=load_tokenizer(tiny_model),
    )
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert len(table) == 12 and table["<lambda>"].std() > 0.5
    ours = group_advantages(torch.tensor(table["<lambda>"].to_numpy()), 4)
    assert ours.tolist() == pytest.approx(table["advantage"].tolist(), abs=1e-6)


def test_linear_equal_weights_raw_and_calibrated():
    assert RewardFunction(FakeModels(), calibrated=False)(PROMPTS, COMPLETIONS) == pytest.approx([4, 8, 2, 4])
    expected = [6.5 / 3, 13.5 / 3, 1, 6.5 / 3]
    assert RewardFunction(FakeModels(Z))(PROMPTS, COMPLETIONS) == pytest.approx(expected)
    weighted = RewardFunction(FakeModels(), weights=[0, 0, 1], calibrated=False)
    assert weighted(PROMPTS, COMPLETIONS) == pytest.approx([6, 12, 3, 6])


def test_categorized_asks_only_the_model_that_answers():
    models, router = FakeModels(Z), FakeRouter()
    reward = RewardFunction(models, "categorized", router)
    expected = [0.5, 1.5, 1.0, 6.5 / 3]
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected)
    assert models.asked == {"insult": 3, "crimes": 1, "privacy": 2}, "only the unknown row needs all three models"
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected)
    assert router.asked == ["insult a", "privacy b", "unknown c"], "a prompt is routed once, however often it comes"


def test_categorized_by_label_and_by_gold():
    by_label = RewardFunction(FakeModels(), "categorized", calibrated=False)
    assert by_label(PROMPTS, COMPLETIONS, category=LABELS) == [2, 4, 3, 4]
    oracle = RewardFunction(FakeModels(), "categorized", "gold", calibrated=False)
    gold = ["crimes", "crimes", "benign", "benign"]
    assert oracle(PROMPTS, COMPLETIONS, gold_category=gold) == [4, 8, 2, 4]
    topics = ["insult", "insult", "privacy", "insult"]
    assert oracle(PROMPTS, COMPLETIONS, gold_category=gold, gold_topic=topics) == [4, 8, 3, 2]


def test_soft_routing_weighs_by_probability():
    # The router's order is (crimes, insult, privacy) = (.2, .5, .3); the models' is (insult, crimes, privacy).
    reward = RewardFunction(FakeModels(), "soft", FakeRouter(), calibrated=False)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx([3.6, 7.2, 1.8, 3.6])  # 2 * (.5 + 2 * .2 + 3 * .3) = 3.6


def test_metrics_have_a_name_per_category_and_the_monitor_reads_what_is_not_rewarded():
    def run(step):
        logged = {}
        columns = {"log_metric": logged.__setitem__, "trainer_state": SimpleNamespace(global_step=step)}
        reward(PROMPTS, COMPLETIONS, category=LABELS, **columns)
        return logged

    reward = RewardFunction(FakeModels(), "categorized", calibrated=False, monitor_every=5)
    assert run(3) == {"reward/insult": 3.0, "reward/privacy": 3.0, "unknown": 0.25}
    watched = run(5)
    assert watched["monitor/insult"] == 1.5 and watched["monitor/crimes"] == 4.5 and watched["monitor/privacy"] == 8.0
    reward = RewardFunction(FakeModels(), "linear", calibrated=False, monitor_every=1)
    assert "unknown" not in run(0) and run(0)["reward/insult"] == 6.0


def test_rewards_are_the_same_with_and_without_the_monitor():
    plain, watched = (RewardFunction(FakeModels(Z), "categorized", monitor_every=n) for n in (0, 1))
    columns = {"category": LABELS, "log_metric": lambda name, value: None}
    assert plain(PROMPTS, COMPLETIONS, **columns) == pytest.approx(watched(PROMPTS, COMPLETIONS, **columns))


def test_the_controls_know_nothing_and_are_the_same_again():
    names, prompts = ["insult", "crimes", "privacy"], [f"prompt {i}" for i in range(3000)]
    routed = RandomRouter(names, seed=0).route(prompts)
    assert routed == RandomRouter(names, seed=0).route(prompts) != RandomRouter(names, seed=1).route(prompts)
    assert all(abs(routed.count(name) - 1000) < 100 for name in names)
    answers = ["yes ."] * 1500 + ["no ."] * 1500
    scores = RandomModels(names, seed=0).score(prompts, answers)
    assert scores.shape == (3000, 3)
    assert torch.allclose(scores.mean(0), torch.zeros(3), atol=0.1), "no answer and no model is paid better"
    assert torch.allclose(scores.std(0), torch.ones(3), atol=0.1)
    own = RandomModels(names, seed=0).score(prompts, answers, categories=["crimes"] * 3000)
    assert torch.equal(own, scores[:, 1]), "a model is alone what it is among others"
    paid = RewardFunction(RandomModels(names, seed=0), "categorized", RandomRouter(names, seed=0), calibrated=False)
    assert paid(prompts[:50], answers[:50]) == paid(prompts[:50], answers[:50])


def test_the_fingerprint_holds_all_that_decides_a_reward():
    loud = Calibration(tuple(CATEGORIES), (1.0, 0.0, 0.0), (2.0, 1.0, 3.5), rows=10)
    plain, moved = (Router(["insult", "crimes"], torch.eye(2), bias) for bias in (torch.zeros(2), torch.ones(2)))
    doubtful = Router(["insult", "crimes"], torch.eye(2), torch.zeros(2), threshold=0.5)
    rewards = [
        RewardFunction(models, strategy, router)
        for models in (FakeModels(Z), FakeModels(loud), FakeModels(Z, "retrained"))
        for strategy in ("categorized", "soft")
        for router in (plain, moved, doubtful)
    ] + [RewardFunction(FakeModels(Z), "linear", weights=weights) for weights in (None, [1.0, 0.0, 0.0])]
    rewards += [
        RewardFunction(FakeModels(Z), "linear", calibrated=False),
        RewardFunction(FakeModels(Z), monitor_every=2),
    ]
    assert len({reward.fingerprint for reward in rewards}) == len(rewards) == 22
    again = Router(["insult", "crimes"], torch.eye(2), torch.zeros(2))
    assert RewardFunction(FakeModels(Z), "categorized", again).fingerprint == rewards[0].fingerprint


def test_one_reward_a_model_shares_one_scoring_and_reports_what_their_mean_would():
    models, logged, plain = FakeModels(), [], []
    functions = one_by_one(models, monitor_every=1)
    columns = {"trainer_state": SimpleNamespace(global_step=0), "category": ["insult", "insult", "crimes", "crimes"]}
    paid = [one(PROMPTS, COMPLETIONS, log_metric=lambda *row: logged.append(row), **columns) for one in functions]
    assert paid == [[2, 4, 1, 2], [4, 8, 2, 4], [6, 12, 3, 6]]
    assert models.asked == dict.fromkeys(CATEGORIES, 4), "each row is scored once, not once a function"
    assert [one.__name__ for one in functions] == CATEGORIES
    mean = RewardFunction(FakeModels(), calibrated=False, monitor_every=1)
    mean(PROMPTS, COMPLETIONS, log_metric=lambda *row: plain.append(row), **columns)
    for name, value in plain:
        assert sum(found for key, found in logged if key == name) / 3 == pytest.approx(value), name
    assert functions[0](PROMPTS[:1], COMPLETIONS[:1]) == [2] and models.asked["insult"] == 5, "another batch is scored"
    assert len({one.fingerprint for one in functions}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "none of linear, categorized, soft"),
        ({"strategy": "categorized", "router": "oracle"}, "neither a router nor one of label, gold"),
        ({"strategy": "soft"}, "needs a trained router"),
        ({"calibrated": True}, "no calibration.json"),
        ({"weights": [1.0]}, "1 given for 3"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RewardFunction(FakeModels(), **{"calibrated": False, **options})


def test_bad_columns_are_refused():
    reward = RewardFunction(FakeModels(), "categorized", calibrated=False)
    with pytest.raises(InputError, match="no column category"):
        reward(PROMPTS, COMPLETIONS)
    with pytest.raises(InputError, match="row 1 is 'arson', but there are models only for insult"):
        reward(PROMPTS, COMPLETIONS, category=["insult", "arson", "insult", "insult"])


class Broken(FakeModels):
    """Its score of the answer "bad" is not finite."""

    def score(self, prompts, completions, categories=None):
        for row, completion in enumerate(completions):
            if completion[-1]["content"] == "bad":
                raise RowError("the score of {row} is not finite", row)
        return super().score(prompts, completions, categories)


class Lost(FakeRouter):
    """It cannot read the prompt "insult c"."""

    def route(self, prompts):
        if "insult c" in prompts:
            raise RowError("embedding of {row} is not finite", prompts.index("insult c"))
        return super().route(prompts)


@pytest.mark.parametrize("bad", range(4))
def test_an_error_about_a_routed_row_names_the_row_that_the_caller_gave(bad):
    prompts, completions = batch(*((text, "no") for text in ("unknown a", "insult b", "unknown c", "crimes d")))
    completions[bad] = assistant_message("bad")
    reward = RewardFunction(Broken(Z), "categorized", FakeRouter())
    with pytest.raises(RowError, match=f"the score of row {bad} is not finite") as caught:
        reward(prompts, completions)
    assert caught.value.row == bad


def test_an_error_about_a_prompt_that_is_routed_names_its_first_row():
    prompts, completions = batch(*((f"insult {letter}", "no") for letter in "aabbcc"))
    with pytest.raises(RowError, match="embedding of row 4 is not finite"):
        RewardFunction(FakeModels(Z), "categorized", Lost())(prompts, completions)


def test_models_without_a_fingerprint_are_named_when_a_training_asks_for_it():
    models = FakeModels(Z)
    del models.fingerprint
    with pytest.raises(InputError, match="FakeModels: has no `fingerprint`"):
        RewardFunction(models).fingerprint  # noqa: B018
