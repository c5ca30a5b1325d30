"""How notebooks stand while they run: on a terminal one line that is drawn again, in a log a line now and then."""

import os
import re
import shutil
import sys
import threading
import time

import psutil


class Board:
    """Where notebooks show how they stand. `every`: seconds between two lines of a notebook; on a terminal half a
    second, and the notebooks that run side by side share one line."""

    def __init__(self, stream=None, every: float = 30.0):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.every = 0.5 if self.live else every
        self.lines: dict[str, str] = {}

    def show(self, name: str, line: str) -> None:
        """The notebook `name` stands at `line`."""
        self.lines[name] = line
        width = shutil.get_terminal_size((120, 24)).columns - 1
        if self.live:
            each = width // len(self.lines)
            self.stream.write("\r\x1b[K" + "".join(text[: each - 1].ljust(each) for text in self.lines.values()))
        else:
            self.stream.write(f"{line[:width]}\n")
        self.stream.flush()

    def remove(self, name: str) -> None:
        """The notebook `name` has ended."""
        self.lines.pop(name, None)
        self.clear()

    def clear(self) -> None:
        """Make room for other words; the notebooks that still run are drawn again when they have something to say."""
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


class Watch:
    """Shows where a notebook stands, and measures it. Also the file that takes the notebook's printed output."""

    def __init__(self, name: str, cells: int, board: Board | None = None):
        """`board`: anything with `every`, `show` and `remove`."""
        self.name, self.cells, self.cell = name, cells, 0
        self.board = board or Board()
        self.said, self.peak_mb, self.seconds = "", 0.0, 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self.started = self.drawn = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()
        self.seconds = time.monotonic() - self.started
        self.board.remove(self.name)

    def cell_start(self, cell, cell_index: int) -> None:
        """Called by nbclient before each cell. Cells count from 1, as a reader counts them."""
        self.cell, self.said = cell_index + 1, ""
        self.peak_mb = max(self.peak_mb, _memory_mb())  # a short notebook may end before the first look

    def write(self, text: str) -> None:
        """The notebook printed `text`: remember its last line, so that a training run shows its own progress bar."""
        lines = [line.strip() for line in re.split(r"[\r\n]+|\x1b\[[A-K]", text) if line.strip()]
        self.said = lines[-1] if lines else self.said

    def flush(self) -> None:
        """Nothing is held back."""

    def _watch(self) -> None:
        while not self.stop.wait(min(0.5, self.board.every)):
            self.peak_mb = max(self.peak_mb, _memory_mb())
            if time.monotonic() - self.drawn >= self.board.every:
                self.drawn = time.monotonic()
                self._draw()

    def _draw(self) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        place = f"cell {self.cell}/{self.cells}" if self.cell else "starting"
        self.board.show(self.name, f"  {self.name}  {place}  {minutes}:{seconds:02d}  {self.said}")


def _memory_mb() -> float:
    """Resident memory of all processes below this one, in MB (10^6 bytes); the fork server's is that of its forks."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            serves = process.ppid() == os.getpid() and any("forkserver" in word for word in process.cmdline())
            total += 0 if serves else process.memory_info().rss
        except psutil.Error:
            continue  # it ended between the listing and the look
    return total / 1e6
