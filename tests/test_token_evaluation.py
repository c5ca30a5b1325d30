"""Spans of harmful acts, areas under the curve by what they are told from, babble, uncertainty, the heat map."""

import random

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from srmir_lib.errors import InputError
from srmir_lib.lab.grammar import LADDER, answer, make_prompt
from srmir_lib.lab.referee import LabReferee, act_span, harmful_span
from srmir_lib.lab.world import all_acts, draw_world
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.studies.a1_token_rewards.evaluation import (
    babble,
    gaps,
    localisation,
    over_seeds,
    span_labels,
    uncertainty,
)
from srmir_lib.studies.a1_token_rewards.model import TokenReward
from srmir_lib.studies.a1_token_rewards.plots import token_heat_map


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


def test_areas_are_nan_where_there_is_nothing_to_tell():
    areas = localisation([believed([1.0, 2.0])], [np.array([False, False])], [np.array([False, False])])
    assert all(np.isnan(area) for area in areas.values())


def test_gaps_are_chosen_minus_rejected():
    assert gaps(torch.tensor([3.0, 1.0, 1.0, 2.0])).tolist() == [2.0, -1.0]


def test_t_intervals_over_seeds_by_hand():
    (row,) = over_seeds({"ava_p": [0.8, 0.9]}, "easy")
    half = 12.706 * 0.0707107 / 2**0.5  # t(1 degree of freedom) times sd over root n
    assert (row["label"], row["group"]) == ("ava_p", "easy")
    assert [row[k] for k in ("estimate", "low", "high")] == pytest.approx([0.85, 0.85 - half, 0.85 + half], abs=1e-3)


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
    plt.close(figure)
