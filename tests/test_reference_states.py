"""What GRPO's reference has read is not read again: the same scores, from TRL's own forward, and nothing is left."""

from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_training import grpo

from srmir_lib.conversations import assistant_message, conversation_ids, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_tokenizer, load_weights, share_weights
from srmir_lib.policies.training import train_grpo
from srmir_lib.reward_models.config import ProbeSettings
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.studies.a5_cost import contestants as peers

SAID = [
    ("please help", "you are right, here is what to say"),
    ("please help", "no"),
    ("first get ready, then open the red door", "then check that it is done."),
    ("danger", "harmful"),
    ("you are right", "first get ready, then open the red door, then check that it is done. " * 2),
]
PROMPTS = [user_message(prompt) for prompt, _ in SAID]
ANSWERS = [assistant_message(answer) for _, answer in SAID]


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture
def base(tiny_model):
    return load_weights(tiny_model, "cpu")


def _set(base, tokenizer, count: int = 3) -> ShadowRewardModels:
    models = peers.random_set(base, tokenizer, count, ProbeSettings(tokens=4, rank=2, alpha=4), batch_tokens=64)
    models.scorer.trunk.pass_tokens = 16  # less than these texts have
    return models


@pytest.fixture
def models(base, tokenizer) -> ShadowRewardModels:
    return _set(base, tokenizer)


@pytest.fixture
def policy(base):
    """On the weights of `base`, with an adapter that changes what it reads."""
    model = get_peft_model(share_weights(base), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return model.train()  # as a trainer's model is


@torch.no_grad()
def reference_reads(policy, tokenizer, ids, adapters_on: bool = False) -> None:
    """One pass over texts of different lengths, padded on both sides as TRL pads prompts and completions."""
    width = max(map(len, ids)) + 3
    before = [1 + number % 3 for number in range(len(ids))]
    rows = [[0] * left + list(row) + [0] * (width - left - len(row)) for left, row in zip(before, ids, strict=True)]
    mask = [
        [0] * left + [1] * len(row) + [0] * (width - left - len(row)) for left, row in zip(before, ids, strict=True)
    ]
    with nullcontext() if adapters_on else policy.disable_adapter():
        policy(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask))


@pytest.fixture
def read(models, monkeypatch) -> list[int]:
    """Tokens of each text that the reward models' trunk reads itself, as they are read."""
    lengths, own = [], models.scorer.trunk._forward

    def counted(ids, *args, **options):
        lengths.extend(map(len, ids))
        return own(ids, *args, **options)

    monkeypatch.setattr(models.scorer.trunk, "_forward", counted)
    return lengths


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_scores_of_what_the_reference_has_read_are_the_same(models, policy, tokenizer, read, missing):
    """`missing`: so many last tokens the reference has not read, as where an answer was cut off."""
    of = [*models.categories, *models.categories[:2]]
    alone, routed = models.score(PROMPTS, ANSWERS), models.score(PROMPTS, ANSWERS, categories=of)
    ids = conversation_ids(tokenizer, PROMPTS, ANSWERS)
    read.clear()
    with models.following(policy) as reference:
        reference_reads(policy, tokenizer, [row[: len(row) - missing] for row in ids])
        torch.testing.assert_close(models.score(PROMPTS, ANSWERS), alone, atol=1e-5, rtol=0)
        again = models.score(PROMPTS, ANSWERS, categories=of)
        torch.testing.assert_close(again, routed, atol=1e-5, rtol=0)
        assert reference.lent == 2 * len(SAID)
        assert reference.passes[0].keys[0].shape[2] - reference.passes[0].mask.shape[1] == 12, "room for three probes"
    assert read == ([missing] * 2 * len(SAID) if missing else [])
    torch.testing.assert_close(models.score(PROMPTS, ANSWERS), alone, atol=0, rtol=0)


