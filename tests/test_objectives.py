"""Losses against numbers worked by hand, and against what TRL's `RewardTrainer` and `GRPOTrainer` compute."""

import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from srmir_lib.conversations import user_message
from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_policy
from srmir_lib.papers.grpo import grpo_loss, kl_estimate
from srmir_lib.papers.legend import margin_loss
from srmir_lib.papers.pcrm import PCRM_CONSTANTS, angle_similarity, length_similarity, pcrm_limit, pcrm_loss
from srmir_lib.papers.srmir import bradley_terry_loss
from srmir_lib.policies import training
from srmir_lib.settings.policies import GRPOSettings

CHOSEN, REJECTED = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])


def test_bradley_terry_by_hand():
    # gaps 1 and -2: (ln(1 + e^-1) + ln(1 + e^2)) / 2
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert bradley_terry_loss(CHOSEN, REJECTED).item() == pytest.approx(expected, abs=1e-6)
    assert bradley_terry_loss(CHOSEN, CHOSEN).item() == pytest.approx(math.log(2), abs=1e-6)


def test_margin_moves_the_gap_that_costs_ln_2():
    gaps = CHOSEN - REJECTED
    assert margin_loss(CHOSEN, REJECTED, gaps).item() == pytest.approx(math.log(2), abs=1e-6)
    assert margin_loss(CHOSEN, REJECTED, torch.zeros(2)) == bradley_terry_loss(CHOSEN, REJECTED)
    # gap 1, margin 0.5: ln(1 + e^-0.5)
    one = margin_loss(CHOSEN[:1], REJECTED[:1], torch.tensor([0.5])).item()
    assert one == pytest.approx(math.log(1 + math.exp(-0.5)), abs=1e-6)


def test_a_margin_pushes_harder():
    scores = torch.tensor([2.0], requires_grad=True)
    plain = torch.autograd.grad(bradley_terry_loss(scores, torch.zeros(1)), scores)[0]
    pushed = torch.autograd.grad(margin_loss(scores, torch.zeros(1), torch.tensor([1.0])), scores)[0]
    assert pushed < plain < 0


@pytest.mark.parametrize("margin", [None, [0.3, -0.2, 1.5]])
def test_both_losses_are_what_the_trl_trainer_minimises(tiny_model, tmp_path, margin):
    from trl import RewardTrainer
    from trl_loss import trainer_loss

    columns = {"chosen_ids": [[7, 8, 9, 1]] * 3, "rejected_ids": [[9, 1], [8, 8, 1], [30, 40, 50, 60, 1]]}
    columns |= {} if margin is None else {"margin": margin}
    loss, chosen, rejected, batch = trainer_loss(RewardTrainer, tiny_model, columns, tmp_path)
    ours = bradley_terry_loss(chosen, rejected) if margin is None else margin_loss(chosen, rejected, batch["margin"])
    assert loss == pytest.approx(ours.item(), abs=1e-6), "TRL's loss is no longer the one this library displays"


def test_pcrm_limit_by_hand():
    # length, s = 1: 10 / 1.001 - 5; s = 0.5: 10 / 0.501 - 5; cosine, s = 1: 20 / 1.001 - 15; s = 0 is capped
    length = pcrm_limit(torch.tensor([1.0, 0.5, 0.0]), *PCRM_CONSTANTS["length"], cap=30.0)
    assert length.tolist() == pytest.approx([4.990010, 14.960080, 30.0], abs=1e-4)
    cosine = pcrm_limit(torch.tensor([1.0]), *PCRM_CONSTANTS["cosine"], cap=30.0)
    assert cosine.item() == pytest.approx(4.980020, abs=1e-4)


def test_a_limit_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="-4 of pair 1 is not positive"):
        pcrm_limit(torch.tensor([0.1, 1.0]), 1.0, 0.0, -5.0, cap=30.0)


def test_pcrm_loss_by_hand():
    # gap 1, limit 3: ln(1 + e^-1) + ln(1 + e^-2)
    loss = pcrm_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([3.0])).item()
    assert loss == pytest.approx(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)), abs=1e-6)


@given(st.floats(0.5, 30), st.floats(-20, 40))
def test_pcrm_loss_is_convex_and_least_at_half_the_limit(limit, gap):
    def slope(at: float) -> float:
        gap = torch.tensor([at], dtype=torch.float64, requires_grad=True)
        pcrm_loss(gap, torch.zeros(1, dtype=torch.float64), torch.tensor([limit], dtype=torch.float64)).backward()
        return gap.grad.item()

    assert slope(limit / 2) == pytest.approx(0, abs=1e-12)
    assert slope(gap) <= slope(gap + 0.5) + 1e-12, "a convex function's slope never falls"


def test_length_similarity_by_hand():
    # the same first two tokens; then one token against three
    assert length_similarity([[1, 2, 3]], [[1, 2, 4, 5, 6]]).tolist() == pytest.approx([1 / 3])
    assert length_similarity([[1, 2], [1], [7]], [[1, 2], [1, 5], [8, 9]]).tolist() == [1.0, 0.0, 0.5]


def test_angle_similarity_by_hand():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    found = torch.cat([angle_similarity(east, other) for other in (3 * east, north, -east)])
    assert found.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-3)


