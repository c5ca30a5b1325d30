"""AVA's pure functions: values worked out by hand, `torch.distributions`, naive loops, and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from srmir_lib.errors import InputError
from srmir_lib.papers.ava import (
    TokenBeliefs,
    answer_reward,
    attention_weights,
    ava_demonstration_objective,
    ava_evidence,
    ava_log_policy,
    ava_preference_objective,
    ava_td_error,
    check_beliefs,
    gaussian_kl,
    gaussian_log_density,
    over_tokens,
)

numbers = st.floats(-5, 5, allow_nan=False, width=32)
log_sds = st.floats(-3, 2, allow_nan=False, width=32)


def beliefs(q_values, mean, log_sd, mask=None) -> TokenBeliefs:
    parts = [torch.tensor(part, dtype=torch.float64) for part in (q_values, mean, log_sd)]
    return TokenBeliefs(*parts, torch.ones_like(parts[0], dtype=torch.bool) if mask is None else torch.tensor(mask))


def drawn(seed: int, lengths=(4, 2, 3)) -> TokenBeliefs:
    """Random beliefs about answers of these lengths; what lies behind an answer's end is poison."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    q_values, mean, log_sd = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return TokenBeliefs(*(part.where(mask, 9.0) for part in (-q_values.abs(), mean, log_sd)), mask)


def naive_evidence(row: int, b: TokenBeliefs, gamma: float, lam: float, form: str) -> float:
    """One answer, token by token, with `torch.distributions`."""
    length, total = int(b.mask[row].sum()), 0.0
    for t in range(length):
        q = Normal(b.mean[row, t], b.log_sd[row, t].exp())
        following = b.q_values[row, t + 1] if t + 1 < length else 0.0
        delta = b.q_values[row, t] - gamma * following
        total += float(lam * q.log_prob(delta) - kl_divergence(q, Normal(0.0, 1.0)))
    return total if form == "printed" else total / length


@given(numbers, log_sds)
def test_the_kl_is_that_of_torch_distributions(mean, log_sd):
    mine = gaussian_kl(torch.tensor(mean, dtype=torch.float64), torch.tensor(log_sd, dtype=torch.float64))
    q = Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(log_sd, dtype=torch.float64).exp())
    assert mine.item() == pytest.approx(float(kl_divergence(q, Normal(0.0, 1.0))), abs=1e-9)
    assert mine >= -1e-12, "a KL divergence is never negative"


def test_the_kl_by_hand():
    kl = gaussian_kl(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, math.log(2)]))
    # the prior itself; half of 2^2; (4 - 1) / 2 - ln 2
    assert kl.tolist() == pytest.approx([0.0, 2.0, 1.5 - math.log(2)])


@given(numbers, numbers, log_sds)
def test_the_density_is_that_of_torch_distributions(value, mean, log_sd):
    value, mean, log_sd = (torch.tensor(x, dtype=torch.float64) for x in (value, mean, log_sd))
    wanted = Normal(mean, log_sd.exp()).log_prob(value)
    assert gaussian_log_density(value, mean, log_sd).item() == pytest.approx(wanted.item(), rel=1e-9)


def test_printed_policy_is_nearly_flat_and_the_stable_one_is_the_models_own():
    logits = torch.tensor([[3.0, 0.0, 0.0, 0.0]])
    p = math.exp(3) / (math.exp(3) + 3)  # the model's own probability of the first token
    rest = (1 - p) / 3
    stable, printed = (ava_log_policy(logits, 1.0, form).exp()[0] for form in ("stable", "printed"))
    assert stable.tolist() == pytest.approx([p, rest, rest, rest])
    first = math.exp(p) / (math.exp(p) + 3 * math.exp(rest))
    assert printed[0].item() == pytest.approx(first)
    assert printed[0] < 0.5 < stable[0], "a softmax over probabilities forgets what the model knows"


@given(st.integers(2, 300), st.floats(0.1, 20), st.integers(0, 99))
def test_printed_log_probabilities_differ_by_at_most_alpha(size, alpha, seed):
    logits = 10 * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_policy = ava_log_policy(logits, alpha, "printed")
    assert log_policy.exp().sum().item() == pytest.approx(1)
    assert log_policy.max() - log_policy.min() <= alpha + 1e-9
    assert log_policy.max() <= alpha - math.log(size) + 1e-9, "alpha must pass log |V| before a token can be likely"


def test_td_error_by_hand():
    q_values, mask = (
        torch.tensor([[-1.0, -2.0, -4.0], [-3.0, 9.0, 9.0]]),
        torch.tensor([[True] * 3, [True, False, False]]),
    )
    # -1 + .5 * 2, -2 + .5 * 4, -4 (nothing follows); the second answer ends after one token
    assert ava_td_error(q_values, mask, 0.5).tolist() == [[0.0, 0.0, -4.0], [-3.0, 0.0, 0.0]]


@given(st.integers(0, 99))
def test_with_gamma_one_td_errors_telescope_to_the_first_token(seed):
    b = drawn(seed)
    total = over_tokens(ava_td_error(b.q_values, b.mask, 1.0), b.mask, "printed")
    assert torch.allclose(total, b.q_values[:, 0])


