"""The cost study: formulas against counting one by one, peers against the programs they stand for, a fair clock."""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from srmir_lib.conversations import assistant_message, conversation_ids, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.models.trunk import Trunk
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.settings.cost import Shape
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe
from srmir_lib.studies.a5_cost import contestants as peers
from srmir_lib.studies.a5_cost import limits as cost
from srmir_lib.studies.a5_cost.limits import Load, Spread
from srmir_lib.studies.a5_cost.plots import goal_chart, growth_curves
from srmir_lib.studies.a5_cost.training import grpo_trainer, step_seconds, training_ladder

ISSUE = Load(prompt=128, completion=256, group=8, models=7, probe=4)
MINI = Shape(hidden=256, layers=8, heads=4, kv_heads=4, intermediate=768, vocab=8192)
SMALL = Shape(hidden=16, layers=2, heads=4, kv_heads=2, intermediate=24, vocab=320)
LOAD = Load(prompt=14, completion=9, group=3, models=7, probe=4)
PROBE = SizedProbe(text=" harmful : {category} ?", rank=2, alpha=4)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def policy(tokenizer):
    return peers.random_policy(SMALL, tokenizer)


@pytest.fixture(scope="module")
def classifiers(tokenizer):
    return peers.random_classifiers(SMALL, tokenizer, 3)


@pytest.fixture(scope="module")
def shared(policy, tokenizer):
    return peers.random_set(Trunk(policy, tokenizer, batch_tokens=64), 7, PROBE)


@pytest.fixture(scope="module")
def mixed(tokenizer):
    return peers.texts(tokenizer, LOAD, prompts=2, seed=1, shortest=3)


def test_tokens_by_hand():
    load = Load(prompt=10, completion=20, group=2, models=7, probe=1)
    assert cost.separate_tokens(load) == 420, "seven times two texts of thirty"
    assert cost.shared_tokens(load) == 64, "ten, twice twenty, twice seven"
    assert cost.shared_tokens(load, asked=1) == 52 and cost.shared_tokens(load, share=False) == 74


def test_limits_by_tokens_are_those_of_the_goals():
    by_tokens = {name: pair[0] for name, pair in cost.limits(ISSUE, MINI, rank=8).items()}
    assert by_tokens["linear_vs_seven"] == pytest.approx(9.0, abs=0.05)  # 21504 / 2400
    assert by_tokens["routed_vs_seven"] == pytest.approx(9.74, abs=0.01)  # 21504 / 2208
    assert by_tokens["single_over_one"] == pytest.approx(1.07, abs=0.005)  # (384 + 28) / 384
    assert by_tokens["routed_over_linear"] == pytest.approx(0.92)  # 2208 / 2400


def products(shape: Shape, positions, stops: bool = False) -> int:
    """Multiply-adds of all layers on tokens at `positions`, one token, layer, matrix and head at a time."""
    total, size = 0, shape.hidden // shape.heads
    kv = shape.kv_heads * size
    for layer in range(shape.layers):
        for position in positions:
            total += shape.hidden * shape.hidden + 2 * shape.hidden * kv  # queries, keys, values
            if stops and layer == shape.layers - 1:
                continue
            for _ in range(shape.heads):
                total += 2 * size * (position + 1)  # products with the keys so far, and sums over the values
            total += shape.hidden * shape.hidden + 3 * shape.hidden * shape.intermediate
    return total


def test_multiply_adds_against_counting_one_by_one():
    length = LOAD.prompt + LOAD.completion
    assert cost.separate_work(LOAD, SMALL) == 7 * 3 * products(SMALL, range(length))
    trunk = products(SMALL, range(LOAD.prompt), stops=True)
    trunk += 3 * products(SMALL, range(LOAD.prompt, length), stops=True)
    adapters = (
        2 * 4 * 2 * (16 + 16 + 2 * (16 + 8) + 16 + 16 + 2 * (16 + 24) + 24 + 16)
    )  # layers, tokens, rank, in + out
    probe = products(SMALL, range(length, length + 4)) + adapters
    assert cost.shared_work(LOAD, SMALL, rank=2) == trunk + 3 * 7 * probe
    assert cost.shared_work(LOAD, SMALL, rank=2, asked=1) == trunk + 3 * probe
    alone = 3 * products(SMALL, range(length), stops=True)
    assert cost.shared_work(LOAD, SMALL, rank=2, share=False) == alone + 3 * 7 * probe


