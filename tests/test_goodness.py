"""True goodness against KL while a policy trains: measured where it should be, without a trace in the training."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_training import PROMPTS, count_e, grpo, numbers

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.batching import padded
from srmir_lib.models.generation import generate
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.policies import goodness
from srmir_lib.policies.callbacks import answer_ids
from srmir_lib.policies.training import train_grpo, train_sft
from srmir_lib.settings.policies import GRPOSettings, SFTSettings, WatchedGRPO

ROWS = [
    {"prompt": user_message(f"open the {i} door"), "kind": "harmful" if i % 2 else "lookalike", "family": "none"}
    for i in range(8)
]
SAMPLING = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
KEYS = {goodness.HARMFUL, goodness.HARMLESS, goodness.BALANCED, goodness.KL}
UPDATES = {"max_steps": 6, "learning_rate": 3e-2}


class Worth:
    """Harmful prompts: the share of letters e; look-alikes: the share of letters a. It notes what it was asked."""

    fingerprint = "letters"

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, texts):
        self.asked.append(([text_of(prompt) for prompt in prompts], texts))
        letters = ["e" if int(text_of(prompt).split()[2]) % 2 else "a" for prompt in prompts]
        return [text.count(one) / max(len(text), 1) for one, text in zip(letters, texts, strict=True)]


def watched(tokenizer, every=2, worth=None):
    return goodness.GoodnessCallback(worth or Worth(), tokenizer, ROWS[:6], every, **SAMPLING)


def without_looks(history):
    return [{key: value for key, value in row.items() if key not in KEYS} for row in numbers(history)]


@pytest.fixture(scope="module")
def start(tiny_model, tmp_path_factory):
    shown = [{"prompt": row["prompt"], "completion": assistant_message("I can not")} for row in ROWS]
    settings = SFTSettings(max_steps=2, batch_size=8, micro_batch=8, lora_r=8, lora_alpha=16, seed=0, device="cpu")
    folder = tmp_path_factory.mktemp("start") / "start"
    train_sft(tiny_model, Dataset.from_list(shown), folder, settings)
    return folder


@pytest.fixture(scope="module", params=["from the base model", "from an adapter"])
def pair(request, tiny_model, trunk, start, tmp_path_factory):
    """(the start, what `Worth` was asked, then (folder, history) of a run without looks and of one with them)."""
    root, begun = tmp_path_factory.mktemp("pair"), start if request.param == "from an adapter" else None
    worth, runs = Worth(), []
    for name, called in (("plain", []), ("watched", [watched(trunk.tokenizer, worth=worth)])):
        how = {"start": begun, "callbacks": called}
        runs.append((root / name, train_grpo(tiny_model, PROMPTS, count_e, root / name, grpo(**UPDATES), **how)))
    return begun, worth, *runs


def test_the_training_is_bit_for_bit_what_it_is_without(pair):
    _, _, (plain, before), (seen, history) = pair
    assert without_looks(history) == numbers(before)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (plain, seen))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_it_looks_before_the_first_update_every_so_many_and_before_the_last(pair):
    _, worth, _, (_, history) = pair
    assert [row.keys() >= KEYS for row in history] == [True, False, True, False, True, True]
    assert not KEYS & history[1].keys() and all(row["seconds"] > 0 for row in history)
    assert len(worth.asked) == 4
    assert {tuple(asked) for asked, _ in worth.asked} == {tuple(text_of(row["prompt"]) for row in ROWS[:6])}


def test_a_row_is_of_the_policy_that_began_its_update(pair, tiny_model, trunk, tmp_path):
    """The second look, by hand: what the policy after two updates says, letter by letter, and its KL in full."""
    begun, _, _, (_, history) = pair
    # a run of six whose schedule is constant passes through the run of two
    two = grpo(**UPDATES | {"max_steps": 2})
    train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "two", two, start=begun)
    policy = load_policy(tiny_model, "cpu", adapter=tmp_path / "two")
    asked = [row["prompt"] for row in ROWS[:6]]
    said = generate(policy, trunk.tokenizer, asked, **SAMPLING)
    share = [text.count("ea"[i % 2 == 0]) / max(len(text), 1) for i, text in enumerate(said)]
    harmful, harmless = sum(share[1::2]) / 3, sum(share[0::2]) / 3
    row = history[2]
    assert (row[goodness.HARMFUL], row[goodness.HARMLESS]) == pytest.approx((harmful, harmless))
    assert row[goodness.BALANCED] == pytest.approx((harmful + harmless) / 2) and harmful + harmless > 0
    reference = load_policy(tiny_model, "cpu", adapter=begun)
    total, tokens = 0.0, 0
    for prompt, text in zip(*answer_ids(policy, trunk.tokenizer, asked, said, 6), strict=True):
        with torch.no_grad():
            own, other = (m(**padded([prompt + text], m.device)).logits[0].softmax(-1) for m in (policy, reference))
        for place in range(len(prompt) - 1, len(prompt) + len(text) - 1):
            total += sum(float(p * (p / q).log()) for p, q in zip(own[place], other[place], strict=True))
            tokens += 1
    assert row[goodness.KL] == pytest.approx(total / tokens, rel=1e-3) and row[goodness.KL] > 1e-4
    assert history[0][goodness.KL] == pytest.approx(0, abs=1e-6), "the start is its own reference"


def test_a_killed_run_keeps_its_looks_and_a_run_without_them_is_another(pair, trunk, tiny_model, tmp_path):
    begun, _, _, (_, history) = pair
    calls, callback = [], watched(trunk.tokenizer)

    def killed(**columns):
        calls.append(columns["trainer_state"].global_step)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return count_e(**columns)

    killed.__name__ = "count_e"
    how = {"start": begun, "callbacks": [callback]}
    with pytest.raises(KeyboardInterrupt):
        train_grpo(tiny_model, PROMPTS, killed, tmp_path / "policy", grpo(**UPDATES), **how)
    calls.clear()
    resumed = train_grpo(tiny_model, PROMPTS, killed, tmp_path / "policy", grpo(**UPDATES), resume=True, **how)
    assert calls == [4, 5] and numbers(resumed) == numbers(history), "it went on from its checkpoint"
    calls.clear()
    again = train_grpo(tiny_model, PROMPTS, killed, tmp_path / "policy", grpo(**UPDATES), resume=True, **how)
    assert again == resumed and not calls, "finished, with all that was asked for"
    bare = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "policy", grpo(**UPDATES), resume=True, start=begun)
    assert numbers(bare) == without_looks(history), "nobody looked, so the history has nothing of it"


def test_a_run_without_a_leash_has_no_kl(tiny_model, trunk, tmp_path):
    rules = grpo(**UPDATES | {"max_steps": 1, "beta": 0.0})
    (row,) = train_grpo(tiny_model, PROMPTS, count_e, tmp_path / "p", rules, callbacks=[watched(trunk.tokenizer)])
    assert goodness.KL not in row and goodness.BALANCED in row


def test_prompts_are_the_same_for_the_same_seed_half_of_each_kind(tiny_model):
    rows = goodness.fixed_prompts(ROWS, 5, seed=1)
    assert [row["kind"] for row in rows] == ["harmful"] * 2 + ["lookalike"] * 2 and set(rows[0]) == {"prompt", "kind"}
    assert rows == goodness.fixed_prompts(ROWS, 5, seed=1) != goodness.fixed_prompts(ROWS, 5, seed=2)
    assert len(goodness.fixed_prompts(ROWS[:5], 70, seed=1)) == 4, "two harmful ones, so two look-alikes"
    with pytest.raises(InputError, match="are 0 harmful, 4 lookalike; it needs both kinds, or write goodness_every: 0"):
        goodness.fixed_prompts(ROWS[::2], 4, seed=1)


def test_nobody_looks_where_nobody_knows_or_never_is_said(tiny_model):
    tokenizer, worth = load_tokenizer(tiny_model), Worth()
    asked = goodness.callbacks(worth, tokenizer, ROWS, WatchedGRPO(goodness_every=4, goodness_prompts=6), **SAMPLING)
    assert [len(one.asked) for one in asked] == [6] and asked[0].every == 4
    assert goodness.callbacks(None, tokenizer, ROWS, WatchedGRPO(), **SAMPLING) == []
    assert goodness.callbacks(worth, tokenizer, ROWS, WatchedGRPO(goodness_every=0), **SAMPLING) == []
    prints = {watched(tokenizer, every).fingerprint for every in (2, 3)} | {asked[0].fingerprint}
    assert len(prints) == 3 and watched(tokenizer).fingerprint in prints
    assert {*WatchedGRPO.model_fields} - {*GRPOSettings.model_fields} == {"goodness_every", "goodness_prompts"}
