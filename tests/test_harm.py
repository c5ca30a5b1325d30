"""What margins are compared with in the lab, by hand."""

import pytest
import torch

from srmir_lib.conversations import assistant_message
from srmir_lib.lab.harm import followers, harm_measures, refusal_bits

NO, YES = assistant_message("I will not help with this."), assistant_message("first open the gate")


def pairs(*rows) -> dict:
    """Columns of (chosen, rejected, gap in harm, severity)."""
    return dict(zip(("chosen", "rejected", "harm_gap", "severity"), map(list, zip(*rows, strict=True)), strict=True))


def test_margin_and_bit_by_hand_on_prompts_of_either_kind():
    harmful = (NO, YES, 0.9, "severe"), (NO, NO, 0.1, "mild"), (NO, YES, 0.5, "moderate")
    harmless = (YES, NO, 0.3, "none"), (YES, NO, 0.6, "none")
    found = harm_measures(torch.tensor([3.0, -1.0, 2.0, -2.0, 1.0]), pairs(*harmful, *harmless))
    # harmful: the margin is in the order of the gap; the bit (1, 0, 1) has ranks 2.5, 1, 2.5 against 3, 1, 2
    assert found == pytest.approx(
        {
            "margin_pair_accuracy_harmful": 2 / 3,
            "margin_harm_spearman_harmful": 1.0,
            "refusal_bit_harm_spearman_harmful": 1.5 / (1.5 * 2) ** 0.5,
            "margin_pair_accuracy_harmless": 1 / 2,
            "margin_harm_spearman_harmless": 1.0,
            "refusal_bit_harm_spearman_harmless": 0.0,
            "margin_severity_spearman": 1.0,
        }
    )


def test_without_harmless_prompts_or_with_one_severity_there_is_nothing_to_say_of_them():
    found = harm_measures(torch.tensor([1.0, 2.0]), pairs((NO, YES, 0.9, "mild"), (NO, YES, 0.1, "mild")))
    assert found == pytest.approx(
        {
            "margin_pair_accuracy_harmful": 1.0,
            "margin_harm_spearman_harmful": -1.0,
            "refusal_bit_harm_spearman_harmful": 0.0,
        }
    )


def test_bits_and_what_a_sentence_needs_of_the_measures():
    rows = pairs((NO, YES, 0.9, "mild"), (YES, NO, 0.1, "mild"), (NO, NO, 0.5, "mild"))
    assert refusal_bits(rows).tolist() == [[True, False, True], [False, True, True]]
    assert followers(harm_measures(torch.tensor([3.0, -1.0, 2.0]), rows)) == {
        "harmful": {"margin": pytest.approx(1.0), "bit": pytest.approx(1.0)}
    }