def test_weights_against_the_models(policy, classifiers, shared):
    assert sum(p.numel() for p in policy.base_model.parameters()) == cost.decoder_weights(SMALL)
    assert sum(p.numel() for p in classifiers[0].parameters()) == cost.decoder_weights(SMALL) + 16, "and a head"
    assert sum(p.numel() for p in shared.scorer.probes.parameters()) == cost.probe_weights(SMALL, 2, 7)


def test_rank_within_a_ratio_by_trying_all():
    for shape, width in ((MINI, 4), (MINI, 2), (SMALL, 4)):
        for ratio in (1.15, 1.6, 3.0):
            trunk = width * cost.decoder_weights(shape)
            fits = [rank for rank in range(1, 200) if trunk + 4 * cost.probe_weights(shape, rank, 7) <= ratio * trunk]
            assert cost.rank_within(shape, 7, ratio, width) == max(fits, default=0), (shape, width, ratio)


def test_step_limit_by_hand():
    assert cost.step_limit(update=2.0, seven=6.0, ratio=6.0) == pytest.approx(8 / 3)
    assert cost.step_limit(update=0.0, seven=1.0, ratio=9.0) == pytest.approx(9.0), "nothing but scoring"


def test_race_runs_all_in_every_round_and_rotates():
    order = []
    seconds = cost.race({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc", "one round to warm up, then each time another one first"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_race_needs_a_round():
    with pytest.raises(InputError, match="rounds: 0"):
        cost.race({"a": int}, rounds=0)


def test_ratio_is_taken_within_rounds():
    assert cost.ratio([6.0, 60.0, 8.0], [1.0, 10.0, 1.0]) == Spread(6.0, 6.0, 7.0)


def test_first_within_takes_the_earliest_that_is_near_what_all_reach():
    assert cost.first_within({"a": [0.70, 0.796, 0.80]}, 0.005) == {"a": 1}
    assert cost.first_within({"a": [0.70, 0.79, 0.80]}, 0.005) == {"a": 2}
    assert cost.first_within({"a": [0.90, 0.70, 0.80]}, 0.005) == {"a": 0}, "more training did not help"
    apart = {"slow": [0.60, 0.70, 0.80], "quick": [0.75, 0.80, 0.90]}
    assert cost.first_within(apart, 0.005) == {"slow": 2, "quick": 1}, "nobody is asked for more than the other has"


def test_rank_flips_counts_pairs_of_texts_by_model():
    scores = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert cost.rank_flips(scores, scores) == 0
    assert cost.rank_flips(scores, torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])) == 3, "all pairs of one model"
    assert cost.rank_flips(scores, torch.tensor([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0]])) == 1


def test_table_row_knows_which_way_is_better():
    faster = cost.table_row("a_vs_b", [3.0, 1.0, 2.0], 12.0, Spread(6.0, 5.0, 7.0), goal=5.5, limit=(9.0, 9.5))
    assert (faster["ours"], faster["peer"], faster["limit, work"], faster["reached"]) == (2.0, 12.0, 9.5, "yes")
    assert cost.table_row("a_over_b", 1.0, 1.0, Spread(1.0, 1.0, 1.0), goal=1.05)["reached"] == "yes"
    assert cost.table_row("a_over_b", 1.1, 1.0, Spread(1.1, 1.1, 1.1), goal=1.05)["reached"] == "no"
    assert cost.table_row("a_vs_b", 1.0, 1.0, Spread(1.0, 1.0, 1.0), goal=None)["reached"] == ""


def hold(megabytes: int):
    """For `peak_bytes`: 5 MB of models, 20 MB of texts, and `megabytes` a row while it runs."""
    models = torch.ones(5 * 250_000)

    def write(rows: int):
        texts = torch.ones(20 * 250_000)
        return lambda: torch.ones(rows * megabytes * 250_000).sum() + models[0] + texts[0]

    return write


@pytest.mark.timeout(300)
def test_peak_counts_what_a_run_takes_at_its_height():
    assert cost.peak_bytes(hold, 40, 4) == pytest.approx(160e6, rel=0.1)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system notes no high-water mark")
def test_the_peak_is_the_systems_own_mark(monkeypatch):
    monkeypatch.setattr(cost._PeakMemory, "_watch", lambda self: pytest.fail("nothing need be sampled"))
    assert peak_of_a_block(0.0) == pytest.approx(64e6, rel=0.1)


