"""Notebooks side by side: each worker is a process of its own that executes one notebook after another.

A small model keeps two cores busy and makes little of the second: most operations are over before they could be shared
out. Two notebooks that do not need each other make more of them. Their threads sleep while they wait for
work (`OMP_WAIT_POLICY`): one that spins would take its core from the neighbour.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait

from srmir_lib.errors import InputError
from srmir_lib.runner.execute import Board, StageFailed, execute
from srmir_lib.runner.manifest import threads

PATIENCE = 30.0
"""Seconds that a worker which was interrupted has to end its kernel."""


def polite(jobs: int) -> dict[str, str]:
    """What each of so many workers and its kernels find in their environment."""
    return {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads(jobs))}


class Workers:
    """Processes, each started when it is first needed. They end with the `with` block, whatever ends that, and the
    kernels that they have running with them."""

    def __init__(self, board: Board, jobs: int):
        """`jobs`: so many may be at work at a time."""
        self.board, self.environment = board, polite(jobs)
        self.workers: list[_Worker] = []
        self.here: tuple[str, tuple] | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> None:
        """Stop what the workers do, if anything, and give back what they hold."""
        for worker in self.workers:
            worker.interrupt()
        for worker in self.workers:
            worker.end()
        self.workers.clear()

    @property
    def busy(self) -> list[str]:
        """The names of the notebooks that were started and have not come back from `next`."""
        here = [self.here[0]] if self.here else []
        return here + [worker.name for worker in self.workers if worker.name]

    def start(self, name: str, together: bool, *arguments) -> None:
        """Have a free worker `execute(*arguments)`; alone, not `together` with others, this process does, in `next`."""
        if not together:
            self.end()  # none is at work, and it may want their memory
            self.here = name, arguments
            return
        worker = next((worker for worker in self.workers if not worker.name), None)
        if worker is None:
            worker = _Worker(self.board.every, self.environment)
            self.workers.append(worker)
        worker.name = name
        worker.connection.send(arguments)

    def next(self) -> tuple[str, tuple[float, float] | Exception]:
        """Wait, showing progress, until a notebook has ended: its name, and (seconds, memory) or what went wrong."""
        if self.here:
            (name, arguments), self.here = self.here, None
            return name, _result(arguments, self.board)
        while True:
            ready = wait([worker.connection for worker in self.workers if worker.name])
            worker = next(worker for worker in self.workers if worker.connection in ready)
            try:
                kind, content = worker.connection.recv()
            except (EOFError, ConnectionError):
                self.workers.remove(worker)
                reason = "its process ended, most often for lack of memory"
                kind, content = "ended", StageFailed(f"{worker.name}: {reason}")
            if kind == "said":
                self.board.show(worker.name, content)
            else:
                name, worker.name = worker.name, ""
                self.board.remove(name)
                return name, content


def _result(arguments: tuple, board) -> tuple[float, float] | Exception:
    """What `execute` returns or, if it is an error that is one line to the user, raises."""
    try:
        return execute(*arguments, board)
    except (InputError, StageFailed, OSError) as error:
        return error


class _Worker:
    """One process, the connection to it, and the name of the notebook that it executes ("": it waits)."""

    def __init__(self, every: float, environment: dict[str, str]):
        context = get_context("spawn")
        self.name = ""
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, every))
        with _environment(environment):
            self.process.start()
        other.close()

    def interrupt(self) -> None:
        """Stop what it does, as ctrl-C would; if it waits, it has nothing to put in order."""
        if not self.name:
            self.process.kill()
        elif self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)
        self.connection.close()

    def end(self) -> None:
        self.process.join(PATIENCE)
        self.process.kill()


class _Told:
    """The board of the process that asked, seen from a worker."""

    def __init__(self, connection: Connection, every: float):
        self.connection, self.every = connection, every

    def show(self, name: str, line: str) -> None:
        self.connection.send(("said", line))

    def remove(self, name: str) -> None:
        """The other side sees the end by itself."""


def _work(connection: Connection, every: float) -> None:
    """What a worker does: execute what it is sent, until the connection closes."""
    os.setpgid(0, 0)  # ctrl-C at a terminal goes to the run, which interrupts its workers, each once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    board = _Told(connection, every)
    try:
        while True:
            connection.send(("ended", _result(connection.recv(), board)))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return  # nobody waits for the rest


def _end_with_parent() -> None:
    """A killed run takes its workers with it, and they their kernels."""
    parent_process().join()
    os._exit(1)


@contextmanager
def _environment(extra: dict[str, str]) -> Iterator[None]:
    """The environment with `extra` for what starts meanwhile; what the user has set stays as it is."""
    missing = {name: value for name, value in extra.items() if name not in os.environ}
    os.environ |= missing
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name)
