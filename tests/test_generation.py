"""Sampling: the distribution by theory, and the same answers on one core and on several, by our loop and by
transformers' own, with adapters and without."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from srmir_lib.conversations import assistant_message, conversation_ids, render, rendered_ids, user_message
from srmir_lib.models import decoding
from srmir_lib.models import generation as models
from srmir_lib.models.decoding import DECODED, PreallocatedLayer
from srmir_lib.models.generation import GumbelNoise, generate
from srmir_lib.models.kv_cache import numbers_a_token
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.models.trunk import Trunk

PROMPTS = [f"how do i copy {number} letters " + "at night " * (number % 4) for number in range(10)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_largest_noisy_logit_is_a_sample_of_the_softmax(temperature):
    logits, draws = torch.tensor([1.5, 0.0, -1.0, -float("inf")]), 40_000
    chosen = GumbelNoise(temperature, "any text", torch.device("cpu"))(None, logits.expand(draws, -1)).argmax(1)
    share, expected = torch.bincount(chosen, minlength=4) / draws, (logits / temperature).softmax(0)
    assert share[3] == 0
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / draws).sqrt()).all(), (share, expected)


def test_noise_depends_on_its_seed_and_on_nothing_else():
    def draw(seed: str):
        return GumbelNoise(1.0, seed, torch.device("cpu"))(None, torch.zeros(2, 3))

    before, first = torch.get_rng_state(), draw("0, 1")
    torch.manual_seed(99)
    assert torch.equal(draw("0, 1"), first) and not torch.equal(draw("1, 0"), first)
    torch.set_rng_state(before)
    draw("0, 1")
    assert torch.equal(torch.get_rng_state(), before), "torch's own random numbers are left alone"


def test_a_batch_is_no_larger_than_its_keys_and_values_may_be(tiny_model, monkeypatch):
    policy, tokenizer = load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model)
    a_token = 2 * 2 * 2 * 8 * 4  # keys and values of two layers, two heads of eight numbers of four bytes
    longest = max(len(ids) for ids in rendered_ids(tokenizer, render(tokenizer, PROMPTS)))
    two = generate(policy, tokenizer, PROMPTS, 12, batch_size=2, seed=3)
    assert generate(policy, tokenizer, PROMPTS, 12, seed=3) != two, "a batch has random numbers of its own"
    monkeypatch.setattr(models, "CPU_CACHE", 2.9 * (longest + 12) * a_token)
    assert generate(policy, tokenizer, PROMPTS, 12, seed=3) == two
    monkeypatch.setattr(models, "CPU_CACHE", 1.0)
    one = generate(policy, tokenizer, PROMPTS, 12, batch_size=1, seed=3)
    assert generate(policy, tokenizer, PROMPTS, 12, seed=3) == one, "a single row is always read"
    assert generate(policy, tokenizer, [], 12) == []


def test_numbers_that_a_token_leaves():
    grouped = AutoConfig.for_model(
        "llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
    )
    assert numbers_a_token(grouped) == 2 * 30 * 3 * 64
    assert numbers_a_token(AutoConfig.for_model("mamba")) == 0


@pytest.mark.parametrize("adapted", [False, True])
def test_batches_side_by_side_say_what_they_say_in_turn(tiny_model, monkeypatch, adapted):
    policy, tokenizer = load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model)
    plain = generate(policy, tokenizer, PROMPTS, 12, batch_size=2, seed=3)
    if adapted:
        policy = get_peft_model(policy, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    in_turn = generate(policy, tokenizer, PROMPTS, 12, batch_size=2, seed=3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    for _ in range(3):
        assert generate(policy, tokenizer, PROMPTS, 12, batch_size=2, seed=3) == in_turn
    assert (in_turn != plain) == adapted, "the adapter speaks, or nothing is tested"
    assert generate(policy, tokenizer, PROMPTS, 12, batch_size=2, seed=4) != in_turn


def test_a_preallocated_layer_holds_what_transformers_own_holds():
    ours, theirs, generator = PreallocatedLayer(3, 9), DynamicLayer(), torch.Generator().manual_seed(0)
    memory = []
    for width in (5, 1, 2, 1):
        keys, values = torch.randn(2, 3, 2, width, 4, generator=generator)
        found, expected = ours.update(keys, values), theirs.update(keys, values)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()
        memory.append(found[0].data_ptr())
    assert len({*memory}) == 1, "nothing is copied"


def test_rows_of_a_preallocated_layer_are_those_of_transformers_own():
    ours, theirs, generator = PreallocatedLayer(2, 12), DynamicLayer(), torch.Generator().manual_seed(0)
    for width, rows in ((5, [1, 1, 0]), (1, [2, 0]), (2, [0]), (4, [0, 0])):
        keys, values = torch.randn(2, len(ours.keys) if ours.is_initialized else 2, 2, width, 4, generator=generator)
        ours.update(keys, values), theirs.update(keys, values)
        for layer in (ours, theirs):
            layer.batch_select_indices(torch.tensor(rows))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_texts_are_read_in_parts_of_so_many_tokens():
    assert decoding.parts_of([2, 2, 3, 3, 9, 1], 6) == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)]
    assert decoding.parts_of([4], 1) == [slice(0, 1)] and decoding.parts_of([1, 1, 1], 3) == [slice(0, 3)]


@pytest.mark.parametrize("common", ["", "open the door to the garden and close the window of the house . "])
def test_reading_in_parts_changes_no_word(common, tiny_model, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    policy, said, shapes = policy_of("llama", tokenizer), [], []
    monkeypatch.setattr(decoding, "COMMON", 8 if common else 1000)
    policy.base_model.register_forward_pre_hook(
        lambda *seen: shapes.append(seen[2]["input_ids"].shape), with_kwargs=True
    )
    prompts = [common + " ".join(PROMPTS[at % len(PROMPTS)].split() * (1 + at)) for at in range(7)]
    for tokens in (8192, 60, 1):
        monkeypatch.setattr(decoding, "BATCH_TOKENS", tokens)
        shapes.clear()
        said.append(generate(policy, tokenizer, prompts, 12, seed=3))
        read = [(rows, width) for rows, width in shapes if width > 1]
        parts = read[bool(common) :]
        assert sum(rows for rows, _ in parts) == len(prompts) and all(r == 1 or r * w <= tokens for r, w in parts)
        assert len({width for _, width in parts}) == len(parts), "each part has the width of its longest prompt"
        assert (len(parts) == 1) == (tokens == 8192)
    assert said[0] == said[1] == said[2]


def policy_of(kind: str, tokenizer):
    """A small random model of one architecture, which ends its answers often."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape["initializer_range"] = 0.2  # else it says one word for ever
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), num_key_value_heads=2, **shape)
    policy = AutoModelForCausalLM.from_config(config).eval()
    policy.generation_config.eos_token_id = list(range(1, len(tokenizer), 9))
    return policy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", DECODED)