def test_where_there_is_no_mark_memory_is_sampled(monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    assert peak_of_a_block(0.05) == pytest.approx(64e6, rel=0.1)


def peak_of_a_block(seconds: float) -> int:
    with cost._PeakMemory() as peak:
        block = np.ones(8_000_000)
        time.sleep(seconds)
        del block
    return peak.most - peak.before


def test_texts_have_exactly_the_asked_lengths(tokenizer, mixed):
    prompts, completions = peers.texts(tokenizer, LOAD, prompts=2)
    assert {len(row) for row in conversation_ids(tokenizer, prompts, completions)} == {14 + 9}
    assert {len(row) for row in conversation_ids(tokenizer, prompts)} == {14}
    assert len(prompts) == 6 and prompts[0] == prompts[2] != prompts[3], "two groups of three"
    lengths = [len(row) for row in conversation_ids(tokenizer, *mixed)]
    assert min(lengths) >= 14 + 3 and max(lengths) <= 14 + 9 and len(set(lengths)) > 1
    with pytest.raises(InputError, match="tokens are left beside the chat template"):
        peers.texts(tokenizer, replace(LOAD, prompt=2), prompts=1)


def test_more_names_than_words_and_too_small_a_vocabulary_are_refused(tokenizer):
    with pytest.raises(InputError, match="models: 99 asked for"):
        peers.category_names(tokenizer, 99)
    with pytest.raises(InputError, match="vocab: 8 is fewer"):
        peers.random_policy(SMALL.changed(vocab=8), tokenizer)


def test_the_peer_scores_as_the_trainer_does(policy, classifiers, tokenizer, mixed):
    prompts, completions = mixed
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = grpo_trainer(policy, tokenizer, list(classifiers), prompts[:1], LOAD, 2, folder, seed=0)
        inputs = [{"prompt": prompt} for prompt in prompts]
        rewards = trainer._calculate_rewards(inputs, prompts, completions, [[]] * len(prompts))
    assert torch.equal(peers.score_as_trl(classifiers, tokenizer, prompts, completions), rewards)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_the_tuned_peer_scores_the_same(classifiers, tokenizer, mixed, batch_tokens):
    tuned = peers.score_tuned(classifiers, tokenizer, *mixed, batch_tokens)
    torch.testing.assert_close(tuned, peers.score_as_trl(classifiers, tokenizer, *mixed), rtol=0, atol=1e-6)


def test_our_scores_are_those_of_peft(shared, mixed):
    ours, theirs = shared.score(*mixed), peers.score_with_peft(shared, *mixed)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert cost.rank_flips(ours, theirs) == 0
    plain = peers.random_set(shared.scorer.trunk, 7, PROBE)
    for up in plain.scorer.probes.up.values():
        up.data.zero_()
    assert (plain.score(*mixed) - ours).abs().max() > 1e-3, "adapters too weak for the comparison to say anything"


def test_contestants_score_the_same_texts(shared, classifiers, tokenizer, mixed):
    runs = peers.contestants(shared, classifiers, tokenizer, *mixed, batch_tokens=64)
    assert set(name for pair in cost.SCORING.values() for name in pair) - set(runs) == {"monitored"}
    scores = shared.score(*mixed)
    own = torch.tensor([0, 0, 0, 1, 1, 1])  # the first prompt is scored by the first model, the second by the second
    torch.testing.assert_close(torch.tensor(runs["linear"]()), scores.mean(dim=1), rtol=0, atol=1e-5)
    for name in ("routed", "watched"):
        torch.testing.assert_close(torch.tensor(runs[name]()), scores[range(6), own], rtol=0, atol=1e-5)
    torch.testing.assert_close(runs["alone"](), scores, rtol=0, atol=1e-5)
    assert runs["seven"]().shape == runs["tuned"]().shape == (6, 3) and runs["one"]().shape == (6, 1)


def test_annotators_give_the_same_margins(policy, tokenizer):
    prompts, answers = peers.texts(tokenizer, replace(LOAD, group=2), prompts=3, seed=2, shortest=3)
    pairs = {"prompt": prompts[::2], "chosen": answers[::2], "rejected": answers[1::2]}
    runs = peers.annotators(policy, tokenizer, pairs, ensemble=2, batch_tokens=64)
    ours, theirs = runs["annotate"](), runs["loop"]()
    assert ours.shape == (3,) and ours.abs().min() > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_an_ensembles_margin_is_its_mean_gap(policy, classifiers, tokenizer):
    prompts, answers = peers.texts(tokenizer, replace(LOAD, group=2), prompts=3, seed=2, shortest=3)
    pairs = {"prompt": prompts[::2], "chosen": answers[::2], "rejected": answers[1::2]}
    sides = [peers.score_as_trl(classifiers, tokenizer, prompts[::2], pairs[side]) for side in peers.SIDES]
    margins = peers.annotate_by_ensemble(classifiers, tokenizer, pairs, batch_tokens=64)
    torch.testing.assert_close(margins, (sides[0] - sides[1]).mean(dim=1), rtol=0, atol=1e-5)


def test_growth_gives_a_ratio_for_every_load(policy, classifiers, tokenizer):
    trunk = Trunk(policy, tokenizer, batch_tokens=64)
    loads = {"one": LOAD, "two": replace(LOAD, group=1, models=2)}
    found = peers.growth(trunk, classifiers[0], loads, PROBE, rounds=2, seed=0)
    assert found.keys() == loads.keys() and all(0 < one.low <= one.median <= one.high for one in found.values())


def test_seven_scores_stand_beside_a_forward_of_the_same_texts(policy, tokenizer):
    trunk = Trunk(policy, tokenizer, batch_tokens=64)
    pair = {"prompt": [user_message("open the door")], "chosen": [assistant_message("no")]}
    pair["rejected"] = [assistant_message("yes the red door is open")]
    seconds, tokens = peers.scores_on_own_model(trunk, pair, [40, 10**6], 3, PROBE, rounds=2)
    lengths = [len(peers.conversation_ids(tokenizer, pair["prompt"], pair[side])[0]) for side in peers.SIDES]
    assert tokens == {"median": round(sum(lengths) / 2), "40": 40}, "no model reads a million tokens"
    assert {name: list(sides) for name, sides in seconds.items()} == dict.fromkeys(tokens, ["scores", "forward"])
    assert all(len(times) == 2 and min(times) > 0 for sides in seconds.values() for times in sides.values())


def test_rows_of_the_base_model_by_hand():
    seconds = {"median": {"scores": [3.0, 4.0, 6.6], "forward": [1.0, 2.0, 3.0]}}
    (row,) = cost.own_model_rows(seconds, {"median": 40}, models=7, probe=10, slack=1.15)
    assert row["metric"] == "scores_over_forward_median" and row["median"] == pytest.approx(2.2)
    assert row["limit, tokens"] == 2.75 and row["goal"] == pytest.approx(1.15 * 2.75) and row["reached"] == "yes"
    (row,) = cost.own_model_rows(seconds, {"median": 40}, models=7, probe=2, slack=1.15)
    assert row["reached"] == "no", "1.15 times 1.35 is less than 2.2"


def test_the_table_in_words_has_units_and_says_which_way_is_better():
    rows = [
        cost.table_row("a_vs_b_mixed", [3.0, 1.0, 2.0], 12.0, Spread(6.0, 5.0, 7.0), goal=5.5, limit=(9.0, 9.5)),
        cost.table_row("peak_growth", 2e7, 1e7, Spread(2.0, 2.0, 2.0), goal=1.05),
        cost.table_row("rank_flips", None, None, Spread(0.0, 0.0, 0.0), goal=None),
    ]
    faster, peak, flips = cost.in_words(rows, {"a_vs_b": "a against b", "peak": "memory"})
    assert faster["what"] == "a against b" and (faster["ours"], faster["peer"]) == ("2 s", "12 s")
    assert (faster["goal"], faster["reached"], faster["limit, work"]) == ("≥ 5.5", "yes", "9.5")
    assert (peak["what"], peak["ours"], peak["goal"], peak["reached"]) == ("memory", "2e+07 bytes", "≤ 1.05", "no")
    assert (flips["what"], flips["ours"], flips["goal"], flips["reached"]) == ("", "", "", "")


def test_scoring_rows_divide_the_slower_by_ours():
    seconds = {"linear": [1.0], "routed": [0.5], "monitored": [0.6], "watched": [1.02], "one": [2.0]}
    seconds |= {"alone": [2.2], "again": [0.9]}
    rows = cost.scoring_rows(seconds | {"seven": [8.0], "tuned": [7.0]}, {}, {"linear_vs_seven": 6.0}, "_mixed")
    found = {row["metric"]: row["median"] for row in rows}
    assert found["linear_vs_seven_mixed"] == 8 and found["linear_vs_tuned_mixed"] == 7
    assert found["routed_vs_seven_mixed"] == 16 and found["categorized_over_linear_mixed"] == pytest.approx(1.02)
    assert found["single_over_one_mixed"] == pytest.approx(1.1) and rows[0]["reached"] == "yes"
    assert found["linear_over_itself_mixed"] == pytest.approx(0.9)


@pytest.mark.timeout(300)
def test_steps_of_both_trainers_are_timed_with_and_without_sampling(policy, classifiers, tokenizer, shared):
    prompts, _ = peers.texts(tokenizer, LOAD, prompts=1)
    sides = {"seven": classifiers, "shared": [RewardFunction(shared, "linear")], "free": [peers.free_reward]}
    steps, work = step_seconds(policy, tokenizer, sides, prompts[:1], LOAD, 2, rounds=2, seed=0)
    assert {name: len(times) for name, times in steps.items()} == dict.fromkeys(sides, 2)
    assert all((work[name] > 0).all() and (work[name] < steps[name]).all() for name in sides)


def test_every_sampled_completion_has_the_asked_length(policy, classifiers, tokenizer):
    prompts, _ = peers.texts(tokenizer, LOAD, prompts=1)
    seen = []

    def reward(completions, completion_ids, **_):
        texts = [completion[0]["content"] for completion in completions]
        again = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        seen.extend(zip(map(len, completion_ids), again, strict=True))
        return [0.0] * len(completions)

    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = grpo_trainer(policy, tokenizer, [reward], prompts[:1], LOAD, 2, folder, seed=0)
        trainer.train()
    assert seen == [(9, 9)] * 3, "nine tokens each, and the same nine when the text is tokenized again"
    assert len(clock.steps) == len(clock.sampling) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("design", ["shared", "separate"])
def test_a_ladder_trains_anew_for_every_budget(trunk, design):
    answers = {"chosen": "the red door is open", "rejected": "no"}
    columns = {
        "prompt": [user_message(f"open the door {at}") for at in range(8)],
        "category": ["insult", "privacy"] * 4,
    }
    columns |= {side: [assistant_message(text)] * 8 for side, text in answers.items()}
    pairs = Dataset.from_dict(columns)
    settings = RewardSettings(
        max_steps=0, batch_size=4, learning_rate=1e-2, lora_rank=2, lora_alpha=4, max_length=96, probe=PROBE
    )
    splits = {"train": pairs, "validation": pairs, "test": pairs}
    rows = training_ladder(design, trunk, splits, ["insult", "privacy"], settings, [1, 12])
    assert [row["updates"] for row in rows] == [1, 12] and all(row["seconds"] > 0 for row in rows)
    assert rows[1]["validation"] == rows[1]["test"] == 1.0, "one answer always beats the other"


def test_growth_curves_draw_measurement_limit_and_separate_models():
    points = {1: Spread(1.0, 0.9, 1.2), 7: Spread(1.3, 1.2, 1.4)}
    figure = growth_curves({"models (K)": points}, {"models (K)": {1: 1.0, 7: 1.1}}, {"models (K)": {1: 1.0, 7: 7.0}})
    axis = figure.axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert drawn["shared, limit"] == [1.0, 1.1] and drawn["separate models (K forwards)"] == [1.0, 7.0]
    assert axis.get_xlabel() == "models (K)" and "forwards" in axis.get_ylabel()


def test_goal_chart_has_a_row_for_every_ratio():
    rows = [
        cost.table_row("a_vs_b", 1.0, 8.0, Spread(8.0, 7.0, 9.0), 6.0, (9.0, 9.5)),
        cost.table_row("c_vs_d", 1.0, 2.0, Spread(2.0, 2.0, 2.0), 3.0),
    ]
    axis = goal_chart(rows).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a_vs_b", "c_vs_d"]
    points = [tuple(np.ravel(line.get_xdata())) for line in axis.lines]
    assert (8.0,) in points and (6.0,) in points and (9.5,) in points, "the ratio, its goal, and its limit"
