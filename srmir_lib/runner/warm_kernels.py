"""Kernels that start warm: what every notebook imports is imported once, and each kernel is a fork of that process.

Importing torch, transformers and TRL takes six seconds, and a series starts nine kernels. Python's own fork server
(`multiprocessing`) imports them and does nothing else, so a fork of it is as fresh as a new interpreter. Jupyter's
client starts such kernels through its provisioner interface; plain papermill and JupyterLab start theirs as ever.
"""

import multiprocessing
import os
import sys
import threading
from importlib.metadata import entry_points
from multiprocessing import forkserver
from pathlib import Path

from jupyter_client.provisioning import LocalProvisioner

from srmir_lib.errors import InputError

PROVISIONER = "srmir-warm"
"""Its name in a kernel spec, and in `pyproject.toml`."""


NICE = "SRMIR_NICE"
"""Environment variable of a kernel spec: how nice its kernels are, 0 to 19."""


GROUP = "jupyter_client.kernel_provisioners"


# Not matplotlib: a kernel says where its figures go before it imports that.
MODULES = [
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "peft",
    "datasets",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer",
    "sklearn.linear_model",
    "scipy.stats",
    "pandas",
    "ipykernel.ipkernel",
]


def can_fork() -> bool:
    """Whether forks are safe here: on Linux they are. An installation from before this module is an `InputError`."""
    if sys.platform != "linux":
        return False
    if not entry_points(group=GROUP, name=PROVISIONER):
        raise InputError(
            "srmir: installed before it had warm kernels; install it again: make setup, or pip install -e ."
        )
    return True


def warm_up(environment: dict[str, str]) -> None:
    """Start the fork server, with `environment` on top of this process's, unless it runs already. Returns at once; a
    kernel that is started meanwhile waits for the imports."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    try:
        forkserver.set_forkserver_preload(MODULES)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


class WarmProvisioner(LocalProvisioner):
    """Starts a kernel as a fork of the fork server; all else is the local provisioner's."""

    async def launch_kernel(self, cmd: list[str], **kwargs):
        options = cmd[cmd.index("-f") :]
        cwd = str(kwargs.get("cwd") or os.getcwd())
        process = multiprocessing.get_context("forkserver").Process(target=_serve, args=(options, cwd, kwargs["env"]))
        process.start()
        self.process, self.cwd = _Started(process), Path(cwd)
        self.pid = self.pgid = process.pid
        return self.connection_info


class _Started:
    """A process of `multiprocessing`, with the methods of `subprocess.Popen` that a provisioner calls."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid = process, process.pid
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _serve(options: list[str], cwd: str, environment: dict[str, str]) -> None:
    """What the fork does: become a kernel, in a process group of its own, with this library still to be imported, from
    `cwd` if it lies there."""
    os.setpgid(0, 0)  # not a session: Linux shares the cores out by session first, and then by how nice processes are
    os.nice(int(environment.pop(NICE, 0)))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    for name in [name for name in sys.modules if name.split(".")[0] == "srmir_lib"]:
        del sys.modules[name]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(options)


def _end_with_parent() -> None:
    """A killed run takes its kernel with it."""
    multiprocessing.parent_process().join()
    os._exit(1)
