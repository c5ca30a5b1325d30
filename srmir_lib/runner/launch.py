"""Execute a notebook in several processes that train together (`num_processes`).

`torchrun`, or `accelerate launch` with a configuration file, starts as many; each executes the whole notebook in a
kernel of its own, in which the trainers find one another by the environment. What the first of them writes is the
stage; the others write into folders that are deleted at the end. They need a file system that all of them see.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.errors import InputError
from srmir_lib.runner.execute import Board, StageFailed, Watch, execute
from srmir_lib.runner.notebook import load_values

KEPT_LINES = 20
"""Of what the processes print besides, the last so many are looked at when they fail without a word."""


def check_config(config: Path, most: int) -> None:
    """Refuse a configuration file of accelerate that is not one, that this environment cannot follow, or that no
    notebook is launched with: the largest `num_processes` is `most`."""
    if most == 1:
        raise InputError(f"--accelerate {config}: no notebook here has num_processes above 1; set it, or drop this")
    kind = load_values(config).get("distributed_type")
    if kind is None:
        raise InputError(f"--accelerate {config}: has no distributed_type; `accelerate config` writes such files")
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
        write_json(job, told | {"cells": watch.cells})
        with subprocess.Popen(
            command(parameters["num_processes"], config, job),
            cwd=root,
            env=os.environ | {"SRMIR_ROOT": str(root)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as started:
            watch.pid = lambda: started.pid
            for line in started.stdout:
                if line.startswith("{"):
                    stands = json.loads(line)
                    watch.cell, watch.said = stands["cell"], stands["said"]
                else:
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
        print(json.dumps({"cell": self.cell, "said": self.said}), flush=True)


def main(file: str) -> int:
    """What each of the processes does: execute the notebook of the job, the first one for good."""
    job, rank = read_json(file), int(os.environ["RANK"])
    with tempfile.TemporaryDirectory() if rank else nullcontext() as scratch:
        executed, parameters = Path(job["executed"]), job["parameters"]
        if rank:
            executed, parameters = Path(scratch, executed.name), parameters | {"output_dir": scratch}
        watch = _Telling(Path(job["notebook"]).stem, job["cells"], Board(every=math.inf if rank else 1.0))
        try:
            execute(Path(job["notebook"]), executed, parameters, Path(job["root"]), watch, {})
        except StageFailed as error:
            write_json(Path(file).parent / f"failure-{rank}.json", str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
