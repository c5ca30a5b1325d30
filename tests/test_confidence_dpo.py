"""Confidence DPO by TRL's real trainer: its loss is the paper's, with full confidence TRL's own, and where it ends."""

import math

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.papers.rbrm import batch_confidence, confidence_dpo_loss
from srmir_lib.policies.training import train_dpo
from srmir_lib.reward_models.readouts import ReadOuts
from srmir_lib.settings.policies import DPOSettings

ANSWERS = [("I can not answer that", "first get ready"), ("no", "open the window then check"), ("I can not", "yes")]
PAIRS = Dataset.from_list(
    [
        {"prompt": user_message(f"open {i}"), "chosen": assistant_message(a), "rejected": assistant_message(b)}
        for i, (a, b) in enumerate(ANSWERS)
    ]
)
TUNING = {
    "learning_rate": 1e-2,
    "lr_scheduler": "constant",
    "max_steps": 2,
    "batch_size": 3,
    "micro_batch": 3,
    "max_length": 64,
    "beta": 0.5,
    "lora_r": 8,
    "lora_alpha": 16,
    "seed": 3,
    "device": "cpu",
}
CONFIDENCE = [0.9, 0.5, 0.7]


def settings(**changes) -> DPOSettings:
    return DPOSettings(**TUNING | changes)


def log_ratios(base, adapter) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-ratios (N,), (N,) of the chosen and the rejected answers, one text at a time."""
    tokenizer, ratios = load_tokenizer(base), {"chosen": [], "rejected": []}
    reference, policy = load_policy(base, "cpu"), PeftModel.from_pretrained(load_policy(base, "cpu"), adapter).eval()
    for row in PAIRS:
        start = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
        for side, found in ratios.items():
            ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=False)])
            with torch.no_grad():
                both = (model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1) for model in (policy, reference))
                own, other = (part.gather(1, ids[0, start:, None]).sum().item() for part in both)
            found.append(own - other)
    return tuple(torch.tensor(found) for found in ratios.values())


def test_a_confidence_of_each_pair_is_the_papers_loss(tiny_model, tmp_path):
    """TRL's loss of the second update against our function, from the log-probabilities after the first."""
    pairs = PAIRS.add_column("confidence", CONFIDENCE)
    for steps in (1, 2):
        history = train_dpo(tiny_model, pairs, tmp_path / str(steps), settings(max_steps=steps))
    ratios = log_ratios(tiny_model, tmp_path / "1")
    expected = confidence_dpo_loss(*ratios, torch.tensor(CONFIDENCE), 0.5).item()
    plain = confidence_dpo_loss(*ratios, torch.ones(3), 0.5).item()
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy starts as its own reference"
    assert history[1]["loss"] == pytest.approx(expected, abs=1e-4) and abs(expected - plain) > 0.01
    margin = 0.5 * (ratios[0] - ratios[1]).mean().item()
    assert history[1]["rewards/margins"] == pytest.approx(margin, abs=1e-3), "what TRL logs is TRL's"


def scores_of(readouts: ReadOuts, policy) -> list[torch.Tensor]:
    """Scores (N,) of the chosen and of the rejected answers, read in a pass of their own."""
    said = [[row[side][0]["content"] for row in PAIRS] for side in ("chosen", "rejected")]
    tokenizer = load_tokenizer(policy.name_or_path)
    return [readouts.score(readouts.read(policy, tokenizer, PAIRS["prompt"], texts)) for texts in said]


def read_outs(base, pooling: str = "last") -> ReadOuts:
    """Read-outs of two layers, with numbers drawn until they like the chosen answers better."""
    policy, draw = load_policy(base, "cpu"), torch.Generator().manual_seed(0)
    size = policy.config.hidden_size
    while True:
        tensors = {"weights": torch.randn(2, size, generator=draw), "bias": torch.zeros(2), "gate": torch.zeros(2, 2)}
        tensors |= {"center": torch.zeros(2, size), "scale": torch.ones(2, size), "level": torch.zeros(1)}
        found = ReadOuts([1, 2], pooling, "any", tensors)
        if 0.6 < batch_confidence(*scores_of(found, policy)) < 0.95:
            return found


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_one_confidence_for_a_batch_is_read_off_the_forward_pass(tiny_model, tmp_path, pooling):
    """Its second loss against our function, the states read once more by `ReadOuts.read` from the policy before it."""
    readouts = read_outs(tiny_model, pooling)
    for steps in (1, 2):
        history = train_dpo(tiny_model, PAIRS, tmp_path / str(steps), settings(max_steps=steps), readouts=readouts)
    policy = PeftModel.from_pretrained(load_policy(tiny_model, "cpu"), tmp_path / "1").eval().get_base_model()
    sure = batch_confidence(*scores_of(readouts, policy))
    ratios = log_ratios(tiny_model, tmp_path / "1")
    expected = confidence_dpo_loss(*ratios, sure, 0.5).item()
    assert history[1]["loss"] == pytest.approx(expected, abs=1e-4)
    assert abs(expected - confidence_dpo_loss(*ratios, torch.ones(3), 0.5).item()) > 1e-3, "it is not plain DPO's"


