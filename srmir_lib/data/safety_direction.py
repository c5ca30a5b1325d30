"""A safety direction in a file: a vector, and in which model's states it lives."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from srmir_lib.artifacts import as_written, atomic_path
from srmir_lib.errors import InputError


def read_direction(path: str, layer: int | None, pooling: str | None) -> tuple[np.ndarray, int, str, str]:
    """A direction that `write_direction` wrote: (H,), its layer, its pooling, its model's fingerprint.

    Another `layer` or `pooling` asked for is an `InputError`, and so is a damaged file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; write one with --save-direction")
    with as_written(path, "not a safety direction", "write one with --save-direction"):
        with safe_open(path, framework="numpy") as file:
            vector, notes = file.get_tensor("direction"), file.metadata()
        own = int(notes["layer"]), notes["pooling"]
        fitted_on = notes["model"]
    if vector.ndim != 1 or not abs(np.linalg.norm(vector.astype(float)) - 1) < 1e-3:
        raise InputError(f"{path}: the direction must be a vector of length 1; write it again with --save-direction")
    for name, asked, made in (("layer", layer, own[0]), ("pooling", pooling, own[1])):
        if asked is not None and asked != made:
            raise InputError(f"{path}: was made with {name} {made}, not {asked}; leave --{name} out, or estimate anew")
    return vector.astype(np.float32), *own, fitted_on


def write_direction(path: str, direction: np.ndarray, options: Mapping, fingerprint: str) -> None:
    """Safetensors with the tensor `direction` (H,), and in its notes which model's states it lives in, and where."""
    notes = {name: str(value) for name, value in options.items()} | {"model": fingerprint}
    with atomic_path(Path(path).resolve()) as fresh:
        save_file({"direction": direction}, fresh, notes)
