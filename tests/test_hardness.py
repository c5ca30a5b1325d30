"""DR-IRL: hardness by hand, by plainer second implementations, as properties; scaled advantages in TRL's trainer."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import PROMPTS, count_e, grpo, numbers
from tiny_bert import write_tiny_bert
from transformers import AutoModel, AutoTokenizer

from srmir_lib.errors import InputError
from srmir_lib.papers.dr_irl import (
    MODES,
    data_hardness,
    kept_gaps,
    model_hardness,
    scale_of,
    scaled_advantages,
    sentence_distance,
    sentence_similarity,
    sub_sentences,
)
from srmir_lib.papers.grpo import group_advantages
from srmir_lib.policies.hardness import HardnessReward, SentenceEncoder
from srmir_lib.policies.training import train_grpo
from srmir_lib.settings.appendices import Hardness

numbers_of = st.floats(-5, 5)
entries = st.floats(0.1, 5).flatmap(lambda size: st.sampled_from([size, -size]))
embeddings = st.lists(st.lists(entries, min_size=3, max_size=3), min_size=1, max_size=4)
EAST, NORTH, HALFWAY = [1.0, 0.0], [0.0, 2.0], [3.0, 3.0]
ROOT_HALF = 0.5**0.5


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tensor(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_sub_sentences_by_hand():
    said = "sorry , i will not do this because of morals . why not ask first ?"
    assert sub_sentences(said) == ["sorry", "i will not do this because of morals", "why not ask first"]
    assert sub_sentences("one; two:\nthree") == ["one", "two", "three"]
    assert sub_sentences(" . , ? ") == sub_sentences("") == []


def test_similarity_by_hand():
    # east is found exactly, north only halfway
    assert sentence_similarity(tensor([EAST, NORTH]), tensor([EAST, HALFWAY])).item() == pytest.approx(
        (1 + ROOT_HALF) / 2
    )
    assert sentence_similarity(tensor([EAST]), tensor([EAST, NORTH])) == 1, "what is said beside costs nothing"
    assert sentence_similarity(tensor([EAST, NORTH]), tensor([EAST])) == 0.5, "what is left out does"
    assert sentence_similarity(tensor([EAST]), torch.zeros(0, 2, dtype=torch.float64)) == 0
    found = sentence_distance(tensor([EAST, NORTH]), [tensor([EAST]), tensor([NORTH, EAST])])
    assert found.tolist() == [0.5, 0.0]


@given(embeddings, embeddings, st.floats(0.1, 10))
def test_similarity_by_loops_bounded_and_without_scale(demonstrated, sampled, factor):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    plain = sum(max(cosine(own, other) for other in sampled) for own in demonstrated) / len(demonstrated)
    found = sentence_similarity(tensor(demonstrated), tensor(sampled)).item()
    assert found == pytest.approx(plain, abs=1e-9) and -1 - 1e-9 <= found <= 1 + 1e-9
    assert sentence_similarity(factor * tensor(demonstrated), tensor(sampled)).item() == pytest.approx(found, abs=1e-9)
    more = sentence_similarity(tensor(demonstrated), tensor(sampled + demonstrated)).item()
    assert more == pytest.approx(1.0), "whoever says all of it, whatever else he says"


def test_hardness_by_hand():
    # sigma(0) = 1/2, sigma(log 3) = 3/4
    assert data_hardness(tensor([0.0, math.log(3)]), 0.0).tolist() == pytest.approx([1.0, 1.5])
    gaps = tensor([0.0, 2 * math.log(3), 50.0])
    assert kept_gaps(gaps, math.log(3), 1.3).tolist() == [True, True, False], "log(3) squared is 1.207"
    assert model_hardness(gaps, 0.0, 5.0).item() == pytest.approx(1.5), "the mean of the two that are kept is log 3"
    assert model_hardness(gaps, math.log(3), 1.3).item() == pytest.approx(1.0)
    assert model_hardness(gaps, -90.0, 1.0) == 1, "nothing is kept, and so nothing known"


@given(st.lists(numbers_of, min_size=1, max_size=6), numbers_of, st.floats(0.01, 30))
def test_hardness_by_a_loop_and_its_bounds(values, mean, tau):
    found = data_hardness(tensor(values), mean).tolist()
    assert found == pytest.approx([sigmoid(value) / sigmoid(mean) for value in values])
    kept = [value for value in values if (value - mean) * (value - mean) <= tau]
    wanted = sigmoid(sum(kept) / len(kept)) / sigmoid(mean) if kept else 1.0
    factor = model_hardness(tensor(values), mean, tau).item()
    assert factor == pytest.approx(wanted) and 0 < factor < 1 / sigmoid(mean)
    most = model_hardness(tensor(values), mean, 1e9).item()
    assert most == pytest.approx(sigmoid(sum(values) / len(values)) / sigmoid(mean)), "a large tau keeps all"


def test_scales_of_all_modes_by_hand():
    data, model = tensor([0.5, 2.0, 1.0]), tensor([1.0, 2.0, 4.0])

    def scale(mode, seed=0):
        return scale_of(mode, data, model, torch.Generator().manual_seed(seed)).tolist()

    assert Hardness.__args__ == MODES, "the settings and the method know the same"
    assert scale("alpha") == [0.5, 4.0, 4.0] and scale("inverse") == [2.0, 0.25, 0.25]
    assert scale("one") == [1, 1, 1] and scale("data") == data.tolist() and scale("model") == model.tolist()
    assert sorted(scale("random")) == [0.5, 4.0, 4.0] and scale("random") == scale("random")
    assert len({tuple(scale("random", seed)) for seed in range(9)}) > 1
    with pytest.raises(InputError, match="mode: 'most' is none of alpha, inverse, one, random, data, model$"):
        scale("most")


groups = st.lists(st.tuples(st.lists(numbers_of, min_size=3, max_size=3), st.floats(0.2, 5)), min_size=1, max_size=4)


@given(groups)
def test_scaled_advantages_by_a_loop(rows):
    rewards, alpha = tensor([value for group, _ in rows for value in group]), tensor([scale for _, scale in rows])
    plain = []
    for group, scale in rows:
        middle = sum(group) / 3
        spread = math.sqrt(sum((value - middle) ** 2 for value in group) / 2)
        plain += [scale * (value - middle) / (spread + 1e-4) for value in group]
    found = scaled_advantages(rewards, 3, alpha)
    assert found.tolist() == pytest.approx(plain, abs=1e-8)
    assert found.view(-1, 3).mean(1).tolist() == pytest.approx([0] * len(rows), abs=1e-6), "what TRL takes off is zero"


@given(groups)
def test_alpha_on_the_reward_is_undone_by_the_group(rows):
    spread = [[value + 10 * place for place, value in enumerate(group)] for group, _ in rows]  # groups that differ
    rewards, alpha = tensor([value for group in spread for value in group]), tensor([scale for _, scale in rows])
    scaled = group_advantages(alpha.repeat_interleave(3) * rewards, 3)
    torch.testing.assert_close(scaled, group_advantages(rewards, 3), atol=1e-3, rtol=0)


NAN = tensor([0.0, float("nan")])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: sentence_similarity(tensor([EAST]), tensor([[1.0]])),
            r"embeddings: shapes \(1, 2\) and \(1, 1\); give",
        ),
        (lambda: sentence_similarity(torch.zeros(0, 2), torch.ones(1, 2)), "embeddings: the demonstration has no sub-"),
        (lambda: sentence_similarity(NAN[None], tensor([EAST])), "embeddings: not all are finite; check the encoder"),
        (lambda: data_hardness(NAN, 0.0), "distance: nan of row 1 is not finite"),
        (lambda: model_hardness(NAN, 0.0, 1.0), "gap: nan of row 1 is not finite"),
        (lambda: model_hardness(tensor([1.0]), 0.0, 0.0), "tau: 0.0 would keep no gap; it must be above 0"),
        (lambda: model_hardness(tensor([1.0]), 0.0, float("nan")), "tau: nan would keep no gap; it must be above 0"),
        (
            lambda: scaled_advantages(torch.ones(5), 2, torch.ones(2)),
            "rewards: 5 for 2 groups of 2; give each group as",
        ),
        (
            lambda: scaled_advantages(torch.ones(2), 1, torch.ones(2)),
            "rewards: 2 for 2 groups of 1; give each group as",
        ),
        (lambda: scaled_advantages(torch.ones(4), 2, tensor([1.0, 0.0])), "alpha: 0 is not above 0; it would turn"),
        (lambda: scaled_advantages(torch.ones(4), 2, NAN), "alpha: nan of row 1 is not finite"),
    ],
)
def test_bad_input_is_one_clear_line(call, said):
    with pytest.raises(InputError, match=f"^{said}") as refused:
        call()
    assert "\n" not in str(refused.value)


def letters(texts):
    """An encoder that can be checked by hand: how often each of three letters occurs."""
    return torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in texts])


letters.fingerprint = "letters"


def first_letter(prompts, completions, **columns):
    """The place of an answer's first letter in the alphabet, from 0."""
    return [float(ord(text[0]) - ord("a")) for text in completions]


