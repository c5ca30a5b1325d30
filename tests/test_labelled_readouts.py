"""Read-outs from labelled answers find the layer that knows, and learn a level that pairs of one prompt do not."""

from types import SimpleNamespace

import pytest
import torch

from srmir_lib.errors import InputError
from srmir_lib.reward_models.labelled_readouts import cross_pairs, learn_from_labels, spaced_layers


def planted(count: int, seed: int):
    """States of three layers, of which the second holds the label in one dimension of five."""
    draw = torch.Generator().manual_seed(seed)
    unsafe = torch.randint(0, 2, (count,), generator=draw)
    states = torch.randn(count, 3, 5, generator=draw)
    states[:, 1, 2] += 3.0 * unsafe
    return states, unsafe.tolist()


def test_the_layer_that_knows_is_found():
    (states, unsafe), (held, held_unsafe) = planted(200, 0), planted(100, 1)
    readouts, choice = learn_from_labels(states, unsafe, held, held_unsafe, [4, 8, 12], "mean", "m")
    assert 8 in choice["layers"] and choice["auroc"] > 0.95
    assert readouts.layers == choice["layers"]
    scores = readouts.score(held[:, [[4, 8, 12].index(layer) for layer in readouts.layers]])
    bad = torch.tensor(held_unsafe).bool()
    assert scores[~bad].mean() > scores[bad].mean(), "higher is safer"


def test_every_answer_of_the_larger_kind_is_in_one_pair():
    safe, bad = cross_pairs([0, 1, 1, 1, 0, 1], seed=3)
    assert sorted(bad.tolist()) == [1, 2, 3, 5] and len(safe) == 4
    assert sorted(set(safe.tolist())) == [0, 4] and sorted(safe.tolist()) in ([0, 0, 4, 4],)


def test_one_kind_alone_teaches_nothing():
    with pytest.raises(InputError, match="all are safe, or all unsafe"):
        cross_pairs([1, 1])


@pytest.mark.parametrize(("layers", "wanted"), [(30, [5, 10, 15, 20, 25, 30]), (4, [1, 2, 3, 4]), (1, [1])])
def test_layers_are_evenly_spaced_up_to_the_last(layers, wanted):
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=layers))
    assert spaced_layers(SimpleNamespace(config=config)) == wanted
