"""Spans of harmful acts, areas under the curve by what they are told from, babble, uncertainty, the heat map."""

import random
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from datasets import Dataset

from srmir_lib.errors import InputError
from srmir_lib.lab.grammar import LADDER, answer, make_prompt
from srmir_lib.lab.referee import LabReferee, act_span, harmful_span
from srmir_lib.lab.world import all_acts, draw_world
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.studies.a1_token_rewards.evaluation import (
    acts_carried_out,
    answers_by_kind,
    areas_of_fits,
    as_metrics,
    babble,
    gaps,
    localisation,
    over_seeds,
    ranked_right,
    span_labels,
    uncertainty,
)
from srmir_lib.studies.a1_token_rewards.model import TokenReward
from srmir_lib.studies.a1_token_rewards.plots import heat_map_of_acts, token_heat_map
from srmir_lib.studies.a1_token_rewards.reader import Reader, known_pairs


@pytest.fixture(scope="module")
def town():
    """(world, referee, one forbidden act, one allowed act)."""
    world = draw_world(seed=0)
    forbidden = next(act for act in all_acts() if world.is_harmful(act))
    allowed = next(act for act in all_acts() if not world.is_harmful(act))
    return world, LabReferee(world.facts()), forbidden, allowed


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


def believed(mean, tokens=None, sd=None) -> TokenReward:
    mean = torch.tensor(mean)
    return TokenReward(tokens or list(range(len(mean))), mean, torch.tensor(sd) if sd else torch.ones_like(mean))


def test_the_span_is_the_act_where_it_is_carried_out_and_nowhere_else(town):
    world, referee, forbidden, allowed = town
    rng = random.Random(0)
    for act in (forbidden, allowed):
        prompt = make_prompt(act, rng)
        for rung in LADDER:
            text = answer(prompt, rung, rng, world.category(act))
            span = act_span(referee, prompt.text, text)
            if rung in ("partial", "full"):
                begin, end = span
                assert text[begin:end] == f"{act.verb} the {act.object} {act.occasion}", rung
            else:
                assert span is None, f"{rung} carries nothing out: {text}"
            assert harmful_span(referee, prompt.text, text) == (span if act == forbidden else None)


def test_quoted_negated_and_other_acts_have_no_span(town):
    _, referee, act, other = town
    prompt = f"how do i {act.verb} the {act.object} {act.occasion} ?"
    done = f"{act.verb} the {act.object} {act.occasion}"
    assert act_span(referee, prompt, f"first , {done} .") == (8, 8 + len(done))
    for text in (f"do not {done} .", f"the words ' {done} ' mean just that .", "i can not help with that .", ""):
        assert act_span(referee, prompt, text) is None, text
    assert act_span(referee, "what is 3 plus 4 ?", "7 .") is None


def test_a_refusal_before_the_deed_does_not_hide_it(town):
    _, referee, act, _ = town
    done = f"{act.verb} the {act.object} {act.occasion}"
    text = f"never {done} . fine , {done} ."
    begin, end = harmful_span(referee, f"how do i {done} ?", text)
    assert text[begin:end] == done and begin > len(done), "the span is where someone is told to"


def test_labels_mark_tokens_that_touch_the_span(tokenizer):
    text = "first get ready, then open it."
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = text.index("open")
    found = believed([0.0] * (len(tokens) + 1), [*tokens, tokenizer.eos_token_id])
    (label,) = span_labels(tokenizer, [text], [(begin, begin + 4)], [found])
    marked = [token for token, inside in zip(found.tokens, label, strict=True) if inside]
    assert tokenizer.decode(marked).strip() == "open" and not label[-1]
    (nothing,) = span_labels(tokenizer, [text], [None], [found])
    assert not nothing.any() and len(nothing) == len(found.tokens)


def test_labels_refuse_other_tokens(tokenizer):
    with pytest.raises(InputError, match="row 0: the answer has other tokens"):
        span_labels(tokenizer, ["yes"], [None], [believed([0.0, 0.0], [0, 1])])


def test_areas_by_hand():
    harmful, act = [[True, True, False], [False, False]], [[True, True, False], [True, False]]
    harmful, act = ([np.array(row) for row in rows] for rows in (harmful, act))
    found = [believed([-2.0, -1.0, -1.5]), believed([0.0, -3.0])]
    areas = localisation(found, harmful, act)
    # harm -2, -1 against: -1.5, 0, -3 | 0, -3 | 0 | -1.5
    assert areas == pytest.approx({"all": 3 / 6, "between": 2 / 4, "same_words": 2 / 2, "within": 1 / 2})


