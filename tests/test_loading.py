"""What tells one base model from another, in which precision a model is held, and that loaders are silent in turn."""

import shutil
from threading import Event, Thread

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_bert import write_tiny_bert
from transformers.utils import logging

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.data.annotate_file import MarginModel
from srmir_lib.errors import InputError
from srmir_lib.models import loading
from srmir_lib.models.loading import fingerprint, load_policy, precision, quiet
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


def test_the_precision_is_the_devices(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {device: precision(tiny_model, device) for device in ("auto", "cuda", "cuda:1", "cpu")}
    assert found == {"auto": "bfloat16", "cuda": "bfloat16", "cuda:1": "bfloat16", "cpu": "float32"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision(tiny_model, "auto") == "float32"


@pytest.mark.parametrize(
    ("able", "stored", "held"),
    [
        ({"avx512_bf16": True}, "bfloat16", "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16", "bfloat16"),
        ({"avx512_bf16": True}, "float32", "float32"),
        ({"avx512_bf16": False}, "bfloat16", "float32"),
        ({}, "bfloat16", "float32"),
    ],
)
def test_a_processor_holds_in_bfloat16_what_is_stored_so_if_it_has_units(
    tiny_model, tmp_path, monkeypatch, able, stored, held
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    change("config.json", "dtype", stored)(model)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert precision(model, "cpu") == held
    assert load_policy(model, "cpu").dtype == getattr(torch, held) and Trunk.load(model, "cpu").dtype == held


def test_trunks_trainings_and_margins_hold_a_model_in_the_devices_precision(tiny_model, tmp_path, monkeypatch):
    """As on CUDA; an encoder stays as it was trained."""
    monkeypatch.setattr(loading, "precision", lambda model, device: "bfloat16")
    held = Trunk.load(tiny_model, "cpu").model, load_policy(tiny_model, "cpu")
    margins = [MarginModel(str(model), "cpu", -1, "last").trunk for model in (tiny_model, write_tiny_bert(tmp_path))]
    assert [model.dtype for model in (*held, *margins)] == [torch.bfloat16] * 3 + [torch.float32]
    assert Trunk.load(tiny_model, "cpu", "float32").dtype == "float32", "unless a notebook says otherwise"


def test_one_loader_is_silent_after_the_other_and_the_verbosity_is_as_it_was():
    before, inside, leave, entered = logging.get_verbosity(), Event(), Event(), Event()
    seen = []

    def first():
        with quiet():
            inside.set()
            seen.append(leave.wait(10))

    def second():
        with quiet():
            entered.set()
            seen.append(logging.get_verbosity())

    threads = [Thread(target=first), Thread(target=second)]
    bar, level = logging.is_progress_bar_enabled(), logging.INFO
    try:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
        threads[0].start()
        assert inside.wait(10) and logging.get_verbosity() == logging.ERROR and not logging.is_progress_bar_enabled()
        threads[1].start()
        assert not entered.wait(0.3), "the second must wait until the first has put back what it changed"
        leave.set()
        for thread in threads:
            thread.join(10)
        assert seen == [True, logging.ERROR]
        assert logging.get_verbosity() == level and logging.is_progress_bar_enabled(), "a loader left transformers mute"
    finally:
        leave.set()
        logging.set_verbosity(before)
        (logging.enable_progress_bar if bar else logging.disable_progress_bar)()