@pytest.mark.parametrize("form", ["printed", "stable"])
@given(seed=st.integers(0, 99), gamma=st.floats(0, 1), lam=st.floats(0, 2))
def test_evidence_equals_a_loop_over_tokens(form, seed, gamma, lam):
    b = drawn(seed)
    wanted = [naive_evidence(row, b, gamma, lam, form) for row in range(len(b.mask))]
    assert ava_evidence(b, gamma, lam, form).tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_demonstration_objective_by_hand():
    b = beliefs([[-1.0, -2.0]], [[1.0, -2.0]], [[0.0, 0.0]])
    # delta = -1 + 2 = 1 and -2: both at the posterior's mean, so each density is -ln sqrt(2 pi); KL 1/2 and 2
    evidence = -math.log(2 * math.pi) - 2.5
    assert ava_demonstration_objective(b).item() == pytest.approx(-3.0 + evidence)
    assert ava_demonstration_objective(b, form="stable").item() == pytest.approx((-3.0 + evidence) / 2)
    assert ava_demonstration_objective(b, beta=2.0, lam=0.0).item() == pytest.approx(-6.0 - 2.5)


@pytest.mark.parametrize("readout, gap", [("last", 3.0), ("mean", 1.0)])
def test_preference_objective_by_hand(readout, gap):
    chosen, rejected = beliefs([[-1.0, 0.0]], [[-1.0, 3.0]], [[0.0, 0.0]]), beliefs([[-4.0]], [[0.0]], [[0.0]])
    kl = (0.5 + 4.5, 0.0)
    printed = ava_preference_objective(chosen, rejected, 0.5, 1.0, 0.0, "printed", readout)
    assert printed.item() == pytest.approx(0.5 * (-1 + 4) - sum(kl) + 1 / (1 + math.exp(-gap)))
    stable = ava_preference_objective(chosen, rejected, 0.5, 1.0, 0.0, "stable", readout)
    q_gap = 0.5 * (-0.5 + 4)  # a mean over two tokens, and over one
    wanted = -math.log1p(math.exp(-q_gap)) - 2.5 - math.log1p(math.exp(-gap))
    assert stable.item() == pytest.approx(wanted)


def test_a_free_q_makes_the_printed_objective_grow_without_end_and_not_the_stable_one():
    chosen = beliefs([[-1.0]], [[0.0]], [[0.0]])
    values = {
        form: [
            ava_preference_objective(chosen, beliefs([[q]], [[0.0]], [[0.0]]), lam=0.0, form=form).item()
            for q in (-10.0, -100.0, -1000.0)
        ]
        for form in ("printed", "stable")
    }
    assert values["printed"][1] - values["printed"][0] == pytest.approx(90)
    assert values["printed"][2] - values["printed"][1] == pytest.approx(900)
    assert max(values["stable"]) <= math.log(0.5) + 1e-9, "what is left is log sigmoid of a reward gap of 0"


@given(st.integers(0, 99), st.floats(0, 3))
def test_guarded_reward_never_pays_more_and_equals_a_loop(seed, k):
    b = drawn(seed)
    for readout in ("last", "mean", "sum"):
        plain, guarded = answer_reward(b, readout), answer_reward(b, readout, k)
        assert (guarded <= plain + 1e-9).all()
        for row in range(len(b.mask)):
            length = int(b.mask[row].sum())
            own = [float(b.mean[row, t] - k * math.exp(b.log_sd[row, t])) for t in range(length)]
            wanted = {"last": own[-1], "mean": sum(own) / length, "sum": sum(own)}[readout]
            assert guarded[row].item() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@given(st.integers(0, 99))
def test_attention_weights_sum_to_one_and_equal_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, 2, 4, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    weights = attention_weights(queries, keys, mask)
    assert weights.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert weights[1, 2:].tolist() == [0, 0], "what is no token gets no weight"
    wanted = torch.zeros(2)
    for i in range(2):
        looks = [math.exp(float(queries[1, i] @ keys[1, t])) for t in range(2)]
        wanted += torch.tensor(looks) / sum(looks) / 2
    assert weights[1, :2].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_equal_keys_mean_equal_weights():
    weights = attention_weights(torch.randn(1, 5, 2), torch.ones(1, 5, 2), torch.ones(1, 5, dtype=torch.bool))
    assert weights[0].tolist() == pytest.approx([0.2] * 5)


def test_gradients_pass_an_answers_end_untouched():
    b = drawn(0)
    parts = [part.clone().requires_grad_() for part in b[:3]]
    ava_demonstration_objective(TokenBeliefs(*parts, b.mask)).sum().backward()
    for part in parts:
        assert part.grad[~b.mask].abs().sum() == 0, "padding must not be trained"
        assert part.grad.isfinite().all()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b: b._replace(mean=b.mean[:, :-1]), r"one shape \(B, T\)"),
        (lambda b: b._replace(mask=torch.zeros_like(b.mask)), "row 0 has no token"),
        (lambda b: b._replace(log_sd=b.log_sd.index_fill(0, torch.tensor([1]), math.nan)), "row 1 is not finite"),
    ],
)
def test_bad_beliefs_are_refused_in_one_line(damage, message):
    with pytest.raises(InputError, match=message) as caught:
        check_beliefs(damage(drawn(0)))
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="printed, stable"):
        ava_log_policy(torch.zeros(1, 3), 1.0, "logits")
    with pytest.raises(InputError, match="last, mean"):
        answer_reward(drawn(0), "median")
