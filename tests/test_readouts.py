"""Read-outs: the states of a naive loop, what is learned, kept and refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from srmir_lib.errors import InputError, RowError
from srmir_lib.models.embeddings import embed, embed_layers
from srmir_lib.models.loading import fingerprint
from srmir_lib.reward_models.readouts import MOST_PAIRS, ReadOuts, all_layers, learn_readouts

PROMPTS = ["please help me", "open the red door", "you are quiet"]
ANSWERS = ["no", "first get ready, then open the door", "it would hurt someone"]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_of_all_layers_equal_a_naive_loop(tiny_model, trunk, pooling):
    layers = all_layers(trunk.model)
    assert layers == [1, 2]
    found = embed_layers(trunk.model, trunk.tokenizer, PROMPTS, ANSWERS, layers, pooling)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        asked = f"<|user|>{prompt}<|end|><|assistant|>"
        ids = trunk.tokenizer(asked + answer + "<|end|>", return_tensors="pt")
        with torch.no_grad():
            states = model(**ids, output_hidden_states=True).hidden_states
        begin = len(trunk.tokenizer(asked)["input_ids"])
        for place, layer in enumerate(layers):
            own = states[layer][0, -1] if pooling == "last" else states[layer][0, begin:].mean(dim=0)
            assert torch.allclose(found[row, place], own, atol=1e-5)
    for place, layer in enumerate((1, -1)):
        one = embed_layers(trunk.model, trunk.tokenizer, PROMPTS, ANSWERS, [layer], pooling)
        assert torch.allclose(one[:, 0], found[:, place], atol=1e-5)
        assert torch.equal(one[:, 0], embed(trunk.model, trunk.tokenizer, PROMPTS, ANSWERS, layer, pooling))


def separable(count: int, layers: int = 3, size: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States of which the last layer says in one of its dimensions what is better, in units of hundreds."""
    noise = torch.randn(2, count, layers, size, generator=torch.Generator().manual_seed(seed))
    noise[:, :, -1, 2] *= 0.2
    noise[0, :, -1, 2] += 1
    noise[1, :, -1, 2] -= 1
    return tuple(noise * torch.tensor([1.0, 30.0, 300.0]).view(3, 1) + 50)


def test_what_one_layer_knows_is_found_among_three():
    learned = learn_readouts(*separable(100), layers=[1, 2, 3], pooling="last", model="m")
    chosen, rejected = (learned.score(side) for side in separable(200, seed=1))
    assert (chosen > rejected).float().mean() > 0.97, "on pairs that it has not seen"
    assert chosen.mean() > 0.5 and rejected.mean() < -0.5, "zero lies between good and bad answers"
    weights = learned.tensors["weights"].abs()
    assert weights[2].argmax() == 2 and weights.max() == weights[2, 2]


def test_learning_is_adam_on_the_loss_by_hand():
    """One epoch of one batch: from zero, Adam's first step is the learning rate times the gradient's sign."""
    chosen, rejected = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 4.0]]])
    readouts = learn_readouts(chosen, rejected, layers=[1], pooling="last", model="m", epochs=1, learning_rate=0.01)
    assert readouts.tensors["weights"].tolist() == [[pytest.approx(0.01, rel=1e-4), pytest.approx(-0.01, rel=1e-4)]]
    assert readouts.tensors["bias"].tolist() == [0] and readouts.tensors["gate"].tolist() == [[0]]
    # centre (0, 2), spreads sqrt 2 and sqrt 8: the chosen answer lies at (1, -1) / sqrt 2, its gate is 1/2
    assert readouts.tensors["center"].tolist() == [[0, 2]]
    assert readouts.score(chosen).item() == pytest.approx(0.5 * 0.02 / math.sqrt(2), rel=1e-3)
    assert readouts.score(rejected).item() == pytest.approx(-0.5 * 0.02 / math.sqrt(2), rel=1e-3)
    losses = readouts.learn(chosen, rejected, epochs=2)
    assert losses[0] == pytest.approx(math.log1p(math.exp(1 - 0.02 / math.sqrt(2))), rel=1e-4) and losses[1] < losses[0]


def test_the_seed_decides_the_order_and_nothing_else_does():
    pairs = separable(80)
    first, again, other = (learn_readouts(*pairs, [1, 2, 3], "last", "m", seed, epochs=2) for seed in (0, 0, 1))
    assert all(torch.equal(value, again.tensors[name]) for name, value in first.tensors.items())
    assert not torch.equal(first.tensors["weights"], other.tensors["weights"])


