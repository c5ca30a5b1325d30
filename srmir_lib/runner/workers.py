"""Notebooks side by side: threads of this process, each of which waits for a kernel that executes one notebook.

A small model keeps two cores busy and makes little of the second: most operations are over before they could be shared
out. Two notebooks that do not need each other make more of them. Their kernels' threads sleep while they wait for
work (`OMP_WAIT_POLICY`): one that spins would take its core from the neighbour.
"""

import os
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from srmir_lib.runner.execute import Board, Watch, execute
from srmir_lib.runner.launch import launch
from srmir_lib.runner.manifest import threads
from srmir_lib.runner.notebook import Notebook


class Workers:
    """Threads that execute notebooks. At the end of the `with` block, whatever ends it, no kernel of theirs runs."""

    def __init__(self, board: Board, jobs: int, config: Path | None = None):
        """`jobs`: so many may be at work at a time. `config`: accelerate's, for those that are launched."""
        self.launch = partial(launch, config=config)
        self.board, self.pool = board, ThreadPoolExecutor(jobs)
        polite = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads(jobs))}
        self.polite = {name: value for name, value in polite.items() if name not in os.environ}
        self.running: dict[Future, Watch] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        while wait(self.running, timeout=0.2).not_done:
            for watch in self.running.values():
                watch.kill()

    @property
    def busy(self) -> list[str]:
        """The names of the notebooks that were started and have not come back from `next`."""
        return [watch.name for watch in self.running.values()]

    def start(self, together: bool, notebook: Notebook, executed: Path, parameters: dict, root: Path) -> None:
        """Have a thread `execute` the notebook, its kernel polite if others run `together` with it; `launch` it, if its
        parameters ask for more processes than one."""
        watch = Watch(notebook.name, len(notebook.cells) + 1, self.board)  # papermill adds one, with the parameters
        environment = self.polite if together else {}
        run = self.launch if parameters.get("num_processes", 1) > 1 else execute
        job = self.pool.submit(run, notebook.path, executed, parameters, root, watch, environment)
        self.running[job] = watch

    def next(self) -> tuple[str, Future]:
        """Wait until a notebook has ended: its name, and the future that has (seconds, memory) or what went wrong."""
        ended = wait(self.running, return_when=FIRST_COMPLETED).done.pop()
        return self.running.pop(ended).name, ended


def needs_of(tasks: Iterable) -> dict[str, set[str]]:
    """Of each stage all those that must be done before it, by name; `tasks` are in running order."""
    needs: dict[str, set[str]] = {}
    for task in tasks:
        direct = {notebook for notebook, _ in task.reads}
        needs[task.name] = direct.union(*(needs.get(notebook, set()) for notebook in direct))
    return needs


def next_to_start(waiting: list, busy: Iterable[str], needs: dict[str, set[str]], jobs: int) -> tuple:
    """The stage that may start now, if there is one, and whether it shares the machine with others. Where several may
    share it, those that others wait for come first."""
    pending = {task.name for task in waiting}.union(busy)
    ready = [task for task in waiting if not needs[task.name] & pending]
    if jobs > 1:
        awaited = set().union(*(needs[task.name] for task in waiting))
        ready.sort(key=lambda task: task.name not in awaited)
    company = [task for task in ready if not task.alone] if jobs > 1 else []
    if not busy:
        return (ready[0], ready[0] in company and len(company) > 1) if ready else (None, False)
    return (company[0], True) if company and len(busy) < jobs else (None, False)