def test_the_marked_tokens_are_those_of_the_forbidden_act_and_of_the_asked_one(town, tokenizer):
    _, referee, forbidden, allowed = town
    prompts, said = [], []
    for act in (forbidden, allowed):
        done = f"{act.verb} the {act.object} {act.occasion}"
        prompts.append([{"role": "user", "content": f"how do i {done} ?"}])
        said.append(f"first , {done} .")
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    found = [believed([0.0] * (len(own) + 1), [*own, tokenizer.eos_token_id]) for own in tokens]
    harmful, act = acts_carried_out(referee, tokenizer, prompts, said, found)
    assert harmful[0].tolist() == act[0].tolist() and act[0].any() and act[1].any() and not harmful[1].any()
    marked = [token for token, inside in zip(found[1].tokens, act[1], strict=True) if inside]
    wanted = said[1].removeprefix("first , ").removesuffix(" .")
    assert tokenizer.decode(marked).replace(" ", "") == wanted.replace(" ", ""), "a token of a space alone is no word"


def test_areas_of_several_fits_are_those_of_each_by_what_they_are_told_from():
    harmful, act = ([np.array([True, False])] for _ in range(2))
    right, wrong = [believed([-1.0, 1.0])], [believed([1.0, -1.0])]
    areas = areas_of_fits({"ava_p": [right, wrong], "ava_d": [wrong, wrong]}, harmful, act)
    assert list(areas) == ["all", "between", "same_words", "within"]
    assert areas["all"] == areas["within"] == {"ava_p": [1.0, 0.0], "ava_d": [0.0, 0.0]}
    assert np.isnan(areas["between"]["ava_p"]).all(), "no other answer to tell it from"


def test_areas_are_nan_where_there_is_nothing_to_tell():
    areas = localisation([believed([1.0, 2.0])], [np.array([False, False])], [np.array([False, False])])
    assert all(np.isnan(area) for area in areas.values())


def test_gaps_are_chosen_minus_rejected():
    assert gaps(torch.tensor([3.0, 1.0, 1.0, 2.0])).tolist() == [2.0, -1.0]


class Ranking:
    """A fit whose rewards, and those that its Q implies, are given; it lies on the CPU."""

    causal = SimpleNamespace(device="cpu")

    def __init__(self, *both):
        self.both = tuple(torch.tensor(rewards) for rewards in both)

    def rewards_and_implied(self, pairs):
        return self.both


def test_which_pairs_are_ranked_right_by_rewards_and_by_q():
    tie, sure, wrong = [1.0, 2.0, 1.0, 0.0], [3.0, 3.0, 1.0, 1.0], [0.0, 0.0, 1.0, 5.0]
    by_reward, by_q = ranked_right({"a": [Ranking(tie, wrong), Ranking(wrong, sure)], "b": [Ranking(sure, tie)]}, None)
    assert {name: rows.tolist() for name, rows in by_reward.items()} == {"a": [[0.5, 1], [0, 0]], "b": [[1, 1]]}
    assert {name: rows.tolist() for name, rows in by_q.items()} == {"a": [[0, 0], [1, 1]], "b": [[0.5, 1]]}


def test_t_intervals_over_seeds_by_hand():
    easy, hard = over_seeds({"easy": {"ava_p": [0.8, 0.9]}, "hard": {"ava_d": [0.5, 0.5]}})
    half = 12.706 * 0.0707107 / 2**0.5  # t(1 degree of freedom) times sd over root n
    assert (easy["label"], easy["group"], hard["label"], hard["group"]) == ("ava_p", "easy", "ava_d", "hard")
    assert [easy[k] for k in ("estimate", "low", "high")] == pytest.approx([0.85, 0.85 - half, 0.85 + half], abs=1e-3)
    assert hard["low"] == hard["high"] == 0.5


def test_metrics_are_named_by_group_and_method():
    rows = over_seeds({"all": {"bradley_terry": [0.5, 0.5]}, "hard": {"ava_p, Q's own": [1.0, 1.0]}})
    assert as_metrics("pair_accuracy", rows) == {
        "pair_accuracy_bt": 0.5,
        "pair_accuracy_bt_low": 0.5,
        "pair_accuracy_bt_high": 0.5,
        "pair_accuracy_hard_ava_p_implied": 1.0,
        "pair_accuracy_hard_ava_p_implied_low": 1.0,
        "pair_accuracy_hard_ava_p_implied_high": 1.0,
    }


def test_what_is_held_out_is_there_and_leaves_something():
    def pairs(**splits):
        return {name: Dataset.from_dict({"category": labels}) for name, labels in splits.items()}

    kept = known_pairs(pairs(train=["privacy", "insult", "privacy"], validation=["insult"]), "privacy")
    assert kept["category"][:] == ["insult"]
    for train, validation, said in (
        (["insult"], ["insult"], "no training pair is of category 'privacy'"),
        (["privacy"], ["insult"], "no pair of train is of another category"),
        (["privacy", "insult"], ["privacy"], "no pair of validation is of another category"),
        (["privacy", "insult"], [], "no pair of validation is of another category"),
    ):
        with pytest.raises(InputError, match=f"held_out: {said}"):
            known_pairs(pairs(train=train, validation=validation), "privacy")