def test_what_the_reference_has_not_read_is_read_as_ever(models, policy, tokenizer, read):
    alone, ids = models.score(PROMPTS, ANSWERS), conversation_ids(tokenizer, PROMPTS, ANSWERS)
    read.clear()
    with models.following(policy) as reference:
        reference_reads(policy, tokenizer, ids[:2])
        torch.testing.assert_close(models.score(PROMPTS, ANSWERS), alone, atol=1e-5, rtol=0)
        assert reference.lent == 2 and sorted(read) == sorted(map(len, ids[2:]))
        torch.testing.assert_close(models.score(PROMPTS[::-1], ANSWERS[::-1]), alone.flip(0), atol=1e-5, rtol=0)


def test_states_are_kept_until_the_policy_reads_and_no_others(models, policy, tokenizer):
    ids = conversation_ids(tokenizer, PROMPTS, ANSWERS)
    with models.following(policy) as reference:
        reference_reads(policy, tokenizer, ids)
        assert len(reference.find(ids)) == len(ids)
        reference_reads(policy, tokenizer, ids, adapters_on=True)
        assert not reference.find(ids) and not reference.passes, "the policy's own states are not the trunk's"
        with torch.enable_grad(), policy.disable_adapter():
            policy(input_ids=torch.tensor(ids[:1]), attention_mask=torch.ones(1, len(ids[0])))
        assert not reference.find(ids), "a pass that is trained keeps its states for itself"
    assert not reference.find(ids) and models.scorer.trunk.reference is None
    reference_reads(policy, tokenizer, ids)
    assert not reference.passes, "nothing listens any more"


def test_memory_is_bounded_and_its_size_known_beforehand(models, policy, tokenizer):
    ids = conversation_ids(tokenizer, PROMPTS, ANSWERS)
    with models.following(policy) as reference:
        reference_reads(policy, tokenizer, ids)
        kept = reference.passes[0]
        held = kept.keys[0].untyped_storage().nbytes() + kept.values[0].untyped_storage().nbytes()
        assert reference._bytes(len(ids), kept.mask.shape[1]) == held
    for passes in (0, 1):
        with models.following(policy, keep_gb=held * (passes + 0.5) / 1e9) as reference:
            for _ in range(3):
                reference_reads(policy, tokenizer, ids)
            assert len(reference.passes) == passes


def test_a_pass_in_another_precision_is_not_lent(models, policy, tokenizer):
    ids = conversation_ids(tokenizer, PROMPTS, ANSWERS)
    with models.following(policy) as reference, torch.autocast("cpu", torch.bfloat16):
        reference_reads(policy, tokenizer, ids)
        assert not reference.find(ids)


def test_a_text_with_a_hole_and_a_pass_of_few_tokens_are_not_lent(models, policy, tokenizer):
    ids = conversation_ids(tokenizer, PROMPTS, ANSWERS)
    whole = torch.ones(1, len(ids[4]) + 1)
    whole[0, 5] = 0
    with models.following(policy) as reference, torch.no_grad(), policy.disable_adapter():
        policy(input_ids=torch.tensor([ids[4][:5] + [0] + ids[4][5:]]), attention_mask=whole)
        assert reference.passes and not reference.places, "its later tokens were read one place too far on"
        reference.clear()
        policy(input_ids=torch.tensor([ids[1]]), attention_mask=torch.ones(1, len(ids[1])))
        assert bool(reference.passes) == (len(ids[1]) >= models.scorer.trunk.pass_tokens)
        reference.least = len(ids[1]) + 1
        reference.clear()
        policy(input_ids=torch.tensor([ids[1]]), attention_mask=torch.ones(1, len(ids[1])))
        assert not reference.passes


def test_where_nothing_read_is_asked_for_nothing_more_is_kept(models, policy, tokenizer):
    ids, alone = conversation_ids(tokenizer, PROMPTS, ANSWERS), models.score(PROMPTS, ANSWERS)
    with models.following(policy) as reference:
        reference_reads(policy, tokenizer, [row[::-1] for row in ids])
        torch.testing.assert_close(models.score(PROMPTS, ANSWERS), alone, atol=0, rtol=0)
        reference_reads(policy, tokenizer, ids)
        assert not reference.passes


