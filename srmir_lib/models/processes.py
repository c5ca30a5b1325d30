"""Processes that train together, as `torchrun` and `accelerate launch` start them.

The runner starts `num_processes` copies of a notebook. Each runs all of it, on a device of its own; only the trainers
know of one another, through accelerate: they share out the batch and the weights. What a training writes the first
process writes, and the others take a copy of it.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from srmir_lib.artifacts import atomic_path
from srmir_lib.errors import InputError


def processes() -> int:
    """How many there are; 1 where none was started beside this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of those on this machine this one is, from 0: its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def sharded() -> bool:
    """Whether `accelerate launch` has each of them hold a part of the weights (FSDP, DeepSpeed)."""
    return any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))


def check_processes(wanted: int) -> None:
    """An `InputError` unless there are as many processes as `num_processes` says."""
    if processes() != wanted:
        there = "in one process" if processes() == 1 else f"in {processes()} processes"
        raise InputError(f"num_processes: {wanted}, but this runs {there}; `srmir run` starts as many as it says")


class Together:
    """The processes that make one folder together: the first in `folder`, which all agree on; each keeps it as `own`.

    With one process `folder` is `own`, and nothing waits.
    """

    def __init__(self, own: str | Path, key: str, on_cpu: bool):
        """`own`: where this process wants the folder; `key`: of what is made, of which the first one's counts, so that
        all skip it or none; `on_cpu`: whether they train there."""
        self.own = self.folder = Path(own)
        self.key, self.state = key, None
        if processes() > 1:
            from accelerate import PartialState
            from accelerate.utils import broadcast_object_list

            self.state = PartialState(cpu=on_cpu)
            folder, self.key = broadcast_object_list([str(self.own.resolve()), key])
            self.folder = Path(folder)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.state is None or self.state.is_main_process

    def once(self, write: Callable[[], object]) -> None:
        """The first process does it; all go on when it is done."""
        if self.first:
            write()
        self.wait()

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def keep(self) -> None:
        """Those that did not write `folder` copy it to `own`; all go on when all have."""
        if not self.first and self.own.resolve() != self.folder:
            with atomic_path(self.own) as fresh:
                shutil.copytree(self.folder, fresh)
        self.wait()