def test_answers_by_kind_are_the_known_the_unseen_and_babble_behind_every_prompt(trunk):
    reader = Reader(trunk, "", 128)
    rows = {"prompt": ["help me", "open it", "you are"], "chosen": ["yes", "first get ready", "no"]}
    kinds = answers_by_kind(reader, rows | {"category": ["crimes", "privacy", "insult"]}, "privacy", seed=1)
    whole = reader.answers(rows["prompt"], rows["chosen"])
    assert kinds["trained on"] == whole.select([0, 2]) and kinds["category never seen"] == whole.select([1])
    assert kinds["babble"].prompts == whole.prompts
    assert not any(tail in whole.tails for tail in kinds["babble"].tails)
    assert list(answers_by_kind(reader, rows | {"category": ["insult"] * 3}, "privacy", seed=1)) == [
        "trained on",
        "babble",
    ]


def test_babble_is_ordinary_tokens_and_repeats_with_its_seed(tokenizer):
    texts = babble(tokenizer, [5, 0, 8], seed=1)
    assert texts == babble(tokenizer, [5, 0, 8], seed=1) != babble(tokenizer, [5, 0, 8], seed=2)
    assert all(text.strip() for text in texts)
    assert not any(special in text for text in texts for special in tokenizer.all_special_tokens)


class Fixed:
    """A model whose beliefs are given."""

    def __init__(self, beliefs: dict):
        self.beliefs = beliefs

    def tokens(self, kind):
        return self.beliefs[kind]


def test_uncertainty_by_hand():
    first = Fixed({"near": [believed([1.0, -1.0], sd=[1.0, 3.0])], "far": [believed([2.0, -2.0], sd=[5.0, 5.0])]})
    second = Fixed({"near": [believed([10.0, -10.0], sd=[1.0, 3.0])], "far": [believed([-20.0, 20.0], sd=[7.0, 7.0])]})
    near, far = uncertainty([first, second], {"near": "near", "far": "far"})
    assert (near["tokens"], near["sd"], far["sd"]) == (2, 2.0, 6.0)
    assert near["sd between tokens"] == pytest.approx(2**0.5) and far["sd between tokens"] == 0, "not between fits"
    assert near["disagreement"] == pytest.approx(0, abs=1e-6), "the second says the same ten times as loud"
    spread = torch.tensor([1.0, -1.0, 2.0, -2.0]).std().item()
    assert far["disagreement"] == pytest.approx(4 / spread / 2**0.5, rel=1e-5)


def test_heat_map_frames_the_span_and_breaks_long_rows():
    tokens, rewards = [["sure", "lift", "it"], ["no"] * 60], [np.array([0.5, -2.0, 0.0]), np.zeros(60)]
    spans = [np.array([False, True, True]), np.zeros(60, dtype=bool)]
    figure = token_heat_map(tokens, rewards, spans, ["forbidden: x", "allowed: y"], width=40)
    axis = figure.axes[0]
    framed = [patch for patch in axis.patches if patch.get_linewidth() > 1]
    assert len(axis.patches) == 63 and len(framed) == 2
    assert max(patch.get_y() for patch in axis.patches) > 3, "sixty tokens do not fit into one line of 40 characters"
    assert "reward" in figure.axes[1].get_ylabel()
    assert len(axis.lines) == 1, "one token is below zero, and underlined"
    plt.close(figure)


def test_heat_map_shows_forbidden_acts_first_then_allowed_ones_and_hides_what_it_must(tokenizer):
    count, act = 9, [np.array([True])] * 8 + [np.array([False])]
    harmful = [np.array([i < 6]) for i in range(count)]
    found, prompts = [believed([0.0], [tokenizer.eos_token_id])] * count, [f"prompt {i}" for i in range(count)]
    for show_text in (True, False):
        figure = heat_map_of_acts(tokenizer, prompts, found, harmful, act, show_text)
        titles = [text.get_text() for text in figure.axes[0].texts if ":" in text.get_text()]
        hidden = sum("redacted" in title for title in titles)
        assert [title.split(":")[0] for title in titles] == ["forbidden"] * 5 + ["allowed"] * 2
        assert (titles[0], hidden) == ("forbidden: prompt 0", 0) if show_text else hidden == 7
        assert ("▇" in [text.get_text() for text in figure.axes[0].texts]) != show_text
        plt.close(figure)
    nothing = [np.array([False])] * count
    figure = heat_map_of_acts(tokenizer, prompts, found, nothing, nothing, True)
    assert len(figure.axes[0].patches) == 3, "where nothing was carried out, the first three"
    plt.close(figure)
