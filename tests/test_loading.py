"""What tells one base model from another: everything that changes a score, and nothing else."""

import shutil

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.models.loading import fingerprint
from srmir_lib.models.trunk import Trunk


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def change(name: str, entry: str, value):
    """A change of one entry of a JSON file of the folder."""
    return lambda folder: write_json(folder / name, read_json(folder / name) | {entry: value})


def other_template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + " ")


CHANGES = {
    "weights": other_weights,
    "rope_theta": change("config.json", "rope_theta", 7.0),
    "end token": change("generation_config.json", "eos_token_id", 3),
    "tokenizer": change("tokenizer_config.json", "padding_side", "right"),
    "vocabulary": lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " "),
    "chat template": other_template,
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_a_score_changes_the_fingerprint(what, tiny_model, tmp_path):
    copied = shutil.copytree(tiny_model, tmp_path / "copied")
    assert fingerprint(copied) == fingerprint(tiny_model), "a copy is the same model"
    (copied / "README.md").write_text("a word about it")
    assert fingerprint(copied) == fingerprint(tiny_model), "what nobody reads is nothing"
    CHANGES[what](copied)
    assert fingerprint(copied) != fingerprint(tiny_model), what


def test_a_hub_model_is_told_by_its_revision(tiny_model, tmp_path, monkeypatch):
    """A cache as the hub's client leaves it, in which `main` moves on."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached, found = tmp_path / "models--some--model", []
    (cached / "refs").mkdir(parents=True)
    for revision in ("a" * 40, "b" * 40):
        (cached / "refs" / "main").write_text(revision)
        (cached / "snapshots" / revision).mkdir(parents=True)
        shutil.copy(tiny_model / "config.json", cached / "snapshots" / revision)
        found.append(fingerprint("some/model"))
    assert found == [f"some/model@{'a' * 40}", f"some/model@{'b' * 40}"]


def test_what_is_no_causal_model_is_refused_before_it_is_loaded(tiny_model, tmp_path):
    with pytest.raises(InputError, match="no model there"):
        Trunk.load(tmp_path / "nowhere")
    copied = shutil.copytree(tiny_model, tmp_path / "copied")
    (copied / "model.safetensors").write_bytes(b"not read")
    change("config.json", "architectures", ["BertForMaskedLM"])(copied)
    with pytest.raises(InputError, match="BertForMaskedLM: an encoder: .*; use a causal model, or design pooled"):
        Trunk.load(copied, "cpu")