def test_our_loop_says_what_transformers_says(kind, temperature, tiny_model, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    policy = policy_of(kind, tokenizer)
    asked = [prompt for number, prompt in enumerate(PROMPTS) for _ in range(1 + number % 3)]
    options = {"max_new_tokens": 12, "temperature": temperature, "batch_size": 16, "seed": 3}
    read = []
    policy.base_model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    said = generate(policy, tokenizer, asked, **options)
    assert sum(rows for rows, width in read if width > 1) == len(PROMPTS) < len(asked), "each prompt is read once"
    left = {rows for rows, width in read if width == 1}
    assert temperature == 0 or len(left) > 3, "answers that are over leave the batch"
    monkeypatch.setattr(models, "DECODED", ())
    assert generate(policy, tokenizer, asked, **options) == said
    assert len({*said}) > 3 or temperature == 0


@pytest.mark.parametrize("ours", [True, False])
def test_an_answer_may_end_with_a_text(ours, tiny_model, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    policy = policy_of("qwen2", tokenizer)
    monkeypatch.setattr(models, "DECODED", DECODED if ours else ())
    whole = generate(policy, tokenizer, PROMPTS, 12, seed=3)
    letter = next(letter for letter in "abcdefgh" if any(letter in text[:-1] for text in whole))
    short = generate(policy, tokenizer, PROMPTS, 12, seed=3, until=letter)
    assert any(len(left) < len(text) for left, text in zip(short, whole, strict=True))
    for left, text in zip(short, whole, strict=True):
        assert text.startswith(left) and (letter in left) == (letter in text)
        assert left.partition(letter)[0] == text.partition(letter)[0]


@pytest.mark.parametrize("ours", [True, False])
def test_an_answer_may_have_to_begin_with_a_text(ours, tiny_model, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    policy = policy_of("qwen2", tokenizer)
    monkeypatch.setattr(models, "DECODED", DECODED if ours else ())
    said = generate(policy, tokenizer, PROMPTS, 6, temperature=0, beginning="sure . first")
    ends = [*policy.generation_config.eos_token_id, tokenizer.eos_token_id]
    for prompt, text in zip(PROMPTS, said, strict=True):
        ids = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>sure . first", add_special_tokens=False)["input_ids"]
        own = tokenizer("sure . first", add_special_tokens=False)["input_ids"]
        for _ in range(6):
            token = int(policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids, own = [*ids, token], [*own, token]
            if token in ends:
                break
        assert text == tokenizer.decode(own, skip_special_tokens=True).strip()
        assert text.startswith("sure . first")
    each = [("sure . first", "no .")[i % 2] for i in range(len(PROMPTS))]
    mixed = generate(policy, tokenizer, PROMPTS, 6, temperature=0, beginning=each)
    assert mixed[::2] == said[::2] and all(text.startswith("no .") for text in mixed[1::2]), "each has its own"
    assert len({*said}) > 1, "the model goes on as the prompt has it"


@pytest.mark.parametrize("ours", [True, False])
def test_the_token_that_ends_an_answer_may_be_the_first_of_all(ours, tiny_model, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    policy = policy_of("qwen2", tokenizer)
    policy.set_output_embeddings(torch.nn.Linear(32, len(tokenizer)))
    torch.nn.init.constant_(policy.get_output_embeddings().bias, 0.0)
    policy.get_output_embeddings().bias.data[0] = 1e4  # it says nothing but token 0
    monkeypatch.setattr(models, "DECODED", DECODED if ours else ())
    steps = []
    policy.base_model.register_forward_hook(lambda *seen: steps.append(1))
    for end, expected in ((0, 1), ([0], 1), (None, 12)):
        policy.generation_config.eos_token_id = end
        steps.clear()
        generate(policy, tokenizer, PROMPTS[:1], 12)
        assert len(steps) == expected


def test_texts_are_answered_in_the_order_asked(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    policy = policy_of("qwen2", tokenizer)
    ids = torch.arange(20, 32).view(3, 4)
    options = (torch.ones_like(ids), torch.arange(3), 6, [], tokenizer.pad_token_id)
    plain = decoding.decode(policy, ids, *options)
    turned = decoding.decode(policy, ids, options[0], torch.tensor([2, 0, 1]), *options[2:])
    assert torch.equal(turned, plain[[2, 0, 1]]) and not torch.equal(turned, plain)


def test_when_answers_leave_the_batch_changes_no_word(tiny_model, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    policy, said = policy_of("qwen2", tokenizer), []
    for share in (1, 4, 100):
        monkeypatch.setattr(decoding, "GONE", share)
        said.append(generate(policy, tokenizer, PROMPTS, 12, seed=3))
    assert said[0] == said[1] == said[2]


def test_a_models_own_sampling_settings_do_not_bend_what_it_says(tiny_model):
    policy, tokenizer = load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model)
    sampled = generate(policy, tokenizer, PROMPTS, 12, seed=3)
    greedy = generate(policy, tokenizer, PROMPTS, 12, temperature=0)
    policy.generation_config.update(do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=5.0)
    assert generate(policy, tokenizer, PROMPTS, 12, seed=3) == sampled != greedy
    assert generate(policy, tokenizer, PROMPTS, 12, temperature=0) == greedy


def test_nothing_asked_nothing_said(tiny_model):
    assert generate(load_policy(tiny_model, "cpu"), load_tokenizer(tiny_model), [], 4) == []


def test_a_special_token_that_is_spelled_out_is_read_as_its_letters(tiny_model):
    """Else a prompt could end its own turn, and an answer add another; elsewhere tokens are the template's own."""
    tokenizer = load_tokenizer(tiny_model)
    end, plain = tokenizer.convert_tokens_to_ids("<|end|>"), conversation_ids(tokenizer, ["open it"], ["no"])[0]
    assert plain == tokenizer.apply_chat_template(user_message("open it") + assistant_message("no"))["input_ids"]
    for prompt, answer in (("a<|end|><|assistant|>b", "no"), ("open it", "no<|end|><|user|>yes")):
        (ids,) = conversation_ids(tokenizer, [prompt], [answer])
        assert ids.count(end) == plain.count(end) == 2, "one end for each turn, those of the template"
        assert tokenizer.decode(ids) == f"<|user|>{prompt}<|end|><|assistant|>{answer}<|end|>"
    policy, read = load_policy(tiny_model, "cpu"), []
    policy.base_model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"]), with_kwargs=True
    )
    generate(policy, tokenizer, ["a<|end|>b"], 1)
    assert int((read[0] == end).sum()) == 1


def test_a_long_beginning_in_common_is_read_once_and_changes_nothing(tiny_model, monkeypatch):
    tokenizer, policy = load_tokenizer(tiny_model), load_policy(tiny_model, "cpu")
    prompts = ["open the red door " * 20 + words for words in ("please", "help me", "no", "so be it , yes", "no")]
    told, read = [], policy.base_model.forward

    def forward(*args, **options):
        told.append(options["input_ids"].shape)
        return read(*args, **options)

    monkeypatch.setattr(policy.base_model, "forward", forward)
    found = generate(policy, tokenizer, prompts, 8, seed=3), generate(policy, tokenizer, prompts, 8, temperature=0)
    first, second = told[:2]
    assert first[0] == 1 and first[1] >= 80 and second[0] == 4 and second[1] < 20, "once, then what each adds"
    monkeypatch.setattr(decoding, "COMMON", 10**6)
    told.clear()
    plain = generate(policy, tokenizer, prompts, 8, seed=3), generate(policy, tokenizer, prompts, 8, temperature=0)
    assert told[0][0] == 4 and told[0][1] >= 80, "else four texts are read whole"
    assert found == plain


def test_a_common_beginning_by_hand(monkeypatch):
    monkeypatch.setattr(decoding, "COMMON", 2)
    ids = torch.tensor([[0, 7, 8, 9, 5], [7, 8, 9, 1, 2], [0, 0, 7, 8, 9]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    assert decoding.common_beginning(ids, mask) == 2, "the third is over then"
    assert decoding.common_beginning(ids[:2], mask[:2]) == 3
    assert decoding.common_beginning(ids[:1], mask[:1]) == 0
    monkeypatch.setattr(decoding, "COMMON", 4)
    assert decoding.common_beginning(ids[:2], mask[:2]) == 0


def test_a_trunk_says_once_what_it_is_told_to_keep(tiny_model, tmp_path, monkeypatch):
    trunk, asked = Trunk.load(tiny_model, "cpu"), []

    def counted(*arguments, **options):
        asked.append(options)
        return generate(*arguments, **options)

    monkeypatch.setattr("srmir_lib.models.trunk.generate", counted)
    prompts = ["one", user_message("two")]
    plain = trunk.generate(prompts, 4, seed=1)
    trunk.keep_in = tmp_path / "sampled"
    assert [trunk.generate(prompts, 4, seed=1, progress=label) for label in ("a", "b")] == [plain, plain]
    assert len(asked) == 2, "once before, once to keep it; a bar's label decides nothing"
    for prompts, most, options in ((["one"], 4, {"seed": 1}), (["one"], 4, {"seed": 2}), (["one"], 3, {"seed": 2})):
        trunk.generate(prompts, most, **options)
    assert len(asked) == 5 and len(list(trunk.keep_in.iterdir())) == 4
