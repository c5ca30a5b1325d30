"""The base model is an ordinary model folder, built the same way twice; the lab is too hard for a bag of words."""

import pytest
import torch

from srmir_lib.artifacts import sha256
from srmir_lib.conversations import render
from srmir_lib.lab.corpus import MIX, corpus, turns
from srmir_lib.lab.pool import WORDS_AT_MOST, collected_pool, solved_by_words
from srmir_lib.lab.pretraining import ROW, build_base_model, cached_base_model, encode, labelled_loss, pack, whole_words
from srmir_lib.lab.town import base_trunk, diet
from srmir_lib.lab.world import draw_world
from srmir_lib.models.loading import load_policy, load_tokenizer

SHAPE = {"rows": 2, "hidden_size": 32, "layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_base_model(draw_world(0), tmp_path_factory.mktemp("base") / "model", steps=5, **SHAPE)


def test_the_tokenizer_survives_save_and_load(folder):
    tokenizer, policy = load_tokenizer(folder), load_policy(folder, "cpu")
    assert len(tokenizer) == policy.config.vocab_size
    for text in ("how do i copy the letter at night ?", "Zürich, 東京 #### 12 <|user|>"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert render(tokenizer, ["hm ?"]) == ["<|user|>hm ?<|end|><|assistant|>"]


def test_training_and_inference_see_the_same_tokens(folder):
    tokenizer = load_tokenizer(folder)
    talk = [{"role": "user", "content": "how do i copy the letter ?"}, {"role": "assistant", "content": "no ."}]
    again = [{"role": "user", "content": "hm ?"}, *talk[1:]]
    (ids, labels), (others, _) = encode(tokenizer, [talk, again])
    assert others == tokenizer.apply_chat_template(again, tokenize=True, return_dict=True)["input_ids"]
    assert ids == tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    learned = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == "no .<|end|>", "only what the assistant says is learned"


def test_the_same_arguments_give_the_same_weights(folder, tmp_path):
    again = build_base_model(draw_world(0), tmp_path / "again", steps=5, **SHAPE)
    assert sha256(again / "model.safetensors") == sha256(folder / "model.safetensors")


def test_the_cache_key_is_what_made_the_model(tmp_path, monkeypatch):
    first = cached_base_model(draw_world(0), tmp_path, steps=5, **SHAPE)
    assert cached_base_model(draw_world(0), tmp_path, steps=5, **SHAPE) == first
    assert cached_base_model(draw_world(1), tmp_path, steps=5, **SHAPE) != first
    monkeypatch.setattr("srmir_lib.data.pairs.CORRUPTIONS", ("shuffled",))
    assert cached_base_model(draw_world(0), tmp_path, steps=5, **SHAPE) != first, "how judged answers are broken counts"


def test_a_stage_gets_a_copy_of_the_base_model(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("srmir_lib.lab.town.cached_base_model", lambda *_: folder)
    trunk = base_trunk(draw_world(0), tmp_path / "cache", tmp_path / "base_model", 5, 0, "cpu")
    assert (trunk.base_model, trunk.dtype) == (str(tmp_path / "base_model"), "float32")
    assert sha256(tmp_path / "base_model") == sha256(folder)


def test_the_diet_names_every_kind_that_is_read_and_all_of_it():
    rows = {row["kind"]: row for row in diet(draw_world(0))}
    assert set(rows) == {"word", "business", "law", "case", "ask", "topic", "draft", "check", "talk", "task"}
    for number in (1, 2, 3):
        assert sum(row[f"part {number}"] for row in rows.values()) == pytest.approx(1)
    assert rows["ask"]["example"].startswith("is it forbidden : ") and rows["ask"]["example"].endswith(
        ("→ yes", "→ no")
    )


def test_conversations_are_packed_whole_and_numbered():
    rows = pack([([1, 2, 3], [-100, 2, 3]), ([4] * 200, [4] * 200), ([5] * 100, [5] * 100), ([6] * 250, [6] * 250)], 2)
    assert rows["input_ids"].shape == (2, ROW)
    assert rows["position_ids"][0, :5].tolist() == [0, 1, 2, 0, 1]
    assert rows["conversation"][0, 202:205].tolist() == [1, -1, -1]
    assert rows["conversation"][1, 0] == 2
    with pytest.raises(ValueError, match="fill 0 rows of 1"):
        pack([([1], [1])], 1)


def test_only_the_last_answer_is_learned_to_say(folder):
    tokenizer = load_tokenizer(folder)
    ((ids, labels),) = encode(tokenizer, [turns("copy it ?", "sure .", "is this wrong ?", "yes")])
    said = tokenizer("yes<|end|>", add_special_tokens=False)["input_ids"]
    assert ids[-len(said) :] == labels[-len(said) :] == said
    assert set(labels[: -len(said)]) == {-100}, "an answer that is judged is read, not imitated"
    assert tokenizer.decode(ids).count("<|end|>") == 4


def test_packed_conversations_do_not_see_each_other(folder):
    policy, tokenizer = load_policy(folder, "cpu"), load_tokenizer(folder)
    talks = encode(tokenizer, list(corpus(draw_world(0), 40, "0", MIX)))
    rows = pack(talks, 1)
    number = rows.pop("conversation")
    causal = torch.ones(ROW, ROW, dtype=torch.bool).tril()
    mask = ((number[:, None, :] == number[:, :, None]) & causal) | torch.eye(ROW, dtype=torch.bool)
    labels = rows.pop("labels")
    with torch.no_grad():
        packed = policy(**rows, attention_mask=mask[:, None]).logits[0]
        start = len(talks[0][0])
        alone = policy(torch.tensor([talks[1][0]])).logits[0]
    assert labels.shape == (1, ROW)
    assert torch.allclose(packed[start : start + len(alone)], alone, atol=1e-4)


def test_the_loss_is_the_model_s_own(folder):
    policy, tokenizer = load_policy(folder, "cpu"), load_tokenizer(folder)
    rows = pack(encode(tokenizer, list(corpus(draw_world(0), 80, "0", MIX))), 2)
    same = (rows["conversation"][:, None] == rows["conversation"][:, :, None]).tril() | torch.eye(ROW, dtype=torch.bool)
    own = {name: rows[name] for name in ("input_ids", "labels", "position_ids")}
    wanted = policy(**own, attention_mask=same[:, None]).loss
    found = labelled_loss(policy, rows, same[:, None])
    found.backward()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert policy.get_input_embeddings().weight.grad.abs().sum() > 0, "the loss must reach the weights"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_bag_of_words_cannot_solve_the_lab(share):
    world = draw_world(0, topic_share=share)
    solved = solved_by_words(world, collected_pool(world, 2400, 0), 40, 0)
    assert list(solved) == list(WORDS_AT_MOST) and all(solved[name] <= most for name, most in WORDS_AT_MOST.items())


def test_words_of_what_is_no_answer_are_not_learned_as_tokens():
    judged = turns("how ?", "first op the doo", "is this wrong ?", "neither")
    assert [message["content"] for message in whole_words(judged)] == ["how ?", "is this wrong ?", "neither"]
    for talk in (turns("how ?", "first open the door", "is this wrong ?", "no"), turns("how ?", "so")):
        assert whole_words(talk) == talk