def test_learning_goes_on_and_leaves_the_states_alone():
    chosen, rejected = (side.requires_grad_() for side in separable(50))
    readouts = learn_readouts(chosen, rejected, [1, 2, 3], "last", "m", epochs=5)
    before = {name: value.clone() for name, value in readouts.tensors.items()}
    losses = readouts.learn(chosen, rejected, epochs=3, learning_rate=0.01)
    assert losses[-1] < losses[0] and chosen.grad is None and rejected.grad is None
    assert torch.cat([readouts.score(chosen), readouts.score(rejected)]).mean().item() == pytest.approx(0, abs=1e-5)
    for name in ("center", "scale"):
        assert torch.equal(readouts.tensors[name], before[name]), "the scale of the first states is kept"
    assert not torch.equal(readouts.tensors["weights"], before["weights"])
    kept = readouts.tensors["weights"].clone()
    with pytest.raises(InputError, match="read-outs: the loss is not finite at a learning rate of 1e\\+30; lower it"):
        readouts.learn(chosen, rejected, epochs=2, learning_rate=1e30)
    assert torch.equal(readouts.tensors["weights"], kept), "a failed lesson leaves what was known"


def test_states_that_are_not_finite_are_refused():
    chosen, rejected = separable(4)
    readouts = learn_readouts(chosen, rejected, [1, 2, 3], "last", "m", epochs=1)
    broken = chosen.clone()
    broken[2, 1, 0] = math.inf
    for act in (
        lambda: learn_readouts(broken, rejected, [1, 2, 3], "last", "m"),
        lambda: learn_readouts(rejected, broken, [1, 2, 3], "last", "m"),
        lambda: readouts.learn(broken, rejected),
        lambda: readouts.score(broken),
    ):
        with pytest.raises(RowError, match="the states of row 2 are not finite; check the model's weights"):
            act()


def test_pairs_that_nothing_can_be_learned_from_are_refused():
    chosen, rejected = separable(4)
    with pytest.raises(InputError, match="labelled pairs: 0; read-outs are learned from 1 to 1000"):
        learn_readouts(chosen[:0], rejected[:0], [1, 2, 3], "last", "m")
    many = torch.zeros(MOST_PAIRS + 1, 3, 6)
    with pytest.raises(InputError, match="labelled pairs: 1001; read-outs are learned from 1 to 1000"):
        learn_readouts(many, many, [1, 2, 3], "last", "m")
    with pytest.raises(InputError, match=r"states: \(4, 3, 6\) and \(3, 3, 6\); give"):
        learn_readouts(chosen, rejected[:3], [1, 2, 3], "last", "m")
    same = chosen.clone()
    same[:, 1] = 1
    with pytest.raises(InputError, match="layer 2: its states are the same for every answer; read another"):
        learn_readouts(same, same, [1, 2, 3], "last", "m")


@pytest.fixture
def kept(tmp_path) -> tuple[ReadOuts, Path]:
    readouts = learn_readouts(*separable(20), [1, 2, 3], "mean", "a model", epochs=3)
    readouts.save(tmp_path / "readouts")
    return readouts, tmp_path / "readouts"


def test_what_is_saved_comes_back(kept):
    readouts, folder = kept
    assert sorted(path.name for path in folder.iterdir()) == ["readouts.json", "readouts.safetensors"]
    again, states = ReadOuts.load(folder, "a model"), separable(5, seed=3)[0]
    assert (again.layers, again.pooling, again.model) == ([1, 2, 3], "mean", "a model")
    assert torch.equal(again.score(states), readouts.score(states))


def test_readouts_of_another_model_are_refused(tiny_model, kept, tmp_path):
    _, folder = kept
    with pytest.raises(InputError, match=r"read-outs of another model \(hash mismatch\); learn the read-outs again"):
        ReadOuts.load(folder, fingerprint(tiny_model))
    assert fingerprint(tiny_model) != fingerprint(write_tiny_model(tmp_path / "other", seed=1))


def change(folder: Path, **about: object) -> None:
    file = folder / "readouts.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | about))


def test_a_damaged_folder_is_refused(kept, tmp_path):
    _, folder = kept
    weights = folder / "readouts.safetensors"
    whole, about = load_file(weights), (folder / "readouts.json").read_text()

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            ReadOuts.load(folder, "a model")
        assert "\n" not in str(error.value)
        (folder / "readouts.json").write_text(about)
        save_file(whole, weights)

    change(folder, layers="one")
    refused("readouts.json: not of read-outs")
    change(folder, hidden_size=None)
    refused("readouts.json: not of read-outs")
    change(folder, layers=[1, 2])
    refused(r"readouts.safetensors: \(3,\) for bias, not \(2,\); learn the read-outs again")
    save_file({name: value for name, value in whole.items() if name != "gate"}, weights)
    refused("nothing for gate")
    save_file(whole | {"bias": torch.full((3,), math.nan)}, weights)
    refused("holds numbers that no read-out has")
    save_file(whole | {"scale": torch.zeros(3, 6)}, weights)
    refused("holds numbers that no read-out has")
    weights.write_bytes(weights.read_bytes()[:50])
    refused("readouts.safetensors: damaged")
    with pytest.raises(InputError, match="no read-outs there"):
        ReadOuts.load(tmp_path, "a model")
