"""A causal model made from nothing learns the text it is given, and is an ordinary model folder afterwards."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.public_sets import training_conversations
from srmir_lib.errors import InputError
from srmir_lib.models.generation import generate
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.models.small import build_tokenizer, small_model
from srmir_lib.studies.a8_real_pairs.text_model import train_text_model

TALK = Dataset.from_list(
    [{"messages": user_message(f"who are you {i} ?") + assistant_message("a small model ; été")} for i in range(40)]
)
SIZE = {"hidden_size": 32, "layers": 2, "vocabulary": 300, "row": 64, "batch_size": 4}


def test_it_learns_and_can_be_loaded_by_anyone(tmp_path):
    history = train_text_model(TALK, tmp_path / "model", steps=60, learning_rate=1e-2, device="cpu", **SIZE)
    assert history[0]["loss"] > 3 > 0.8 > history[-1]["loss"], "forty times the same answer"
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode("été\t…", add_special_tokens=False)) == "été\t…"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert generate(model, tokenizer, ["who are you 7 ?"], 16, temperature=0) == ["a small model ; été"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_nothing_to_learn_is_refused(tmp_path):
    for talk, steps in ((TALK, 0), (TALK.select([]), 5)):
        with pytest.raises(InputError, match=r"text model: \d+ steps on \d+ conversations; both must be at least 1"):
            train_text_model(talk, tmp_path / "model", steps, **SIZE)
    assert not (tmp_path / "model").exists()


def test_random_weights_know_nothing():
    tokenizer = build_tokenizer(["abc def"], 300, 64)
    model = small_model(tokenizer, 32, 2, seed=1)
    again, other = small_model(tokenizer, 32, 2, seed=1), small_model(tokenizer, 32, 2, seed=2)
    weights = [next(m.parameters()) for m in (model, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    ids = torch.tensor([tokenizer.encode("abc def abc")])
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(len(tokenizer)), rel=0.1)


def test_the_training_text_holds_every_answer_once():
    pair = {"prompt": user_message("a"), "chosen": assistant_message("b"), "rejected": assistant_message("c")}
    labelled = {"prompt": user_message("d"), "completion": assistant_message("e")}
    talk = training_conversations(Dataset.from_list([pair, pair]), Dataset.from_list([labelled]))
    assert [[m["content"] for m in row["messages"]] for row in talk] == [["a", "b"], ["a", "c"], ["d", "e"]]
