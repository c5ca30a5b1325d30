"""Checkpoints of a training that may be killed: which are whole, whose they are, and when they go.

A trainer's checkpoint holds pickles (optimiser, random state), so it stays local, is read by the trainer alone, and is
deleted when the training is done. A checkpoint cut short by a kill looks whole to the trainer; only marked ones count.
"""

import hashlib
import json
import shutil
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerCallback

from srmir_lib.artifacts import digest, read_json, write_json
from srmir_lib.models.loading import fingerprint
from srmir_lib.models.processes import processes
from srmir_lib.rows import read_jsonl

COMPLETE = "complete"
"""Name of the empty file that marks a checkpoint as wholly written."""


class MarkComplete(TrainerCallback):
    """Marks each checkpoint after its last file is written, then deletes all but the newest two.

    A reference adapter is taken out first: from a checkpoint with an adapter in a subfolder the trainer would load that
    one alone, and go on with the policy of step 0. The reference is made anew from where the policy started.
    """

    def on_save(self, args, state, control, **kwargs):
        if processes() > 1:
            PartialState().wait_for_everyone()  # each has written its own random state
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        shutil.rmtree(folder / f"checkpoint-{state.global_step}" / "ref", ignore_errors=True)
        (folder / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        for old in sorted(folder.glob("checkpoint-*"), key=step_of)[:-2]:
            shutil.rmtree(old)


def run_key(base_model, dataset: Dataset, settings: dict, reward: str) -> str:
    """A hash that changes with the settings, the data, the base model (`fingerprint`) or the reward."""
    rows = hashlib.sha256()
    for example in dataset:
        rows.update(json.dumps(example, sort_keys=True, default=str).encode())
    return digest([fingerprint(base_model), settings, rows.hexdigest(), reward])


def finished_history(output_dir: Path, key: str) -> list[dict] | None:
    if not (output_dir / "training.json").is_file() or read_json(output_dir / "training.json")["key"] != key:
        return None
    return read_jsonl(output_dir / "history.jsonl")


def checkpoints_of(output_dir: Path) -> Path:
    """Where the checkpoints of the training that makes `output_dir` lie: the hidden folder beside it."""
    return output_dir.parent / f".{output_dir.name}.checkpoints"


def checkpoint_folder(output_dir: Path, key: str, resume: bool) -> Path:
    """Make `checkpoints_of(output_dir)`: emptied unless they are this very training's."""
    folder = checkpoints_of(output_dir)
    ours = resume and (folder / "key.json").is_file() and read_json(folder / "key.json") == key
    if not ours:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "key.json", key)
    return folder


def newest_complete(folder: Path) -> str | None:
    """The newest checkpoint that was wholly written; half-written ones are deleted."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=step_of)
    for half in (checkpoint for checkpoint in checkpoints if not (checkpoint / COMPLETE).is_file()):
        shutil.rmtree(half)
    return next((str(checkpoint) for checkpoint in reversed(checkpoints) if checkpoint.exists()), None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