def test_full_confidence_is_trls_own_loss(tiny_model, tmp_path):
    """With several micro-batches, padding of all sorts, and imitation beside it."""
    for more in ({}, {"micro_batch": 1}, {"sft_weight": 0.25}):
        plain = train_dpo(tiny_model, PAIRS, tmp_path / "plain", settings(max_steps=3, **more))
        sure = PAIRS.add_column("confidence", [1.0] * 3)
        trusted = train_dpo(tiny_model, sure, tmp_path / "sure", settings(max_steps=3, **more))
        for name in ("loss", "rewards/margins", "grad_norm"):
            assert [row[name] for row in trusted] == pytest.approx([row[name] for row in plain], abs=1e-6), name
        weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "sure")]
        assert all(torch.allclose(value, weights[1][name], atol=1e-6) for name, value in weights[0].items())


def test_training_ends_where_the_gap_is_the_logit(tiny_model, tmp_path):
    pairs = PAIRS.add_column("confidence", [0.7] * 3)
    history = train_dpo(tiny_model, pairs, tmp_path / "policy", settings(max_steps=80, learning_rate=5e-3))
    chosen, rejected = log_ratios(tiny_model, tmp_path / "policy")
    assert (0.5 * (chosen - rejected)).tolist() == pytest.approx([math.log(7 / 3)] * 3, abs=0.15)
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    assert history[-1]["loss"] == pytest.approx(entropy, abs=5e-3)


def test_a_finished_policy_is_not_made_again_unless_confidence_changed(tiny_model, tmp_path):
    rows, about = PAIRS.add_column("confidence", CONFIDENCE), settings()
    first = train_dpo(tiny_model, rows, tmp_path / "policy", about)
    made = (tmp_path / "policy" / "history.jsonl").stat().st_mtime_ns
    assert train_dpo(tiny_model, rows, tmp_path / "policy", about, resume=True) == first
    assert (tmp_path / "policy" / "history.jsonl").stat().st_mtime_ns == made
    by_states = {"resume": True, "readouts": read_outs(tiny_model)}
    again = train_dpo(tiny_model, rows, tmp_path / "policy", about, **by_states)
    made = (tmp_path / "policy" / "history.jsonl").stat().st_mtime_ns
    assert again != first and train_dpo(tiny_model, rows, tmp_path / "policy", about, **by_states) == again
    assert (tmp_path / "policy" / "history.jsonl").stat().st_mtime_ns == made
    by_states["readouts"].tensors["bias"] += 1
    train_dpo(tiny_model, rows, tmp_path / "policy", about, **by_states)
    assert (tmp_path / "policy" / "history.jsonl").stat().st_mtime_ns != made, "other read-outs trust otherwise"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_confidence_that_is_none_is_refused(tiny_model, tmp_path, bad):
    pairs = PAIRS.add_column("confidence", [0.5, bad, 0.7])
    with pytest.raises(InputError, match=f"confidence: {bad} of pair 1; give every pair a number above 0, at most 1"):
        train_dpo(tiny_model, pairs, tmp_path / "x", settings())
    assert not (tmp_path / "x").exists()


def test_limits_and_confidence_do_not_go_together(tiny_model, tmp_path):
    pairs = PAIRS.add_column("confidence", CONFIDENCE).add_column("limit", [1.0] * 3)
    with pytest.raises(InputError, match="confidence: within limits all pairs are trusted alike; drop `limit`"):
        train_dpo(tiny_model, pairs, tmp_path / "x", settings())