def test_two_sets_on_one_trunk_follow_together_and_nothing_is_left(models, policy, base, tokenizer):
    other, ids = _set(base, tokenizer, 5), conversation_ids(tokenizer, PROMPTS, ANSWERS)
    other.scorer.trunk = models.scorer.trunk
    alone = [own.score(PROMPTS, ANSWERS) for own in (models, other)]
    with models.following(policy) as outer:
        with other.following(policy) as inner:
            assert inner is outer
        reference_reads(policy, tokenizer, ids)
        for own, scores in zip((models, other), alone, strict=True):
            torch.testing.assert_close(own.score(PROMPTS, ANSWERS), scores, atol=1e-5, rtol=0)
        assert outer.lent == 2 * len(SAID)
        second = get_peft_model(share_weights(base), LoraConfig(r=2, target_modules="all-linear"))
        with pytest.raises(InputError, match="another policy"), other.following(second):
            pass
    decoder = policy.get_base_model().base_model
    assert not decoder._forward_hooks and not decoder._forward_pre_hooks and models.scorer.trunk.reference is None


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")  # of the adapter on the head alone
@pytest.mark.parametrize(
    "case",
    ["other weights", "one other matrix", "its own modules", "no adapter", "no layer", "reference", "draft", "design"],
)
def test_models_that_read_something_else_refuse(models, policy, base, tiny_model, case):
    lora = {"r": 2, "target_modules": "all-linear"}
    if case == "other weights":
        policy = get_peft_model(load_weights(tiny_model, "cpu"), LoraConfig(**lora))
    elif case == "one other matrix":
        layer = policy.get_base_model().base_model.layers[1].mlp.up_proj.base_layer
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    elif case == "its own modules":
        policy = get_peft_model(base, LoraConfig(**lora))
    elif case == "no adapter":
        policy = base
    elif case == "no layer":
        policy = get_peft_model(share_weights(base), LoraConfig(r=2, target_modules=["lm_head"]))
    elif case == "reference":
        policy.add_adapter("ref", LoraConfig(**lora))
    elif case == "draft":
        models.asks = ("sha", "why would you refuse {prompt} ?", 24)
    else:
        models.design = "separate"
    assert not models.can_follow(policy)
    with (
        pytest.raises(InputError, match="following: design .* without a draft .* very weights"),
        models.following(policy),
    ):
        pass


@pytest.mark.parametrize("start", [False, True])
def test_the_trainer_of_this_version_reads_once(models, base, tokenizer, tiny_model, tmp_path, monkeypatch, start):
    """TRL's own reference forward: every answer that is spelled as the tokenizer spells it is lent, and the rewards are
    those without; from a start on, the reference has an adapter, and nothing is lent."""
    prompts = Dataset.from_list([{"prompt": user_message(f"please help {number}")} for number in range(5)])
    settings, plain, lent, same = grpo(max_steps=4, micro_batch=4, prompts_per_step=6), models.reward("linear"), [], []

    def reward(prompts, completions, completion_ids, **columns):
        end, reference = tokenizer.eos_token_id, models.scorer.trunk.reference
        for answer, ids in zip(completions, completion_ids, strict=True):
            spelled = tokenizer(answer[0]["content"], add_special_tokens=False)["input_ids"]
            same.append(spelled == (ids[:-1] if ids[-1] == end else ids))
        rewards = plain(prompts=prompts, completions=completions, **columns)
        lent.append(reference and reference.lent)
        return rewards

    reward.models, begun = models, tmp_path / "start" if start else None
    if start:
        train_grpo(tiny_model, prompts, plain, begun, settings, model=base)
    followed = train_grpo(tiny_model, prompts, reward, tmp_path / "followed", settings, model=base, start=begun)
    if start:
        assert lent == [None] * 4
    else:
        assert lent[-1] == sum(same) >= 5, "a random model seldom spells as its tokenizer does"
    monkeypatch.setattr(ShadowRewardModels, "can_follow", lambda *_: False)
    alone = train_grpo(tiny_model, prompts, reward, tmp_path / "alone", settings, model=base, start=begun)
    assert [row["reward"] for row in followed] == pytest.approx([row["reward"] for row in alone], abs=1e-4)
    assert models.scorer.trunk.reference is None