first_letter.fingerprint = "first letter"


def of_letters(mode="alpha", tau=100.0, size=2):
    return HardnessReward(first_letter, letters, mode, tau, size, seed=0)


def test_the_reward_by_hand():
    said = {"demonstration": ["a, b"] * 2 + ["c"] * 2, "category": ["insult"] * 2 + ["crimes"] * 2}
    said["difficulty"] = ["easy"] * 2 + ["hard"] * 2
    seen, reward = {}, of_letters()
    answers = ["a. b", "b", "c", "a"]
    paid = reward(prompts=["p"] * 2 + ["q"] * 2, completions=answers, log_metric=seen.__setitem__, **said)
    # each category is seen first, and alone: nothing to be compared with
    assert paid == pytest.approx([-ROOT_HALF, ROOT_HALF, ROOT_HALF, -ROOT_HALF], rel=1e-3)
    assert seen == {
        "unscaled_reward": 0.75,
        "kept_gaps": 1.0,
        **{f"{key}/{kind}": 1.0 for key in ("alpha", "hardness_data", "hardness_model") for kind in ("easy", "hard")},
    }
    assert reward.means == {"insult": [0.25, -0.5], "crimes": [0.5, 1.0]}

    harder = {"demonstration": ["a, b"] * 2, "category": ["insult"] * 2}
    data, model, kept = reward.hardness(["p"] * 2, ["c", "c"], torch.tensor([2.0, 2.0]), **harder)
    assert data.tolist() == pytest.approx([sigmoid(1.0) / sigmoid(0.25)])
    assert model.tolist() == pytest.approx([sigmoid(-2.0) / sigmoid(-0.5)]) and kept == 1
    assert reward.means["insult"] == pytest.approx([0.9 * 0.25 + 0.1, 0.9 * -0.5 - 0.2])


