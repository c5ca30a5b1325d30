"""Execute a notebook in several processes that train together (`num_processes`).

`torchrun`, or `accelerate launch` with a configuration file, starts as many; each executes the whole notebook in a
kernel of its own, in which the trainers find one another by the environment. What the first of them writes is the
stage; the others write into folders that are deleted at the end. All run on one machine.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import psutil

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.runner.execute import Board, StageFailed, Watch, execute
from srmir_lib.runner.manifest import cores
from srmir_lib.runner.notebook import load_values

KEPT_LINES = 20
"""Of what the processes print besides, the last so many are looked at when they fail without a word."""


KINDS = ("MULTI_GPU", "FSDP", "DEEPSPEED")
"""Kinds of configuration that start several processes; on processors `accelerate launch` starts one, without a word."""


def check_config(config: Path, most: int) -> None:
    """Refuse a configuration file of accelerate that is not one, that this environment cannot follow, or that no
    notebook is launched with: the largest `num_processes` is `most`."""
    if most == 1:
        raise InputError(f"--accelerate {config}: no notebook here has num_processes above 1; set it, or drop this")
    values = load_values(config)
    kind = values.get("distributed_type")
    if kind is None:
        raise InputError(f"--accelerate {config}: has no distributed_type; `accelerate config` writes such files")
    if kind not in KINDS:
        raise InputError(f"--accelerate {config}: distributed_type {kind} is none of {', '.join(KINDS)}")
    if values.get("num_machines", 1) != 1:
        raise InputError(f"--accelerate {config}: num_machines {values['num_machines']}; a notebook runs on one")
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise InputError(f"--accelerate {config}: needs the package deepspeed; install it first")


def command(count: int, config: Path | None, job: Path) -> list[str]:
    """What starts the processes that `main` is given `job` in."""
    own = ["-m", __name__, str(job)]
    if config:
        how = ["--config_file", str(config), "--num_processes", str(count)]
        return [sys.executable, "-m", "accelerate.commands.launch", *how, *own]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), *own]


def launch(
    notebook: Path,
    executed: Path,
    parameters: dict,
    root: Path,
    watch: Watch,
    environment: dict[str, str],
    config: Path | None = None,
) -> tuple[float, float]:
    """`execute` the notebook in `num_processes` processes, as accelerate's `config` says (none: on this machine, each
    with all weights). Arguments, result and errors are the same; the memory is that of all of them on this machine."""
    cache = root / "outputs/.cache"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as place, watch:
        job, printed = Path(place, "job.json"), []
        told = {"notebook": str(notebook), "executed": str(executed), "parameters": parameters, "root": str(root)}
        write_json(job, told | {"cells": watch.cells, "runner": os.getpid()})
        each = {"OMP_NUM_THREADS": str(max(1, cores() // parameters["num_processes"]))}  # else torchrun sets it to one
        if sys.platform == "linux":
            each["GLOO_SOCKET_IFNAME"] = "lo"  # a laptop without a network cannot resolve its own name
        with subprocess.Popen(
            command(parameters["num_processes"], config, job),
            cwd=root,
            env=each | os.environ | {"SRMIR_ROOT": str(root)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as started:
            watch.pid = lambda: started.pid
            for line in started.stdout:
                try:
                    watch.cell, watch.said = json.loads(line)
                except (ValueError, TypeError):  # not of `_Telling`
                    printed = [*printed, line.strip()][-KEPT_LINES:]
        if failures := sorted(Path(place).glob("failure-*.json"), key=lambda file: file.stat().st_mtime_ns):
            raise StageFailed(read_json(failures[0]))
        if started.returncode:
            last = next((line for line in reversed(printed) if "Error" in line), f"exit code {started.returncode}")
            raise StageFailed(f"{notebook.stem}: its processes ended ({last}); see {executed}")
    return watch.seconds, watch.peak_mb


class _Telling(Watch):
    """Says on standard output, in a line of JSON, where the notebook stands."""

    def _draw(self) -> None:
        print(json.dumps([self.cell, self.said[:500]]), flush=True)


def main(file: str) -> int:
    """What each of the processes does: execute the notebook of the job, the first one for good."""
    job, rank = read_json(file), int(os.environ["RANK"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun's, so that nothing is left behind
    threading.Thread(target=_end_with, args=[job["runner"]], daemon=True).start()
    with tempfile.TemporaryDirectory() if rank else nullcontext() as scratch:
        executed, parameters = Path(job["executed"]), job["parameters"]
        if rank:
            executed, parameters = Path(scratch, executed.name), parameters | {"output_dir": scratch}
        watch = _Telling(Path(job["notebook"]).stem, job["cells"], Board(every=math.inf if rank else 1.0))
        try:
            execute(Path(job["notebook"]), executed, parameters, Path(job["root"]), watch, {})
        except StageFailed as error:
            kept = Path(job["executed"]).with_stem(f"{executed.stem}-process-{rank}")  # the first one's is written too
            shutil.copy(executed, kept)
            write_json(Path(file).parent / f"failure-{rank}.json", str(error).replace(str(executed), str(kept)))
            return 1
        except KeyboardInterrupt:  # another process has failed
            return 1
    return 0


def _end_with(runner: int) -> None:
    """End this process when the run that it belongs to is gone; its kernel and the other processes end with it."""
    while psutil.pid_exists(runner):
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