def test_grpo_loss_by_hand():
    # An answer of one token, pushed up, and one of three, pushed down; nothing has moved: ratio 1, KL 0.
    nothing, mask = torch.zeros(2, 3), torch.tensor([[1, 0, 0], [1, 1, 1]])
    terms = {"advantages": torch.tensor([1.0, -1.0]), "mask": mask, "beta": 0.5, "epsilon": 0.2}
    terms |= {"log_probs": nothing, "old_log_probs": nothing, "use_bias_correction_kl": True}
    assert grpo_loss(ref_log_probs=nothing, loss_type="grpo", **terms).item() == 0.0  # -(1 - 1) / 2
    assert grpo_loss(ref_log_probs=nothing, loss_type="dapo", **terms).item() == 0.5  # -(1 - 3) / 4
    # The reference finds every token e times as likely: each costs beta (e - 1 - 1).
    far = grpo_loss(ref_log_probs=nothing + 1, loss_type="dapo", **terms).item()
    assert far == pytest.approx(0.5 + 0.5 * (math.e - 2))


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, -1.2), (-1.0, 2.0)])
def test_grpo_clips_what_would_pay_and_not_what_would_cost(advantage, expected):
    one, twice = torch.zeros(1, 1), torch.full((1, 1), math.log(2))  # the token has become twice as likely
    found = grpo_loss(twice, one, twice, torch.ones(1, 1), torch.tensor([advantage]), 0.5, 0.2, "dapo", True)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize(("corrected", "slope"), [(True, -1.0), (False, 1 - math.e)])
def test_the_slope_of_the_kl_term_by_hand(corrected, slope):
    """At ratio 1 and lambda 1: -lambda with the ratio as a factor, 1 - e^lambda without."""
    own = torch.zeros(1, 1, requires_grad=True)
    loss = grpo_loss(own, own.detach(), own.detach() + 1, torch.ones(1, 1), torch.zeros(1), 1.0, 0.2, "dapo", corrected)
    loss.backward()
    assert loss.item() == pytest.approx(math.e - 2) and own.grad.item() == pytest.approx(slope)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_the_kl_estimate_of_drawn_tokens_is_the_kl(own, reference):
    """Its mean under the policy's two probabilities is sum p log(p / q), exactly."""
    p, q = (torch.tensor([share, 1 - share], dtype=torch.float64) for share in (own, reference))
    assert (p * kl_estimate(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-9)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_grpo_loss_shown_is_the_one_that_runs(tiny_model, tmp_path, monkeypatch, loss_type, corrected):
    """`train_grpo` itself, two updates a draw; every loss of its trainer against ours from a plain forward pass."""
    seen = []

    class Recorded(training.GRPOTrainer):
        def compute_loss(self, model, inputs, **options):
            loss = super().compute_loss(model, inputs, **options)
            parts = [(inputs[f"prompt_{end}"], inputs[f"completion_{end}"]) for end in ("ids", "mask")]
            ids, mask = (torch.cat(part, dim=1) for part in parts)
            count = inputs["completion_ids"].shape[1]
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask).logits[:, -count - 1 : -1] / 0.7
            own = logits.log_softmax(-1).gather(2, ids[:, -count:, None]).squeeze(2)
            old = inputs.get("old_per_token_logps")
            given = own if old is None else old, inputs["ref_per_token_logps"], inputs["completion_mask"]
            terms = own, *given, inputs["advantages"], 0.5, 0.01
            ours = {how: grpo_loss(*terms, loss_type, how).item() for how in (True, False)}
            other = grpo_loss(*terms, "dapo" if loss_type == "grpo" else "grpo", corrected).item()
            seen.append((loss.item(), ours[corrected], ours[not corrected], other))
            return loss

    monkeypatch.setattr(training, "GRPOTrainer", Recorded)
    numbers = {"learning_rate": 0.01, "max_steps": 4, "micro_batch": 8, "lora_r": 4, "lora_alpha": 8, "seed": 1}
    numbers |= {"prompts_per_step": 2, "num_generations": 4, "num_iterations": 2, "max_completion_length": 9}
    numbers |= {"temperature": 0.7, "beta": 0.5, "epsilon": 0.01, "monitor_every": 0, "checkpoint_every": 0}
    words = {"lr_scheduler": "constant", "device": "cpu", "scale_rewards": "group", "loss_type": loss_type}
    settings = GRPOSettings(**numbers, **words, use_bias_correction_kl=corrected)
    prompts = Dataset.from_list([{"prompt": user_message(f"please help {i}")} for i in range(4)])

    def lengths(completions, **columns):
        return [float(len(completion[0]["content"])) for completion in completions]

    model = load_policy(tiny_model, "cpu")
    with torch.no_grad():  # it ends some answers early, so that they differ in length
        model.get_output_embeddings().weight[model.config.eos_token_id] *= 3
    training.train_grpo(tiny_model, prompts, lengths, tmp_path / "policy", settings, model=model)
    assert len(seen) == 4
    for loss, ours, _, _ in seen:
        assert loss == pytest.approx(ours, abs=1e-6), "TRL's loss is no longer the one this library displays"
    assert max(abs(loss - wrong) for loss, _, wrong, _ in seen) > 1e-4, "the test must tell the two KL terms apart"
    assert max(abs(loss - wrong) for loss, _, _, wrong in seen) > 1e-4, "the test must tell the two means apart"
