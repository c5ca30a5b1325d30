"""The kernel of a notebook: it does not outlive the run that started it, and neither does what it started.

A run that is told to stop ends its kernels itself; one that is killed cannot. `python -m srmir_lib.runner.kernel` takes
the arguments of `ipykernel_launcher`.
"""

import logging
import os
import signal
import threading
import time


def end_with(parent: int) -> None:
    """Wait until the process `parent` is gone, then kill this process and what it started (its process group)."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # jupyter's own guard reads this variable; it would end the kernel alone, and leave its children
    threading.Thread(target=end_with, args=[int(os.environ.pop("JPY_PARENT_PID"))], daemon=True).start()

    logging.getLogger("tornado").setLevel(logging.CRITICAL)  # as the kernel's own: what goes wrong is in the notebook

    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