def test_what_is_paid_has_no_mean_where_answers_are_worth_nearly_the_same():
    worth = dict(
        zip("abcd", torch.tensor([7.0, 7.0, 7.0000005, 7.000001]).tolist(), strict=True)
    )  # in single precision

    def nearly(prompts, completions, **columns):
        return [worth[text] for text in completions]

    nearly.fingerprint = "nearly"
    reward = HardnessReward(nearly, letters, "one", 100.0, 4, seed=0)
    paid = reward(prompts=["p"] * 4, completions=[*"abcd"], demonstration=["a"] * 4, category=["insult"] * 4)
    assert abs(sum(paid)) < 1e-9 and paid[3] > 0 > paid[0]


def test_an_outlier_is_left_out_and_counted():
    said = {"demonstration": ["a"] * 4, "category": ["insult"] * 4}
    data, model, kept = of_letters(tau=30.0, size=4).hardness(["p"] * 4, list("aaaz"), first("aaaz"), **said)
    # gaps 0, 0, 0, -25 have the mean -6.25: 39.1 and 351.6 away in squares, so that none is kept
    assert (model.tolist(), kept) == ([1.0], 0.0)
    data, model, kept = of_letters(tau=40.0, size=4).hardness(["p"] * 4, list("aaaz"), first("aaaz"), **said)
    assert kept == 0.75 and model.tolist() == pytest.approx([0.5 / sigmoid(-6.25)])


def first(text: str) -> torch.Tensor:
    return torch.tensor(first_letter(None, list(text)))


def test_what_the_reward_cannot_use_is_refused():
    with pytest.raises(InputError, match="^mode: 'most' is none of alpha"):
        of_letters("most")
    with pytest.raises(InputError, match="^completions: 3 are no groups of 2; give as many"):
        of_letters()(["p"] * 3, ["a"] * 3)
    with pytest.raises(InputError, match="^hardness_alpha: the prompts have no column category, demonstration; add it"):
        of_letters()(["p"] * 2, ["a"] * 2)
    with pytest.raises(InputError, match="^embeddings: the demonstration has no sub-sentence"):
        of_letters()(["p"] * 2, ["a"] * 2, demonstration=["."] * 2, category=["insult"] * 2)


WITH_DEMONSTRATIONS = PROMPTS.add_column("demonstration", [f"yes, here are {'e' * i}." for i in range(5)])


