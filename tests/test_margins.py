"""Legend by hand: direction, margins, their scale, and the embeddings they are read from."""

import weakref
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny_bert import write_tiny_bert
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import margins
from srmir_lib.data.margins import annotate, estimate_direction, in_plane, length_correlation, with_margins
from srmir_lib.errors import InputError
from srmir_lib.models.batching import counted
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import load_policy, load_tokenizer, load_trunk
from srmir_lib.papers.legend import legend_margin, safety_direction, scale_margins


def test_direction_by_hand():
    safe, harmful = torch.tensor([[3.0, 4.0], [5.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # mean difference (3, 4), length 5
    assert torch.allclose(safety_direction(safe, harmful), torch.tensor([0.6, 0.8]))


def test_direction_ignores_the_order_of_pairs_and_has_unit_length():
    generator = torch.Generator().manual_seed(0)
    safe, harmful = torch.randn(20, 8, generator=generator), torch.randn(20, 8, generator=generator)
    order = torch.randperm(20, generator=generator)
    direction = safety_direction(safe, harmful)
    assert torch.allclose(direction, safety_direction(safe[order], harmful[order]), atol=1e-6)
    assert direction.norm().item() == pytest.approx(1.0, abs=1e-6)


def test_equal_answers_have_no_direction():
    with pytest.raises(InputError, match="must differ"):
        safety_direction(torch.ones(3, 2), torch.ones(3, 2))


def test_margin_by_hand_and_antisymmetric():
    chosen, rejected = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    direction = torch.tensor([0.6, 0.8])
    assert legend_margin(chosen, rejected, direction).item() == pytest.approx(2 * 0.6 - 1 * 0.8)
    assert legend_margin(rejected, chosen, direction) == -legend_margin(chosen, rejected, direction)


@pytest.mark.parametrize(
    ("negative", "expected"),
    [
        ("keep", [-3.0, 0.0, 4.0, 5.0]),
        ("clip", [0.0, 0.0, 4.0, 5.0]),
        ("flip", [3.0, 0.0, 4.0, 5.0]),
        ("drop", [float("nan"), 0.0, 4.0, 5.0]),
    ],
)
def test_policies_for_negative_margins(negative, expected):
    result = scale_margins(torch.tensor([-3.0, 0.0, 4.0, 5.0]), "none", negative)
    assert torch.equal(result.nan_to_num(9.0), torch.tensor(expected).nan_to_num(9.0))


def test_scales_by_hand():
    # root mean square of 3, 4, 0, 5 is sqrt(50 / 4)
    result = scale_margins(torch.tensor([3.0, 4.0, 0.0, 5.0]), "unit", size=2.0)
    assert torch.allclose(result, 2 * torch.tensor([3.0, 4.0, 0.0, 5.0]) / 12.5**0.5)
    # quartiles of 1 .. 8 lie at 2.75, 4.5, 6.25
    result = scale_margins(torch.tensor([8.0, 1, 2, 3, 4, 5, 6, 7]), "binned", size=3.0)
    assert torch.allclose(result, torch.tensor([3.0, 0, 0, 1, 1, 2, 2, 3]))


def test_bins_below_zero_ask_for_nothing_however_many_they_are():
    """Quartiles of 0, 1, 2, 3, 4 are 1, 2 and 3; six more pairs disagree."""
    margins = torch.tensor([-6.0, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4])
    wanted = torch.tensor([0.0] * 8 + [1 / 3, 2 / 3, 1.0])
    torch.testing.assert_close(scale_margins(margins, "binned"), wanted)
    torch.testing.assert_close(scale_margins(margins, "binned", "clip")[:6], torch.zeros(6))
    torch.testing.assert_close(scale_margins(-torch.ones(3), "binned"), torch.zeros(3))


def test_bad_margins_and_options_are_refused():
    for bad in (torch.tensor([1.0, float("nan")]), torch.ones(2, 2), torch.ones(0)):
        with pytest.raises(InputError, match="finite"):
            scale_margins(bad)
    with pytest.raises(InputError, match="use one of"):
        scale_margins(torch.ones(2), scale="cubic")


def _pairs() -> Dataset:
    rows = [("a", "no", "yes"), ("b", "never", "first open the door")]
    return Dataset.from_list(
        [
            {"prompt": user_message(p), "chosen": assistant_message(c), "rejected": assistant_message(r)}
            for p, c, r in rows
        ]
    )


def test_in_a_plane_margins_stay_and_the_widest_direction_across_is_the_other_axis():
    direction, steps = torch.tensor([1.0, 0.0, 0.0]), torch.arange(4.0)
    left = torch.stack([steps, 5 * steps, steps % 2], dim=1)
    right = left - torch.tensor([2.0, 0.0, 0.0])
    better, worse = in_plane(left, right, direction)
    torch.testing.assert_close(better[:, 0] - worse[:, 0], legend_margin(left, right, direction))
    torch.testing.assert_close(better[:, 1], worse[:, 1])
    assert better[:, 1].diff().abs().tolist() == pytest.approx([5.0] * 3, abs=0.2), (
        "the second axis, five times as wide"
    )


def test_with_margins_adds_drops_and_swaps():
    margins = torch.tensor([2.0, -1.0])
    kept = with_margins(_pairs(), margins, "none", "keep")
    assert kept["margin"][:] == [2.0, -1.0]
    dropped = with_margins(_pairs(), margins, "none", "drop")
    assert [row["prompt"][0]["content"] for row in dropped] == ["a"]
    flipped = with_margins(_pairs(), margins, "none", "flip")
    assert [row["chosen"][0]["content"] for row in flipped] == ["no", "first open the door"]
    assert [row["rejected"][0]["content"] for row in flipped] == ["yes", "never"]
    assert flipped["margin"][:] == [2.0, 1.0]
    with pytest.raises(InputError, match="3 for 2 pairs"):
        with_margins(_pairs(), torch.ones(3))


def test_a_column_of_margins_that_is_there_already_is_not_replaced():
    own = _pairs().add_column("margin", [7.0, 8.0])
    for call in (
        lambda: with_margins(own, torch.ones(2)),
        lambda: margins.splits_with_margins({"train": own}, {"train": torch.ones(2)}, "unit", "clip", 1.0),
    ):
        with pytest.raises(InputError, match="there is a column margin already"):
            call()
    assert with_margins(own, torch.ones(2), column="legend")["margin"][:] == [7.0, 8.0]


def test_only_margins_of_training_pairs_are_clipped():
    own, scores = {"train": _pairs(), "test": _pairs()}, torch.tensor([2.0, -1.0])
    found = margins.splits_with_margins(own, dict.fromkeys(own, scores), "unit", "clip", 3.0)
    # root mean squares: of (2, 0) the root of 2, of (2, -1) that of 2.5
    assert found["train"]["margin"][:] == pytest.approx([6 / 2**0.5, 0.0])
    assert found["test"]["margin"][:] == pytest.approx([6 / 2.5**0.5, -3 / 2.5**0.5])


def test_length_correlation_by_hand():
    chosen, rejected = ["a b", "a", "a b c"], ["a", "a", "a"]  # differences 1, 0, 2
    assert length_correlation(torch.tensor([1.0, 0.0, 2.0]), chosen, rejected) == pytest.approx(1.0)
    assert length_correlation(torch.tensor([-1.0, 0.0, -2.0]), chosen, rejected) == pytest.approx(-1.0)
    assert length_correlation(torch.ones(3), chosen, rejected) == 0.0


@pytest.mark.parametrize("layer", [-1, 1, 0])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_equal_a_naive_loop(tiny_model, layer, pooling):
    """Batch 1, full model, all hidden states: slow, and obviously right."""
    policy = load_policy(tiny_model, "cpu")
    trunk, tokenizer = load_trunk(tiny_model, "cpu")
    prompts, answers = ["please help me", "open the door"], ["no", "first get ready, then check that it is done"]
    ours = embed(trunk, tokenizer, prompts, answers, layer=layer, pooling=pooling)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = f"<|user|>{prompt}<|end|><|assistant|>"
        ids = tokenizer(start + f"{answer}<|end|>", return_tensors="pt")
        with torch.no_grad():
            states = policy(**ids, output_hidden_states=True).hidden_states[layer][0]
        first = len(tokenizer(start)["input_ids"])
        naive = states[-1] if pooling == "last" else states[first:].mean(dim=0)
        assert torch.allclose(ours[row], naive, atol=1e-5)
    causal = embed(policy, tokenizer, prompts, answers, layer=layer, pooling=pooling)
    assert torch.allclose(causal, ours, atol=1e-6), "a causal LM and its own trunk give the same embedding"


def test_embeddings_do_not_depend_on_the_batch(tiny_model):
    trunk, tokenizer = load_trunk(tiny_model, "cpu")
    prompts = ["help", "first get ready, then open the red door", "you are right", "a"]
    together = embed(trunk, tokenizer, prompts)
    alone = torch.cat([embed(trunk, tokenizer, [prompt]) for prompt in prompts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_missing_layer_or_pooling_is_refused(tiny_model):
    trunk, tokenizer = load_trunk(tiny_model, "cpu")
    with pytest.raises(InputError, match="hidden states 0 to 2"):
        embed(trunk, tokenizer, ["a"], layer=3)
    with pytest.raises(InputError, match="pooling"):
        embed(trunk, tokenizer, ["a"], pooling="max")


def test_direction_and_margins_of_a_model(tiny_model):
    trunk, tokenizer = load_trunk(tiny_model, "cpu")
    prompts, answers, refusals = ["a", "b", "c"], ["yes", "first open", "check"], ["I can not.", "No, it would hurt."]
    direction = estimate_direction(trunk, tokenizer, prompts, answers, refusals)
    safe = embed(trunk, tokenizer, prompts, ["I can not.", "No, it would hurt.", "I can not."])
    assert torch.allclose(direction, safety_direction(safe, embed(trunk, tokenizer, prompts, answers)), atol=1e-6)
    margins = annotate(trunk, tokenizer, _pairs(), direction)
    assert margins.shape == (2,)
    with pytest.raises(InputError, match="refusals"):
        estimate_direction(trunk, tokenizer, prompts, answers, [])


def test_the_direction_is_read_off_prompts_with_a_refusal_due_of_all_categories():
    """Sorted by category, as 01 writes them: the first rows are of one category, and half of them harmless."""
    rows = []
    for category, prompts in (("crimes", 30), ("ethics", 8), ("insult", 12)):
        for n in range(prompts):
            for origin in ("policy", "policy", "shuffled"):
                answer = {"chosen": assistant_message("a"), "rejected": assistant_message(f"{origin} {len(rows)}")}
                rows.append(
                    {"prompt": user_message(f"{category} {n}"), "category": category, "origin": origin} | answer
                )
    pairs, refused = (
        Dataset.from_list(rows),
        {f"{c} {n}" for c in ("crimes", "ethics", "insult") for n in range(0, 30, 2)},
    )
    chosen = margins.harmful_answers(pairs, refused, 12)
    assert {row["origin"] for row in chosen} == {"policy"}
    asked = [row["prompt"][0]["content"] for row in chosen]
    assert asked == [f"{c} {n}" for c in ("crimes", "ethics", "insult") for n in (0, 2, 4, 6)], "four each, none twice"
    counts = Counter(margins.harmful_answers(pairs, refused, 26)["category"])
    assert counts == {"crimes": 9, "ethics": 8, "insult": 9}, "ethics has four prompts with two answers each"
    everything = margins.harmful_answers(pairs, refused, 10_000)
    assert len(everything) == 2 * (15 + 4 + 6)
    with pytest.raises(InputError, match="no demonstration refuses"):
        margins.harmful_answers(pairs, {"another prompt"}, 12)


def test_unsafe_answers_are_those_that_people_called_so_evenly_spread():
    rows = [
        {"prompt": f"{name} {n}", "category": name, "unsafe": int(n % 2), "completion": f"said {n}"}
        for name, count in (("crimes", 8), ("ethics", 4))
        for n in range(count)
    ]
    found = margins.unsafe_answers(Dataset.from_list(rows), 4)
    assert found["prompt"][:] == ["crimes 1", "crimes 3", "ethics 1", "ethics 3"]
    assert found["rejected"][:] == ["said 1", "said 3", "said 1", "said 3"]


def test_refused_prompts_are_texts():
    rows = [{"prompt": user_message("how"), "refuses": True}, {"prompt": user_message("why"), "refuses": False}]
    assert margins.refused_prompts(rows) == {"how"}


def test_hidden_states_come_from_the_trunk_or_from_an_encoder(trunk, tmp_path):
    assert margins.hidden_state_reader(trunk, "a model that nobody has") == (trunk.model, trunk.tokenizer)
    model, _ = margins.hidden_state_reader(None, write_tiny_bert(tmp_path / "bert"), "cpu")
    assert type(model).__name__ == "BertModel"


def test_a_text_that_comes_several_times_is_read_once(tiny_model, monkeypatch):
    trunk, tokenizer = load_trunk(tiny_model, "cpu")
    prompts, left, right = ["a", "a", "b"], ["no", assistant_message("no"), "no"], ["yes", "first", "yes"]
    read = []

    def counting(model, tokenizer, prompts, responses, **options):
        read.extend(zip(prompts, responses, strict=True))
        return shared(model, tokenizer, prompts, responses, **options)

    shared = margins._embed_shared
    monkeypatch.setattr(margins, "_embed_shared", counting)
    first, second = margins.embed_sides(trunk, tokenizer, prompts, left, right)
    assert sorted(read) == [("a", "first"), ("a", "no"), ("a", "yes"), ("b", "no"), ("b", "yes")]
    assert torch.allclose(first, embed(trunk, tokenizer, prompts, left), atol=1e-5)
    assert torch.allclose(second, embed(trunk, tokenizer, prompts, right), atol=1e-5)


SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
DECODERS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "a window of 8 tokens": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)),
}
ASKED = ["please help me open the red door", "please help me open the red door", "a", "then you are right"]
CHOSEN = ["no", "no", "I can not answer that because it would hurt someone", "yes"]
REJECTED = ["first get ready, then check that it is done", "yes", "no", "here is what to say"]


def decoder(name: str):
    torch.manual_seed(0)
    return DECODERS[name]().eval().requires_grad_(False)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [-1, 3, 2, 1, 0, -4])
@pytest.mark.parametrize("name", DECODERS)
def test_margins_equal_one_text_at_a_time(tiny_model, name, layer, pooling):
    """Batch 1, logits, all hidden states; nothing shared, nothing stopped early."""
    model, tokenizer = decoder(name), load_tokenizer(tiny_model)
    direction = torch.nn.functional.normalize(torch.arange(32.0) - 11, dim=0)

    def naive(prompt: str, answer: str) -> torch.Tensor:
        start = f"<|user|>{prompt}<|end|><|assistant|>"
        ids = tokenizer(f"{start}{answer}<|end|>", return_tensors="pt")
        with torch.no_grad():
            states = model(**ids, output_hidden_states=True).hidden_states[layer][0]
        return states[-1] if pooling == "last" else states[len(tokenizer(start)["input_ids"]) :].mean(dim=0)

    pairs = {"prompt": ASKED, "chosen": CHOSEN, "rejected": REJECTED}
    ours = annotate(model, tokenizer, pairs, direction, layer=layer, pooling=pooling)
    theirs = [(naive(p, c) - naive(p, r)) @ direction for p, c, r in zip(ASKED, CHOSEN, REJECTED, strict=True)]
    assert torch.allclose(ours, torch.stack(theirs), atol=1e-5), (ours, theirs)


def test_a_prompt_is_read_once_and_no_layer_in_vain(tiny_model):
    model, tokenizer = decoder("qwen2"), load_tokenizer(tiny_model)
    tokens, behind = [], []
    model.model.layers[0].register_forward_hook(lambda *called: tokens.append(called[2].shape[:2].numel()))
    model.model.layers[2].register_forward_hook(lambda *_: behind.append(1))
    pairs = {"prompt": ASKED[:2], "chosen": CHOSEN[:2], "rejected": REJECTED[:2]}
    annotate(model, tokenizer, pairs, torch.ones(32), layer=2)
    assert not behind, "a layer ran whose states nobody reads"
    start = len(tokenizer(f"<|user|>{ASKED[0]}<|end|><|assistant|>")["input_ids"])
    assert tokens[0] == start and len(tokens) == 2, "the common prompt, then what follows it in all three answers"
    longest = max(len(tokenizer(f"{text}<|end|>")["input_ids"]) for text in {*CHOSEN[:2], *REJECTED[:2]})
    assert tokens[1] == 3 * longest


def test_an_encoder_and_an_adapted_model_are_read_text_by_text(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    tokenizer, adapted = load_tokenizer(tiny_model), load_policy(tiny_model, "cpu")
    adapted = get_peft_model(adapted, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).base_model.model
    encoder = load_trunk(write_tiny_bert(tmp_path / "bert"), "cpu")
    for reader in ((adapted, tokenizer), encoder):
        left, right = margins.embed_sides(*reader, ASKED, CHOSEN, REJECTED, layer=1)
        assert torch.allclose(left, embed(*reader, ASKED, CHOSEN, layer=1), atol=1e-5)
        assert torch.allclose(right, embed(*reader, ASKED, REJECTED, layer=1), atol=1e-5)


def test_what_cannot_be_read_is_refused(tiny_model):
    model, tokenizer = load_trunk(tiny_model, "cpu")
    sides = (model, tokenizer, ["a"], ["no"], ["yes"])
    with pytest.raises(InputError, match="hidden states 0 to 2"):
        margins.embed_sides(*sides, layer=3)
    with pytest.raises(InputError, match="neither last nor mean"):
        margins.embed_sides(*sides, pooling="max")
    model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="embedding of row 0 is not finite"):
        margins.embed_sides(*sides)


def test_correlation_by_hand():
    assert margins.correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 over the square root of 2 times 2
    assert margins.correlation(torch.tensor([1.0, 2.0, 3.0]), [0, 2, 1]) == pytest.approx(0.5)
    assert margins.length_differences(["a b", "a"], ["a", assistant_message("a b c")]) == [1, -2]


def test_a_bar_counts_the_rows_of_all_batches_and_lets_them_through(monkeypatch):
    told = []
    bar = SimpleNamespace(update=told.append)
    monkeypatch.setattr("srmir_lib.models.batching.tqdm", lambda **asked: nullcontext(told.append(asked) or bar))
    assert list(counted(iter([[3, 1], [2]]), 3, "embeddings")) == [[3, 1], [2]]
    assert told[0]["total"] == 3 and told[0]["desc"] == "embeddings" and not told[0]["disable"] and told[1:] == [2, 1]
    assert [rows for rows, _ in counted([([5], "states")], 1, "read", lambda part: len(part[0]), False)] == [[5]]
    assert told[3]["disable"] and told[4:] == [1]


def test_a_bar_lets_a_batch_go_before_the_next_is_made():
    made = []

    def batches():
        for number in range(3):
            assert not [batch for batch in made if batch() is not None], "the one before is still in memory"
            batch = Rows([number])
            made.append(weakref.ref(batch))
            yield batch
            del batch

    class Rows(list):
        """A list that can be referred to weakly."""

    for batch in counted(batches(), 3, "rows", shown=False):
        del batch
    assert len(made) == 3