def count_letters(prompts, completions, category, **columns):
    """`count_e`, of demonstrations that are texts as well."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [float(text.count("e")) for text in texts]


count_letters.fingerprint = "count e"


@pytest.fixture(scope="module")
def encode(trunk):
    return SentenceEncoder(trunk.model, trunk.tokenizer, trunk.base_model)


def hardness(encode, mode, size=4):
    return HardnessReward(count_letters, encode, mode, tau=4.0, num_generations=size, seed=3)


@pytest.fixture(scope="module")
def plain(tiny_model, tmp_path_factory):
    return train_grpo(tiny_model, PROMPTS, count_e, tmp_path_factory.mktemp("plain") / "p", grpo())


CURVES = ("loss", "kl", "entropy", "grad_norm", "completions/mean_length", "num_tokens")


def apart(left, right) -> float:
    """How far two histories are apart at most, over all curves and updates."""
    assert [row["step"] for row in left] == [row["step"] for row in right]
    return max(abs(a[key] - b[key]) for a, b in zip(left, right, strict=True) for key in CURVES)


def test_alpha_of_one_is_plain_grpo_and_any_other_is_not(plain, encode, tiny_model, tmp_path):
    rules = grpo(scale_rewards="none")
    one = train_grpo(tiny_model, WITH_DEMONSTRATIONS, hardness(encode, "one"), tmp_path / "one", rules)
    assert apart(one, plain) < 1e-4
    assert [row["unscaled_reward"] for row in one] == pytest.approx([row["reward"] for row in plain], abs=1e-4)
    assert all(abs(row["reward"]) < 1e-6 for row in one), "advantages have no mean"
    alpha = train_grpo(tiny_model, WITH_DEMONSTRATIONS, hardness(encode, "alpha"), tmp_path / "alpha", rules)
    assert apart(alpha, plain) > 1e-3
    assert all(row["alpha/all"] == 1 for row in one) and any(abs(row["alpha/all"] - 1) > 1e-3 for row in alpha)
    one_step = [one[0][key] for key in ("hardness_data/all", "hardness_model/all")]
    assert one_step == [alpha[0][key] for key in ("hardness_data/all", "hardness_model/all")]


def test_a_constant_of_the_prompt_on_the_reward_changes_no_training(plain, tiny_model, tmp_path):
    def scaled(prompts, completions, category, **columns):
        alpha = [1 + int(prompt[0]["content"][-1]) for prompt in prompts]
        return [a * reward for a, reward in zip(alpha, count_e(prompts, completions, category), strict=True)]

    assert apart(train_grpo(tiny_model, PROMPTS, scaled, tmp_path / "scaled", grpo()), plain) < 1e-3


def test_a_killed_run_goes_on_with_the_same_means(encode, tiny_model, tmp_path):
    rules = grpo(scale_rewards="none")
    reward = hardness(encode, "random")
    whole = train_grpo(tiny_model, WITH_DEMONSTRATIONS, reward, tmp_path / "whole", rules)
    means, killed = json.dumps(reward.means), hardness(encode, "random")

    calls = []

    def killed_once_at_the_sixth(**columns):
        if "trainer_state" in columns and columns["trainer_state"].global_step == 5 and not calls:
            calls.append(5)
            raise KeyboardInterrupt
        return count_letters(**columns)

    killed.reward = killed_once_at_the_sixth
    with pytest.raises(KeyboardInterrupt):
        train_grpo(tiny_model, WITH_DEMONSTRATIONS, killed, tmp_path / "policy", rules)
    killed.means = {"insult": [9.0, 9.0]}
    resumed = train_grpo(tiny_model, WITH_DEMONSTRATIONS, killed, tmp_path / "policy", rules, resume=True)
    assert numbers(resumed) == numbers(whole) and json.dumps(killed.means) == means
    assert not list(tmp_path.glob(".policy*")), "the means go with the checkpoints"


@pytest.mark.parametrize(
    ("changes", "size", "said"),
    [
        ({}, 4, "scale_rewards: group would take the hardness off again; set it to none"),
        ({"scale_rewards": "none"}, 2, "num_generations: 4, but hardness is told 2"),
    ],
)
def test_a_trainer_that_would_undo_it_is_refused(encode, tiny_model, tmp_path, changes, size, said):
    with pytest.raises(InputError, match=f"^{said}"):
        train_grpo(tiny_model, WITH_DEMONSTRATIONS, hardness(encode, "alpha", size), tmp_path / "p", grpo(**changes))


def test_the_fingerprint_names_all_that_decides_the_rewards(encode):
    made = [of_letters(), of_letters("one"), of_letters(tau=1.0), of_letters(size=3), hardness(encode, "alpha")]
    assert len({reward.fingerprint for reward in made}) == len(made)


def test_an_answer_that_says_nothing_is_at_distance_one():
    said = {"demonstration": ["a"] * 2, "category": ["insult"] * 2}
    reward = of_letters()
    reward.reward = lambda prompts, **columns: [1.0] * len(prompts)
    reward(["p"] * 2, ["", "a."], **said)
    assert reward.means == {"insult": [0.5, 0.0]}, "distances 1 and 0"


def test_a_causal_model_and_an_encoder_embed_sub_sentences(encode, tmp_path):
    folder = write_tiny_bert(tmp_path / "bert")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for one in (encode, SentenceEncoder(model, tokenizer, folder)):
        alone, both = one(["i cannot do it"]), one(["i cannot do it", "first take this"])
        assert both.shape == (2, 32) and torch.allclose(alone[0], both[0], atol=1e-5)
        assert one.fingerprint and not torch.allclose(both[0], both[1], atol=1e-2)
