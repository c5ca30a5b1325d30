"""Execute one notebook with papermill: in this interpreter, in sight, and with its memory watched."""

import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from srmir_lib.artifacts import atomic_path

# Kernels hash strings the same way every time, so that the order of a set never changes a result.
KERNEL_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONHASHSEED": "0",
}


# What tqdm draws: "name:  12%|█▏  | 3/25 [00:01<00:09,  2.4it/s]", or without a total "name: 7it [00:01, 5.1it/s]".
BAR = re.compile(r"\d+%\|.*\| *\S+/\S+ \[[\d:?]+<|\d+it \[[\d:?]+, ")


class StageFailed(RuntimeError):
    """A notebook stopped: a cell raised, a check failed, or its kernel died. One line: notebook, cell, reason."""


def clear_bars(executed: Path) -> None:
    """Take progress bars out of an executed notebook: several at once leave a line an update.

    All else that a cell printed stays; a notebook that is not there, or was not written to its end, is left alone.
    """
    import nbformat

    try:
        stored = nbformat.read(executed, as_version=4)
    except (OSError, nbformat.reader.NotJSONError):
        return
    changed = False
    for cell in stored.cells:
        for output in [o for o in cell.get("outputs", []) if o.output_type == "stream" and o.name == "stderr"]:
            parts = re.split(r"[\r\n]+|\x1b\[[A-K]", output.text)
            kept = [part for part in parts if not BAR.search(part)]
            if len(kept) < len(parts) or not output.text.strip():  # a bar that is wiped leaves blanks
                changed, output.text = True, "\n".join(filter(str.strip, kept))
                if not output.text:
                    cell.outputs.remove(output)
    if changed:
        with atomic_path(executed) as fresh:
            nbformat.write(stored, fresh)


def refresh_prose(executed: Path, notebook: Path) -> None:
    """Bring the words of an executed notebook up to date; its code cells and their outputs stay as they ran."""
    import nbformat

    stored, source = nbformat.read(executed, as_version=4), nbformat.read(notebook, as_version=4)
    ran = iter([cell for cell in stored.cells if cell.cell_type == "code"])
    cells = []
    for cell in source.cells:
        cells.append(next(ran) if cell.cell_type == "code" else cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(next(ran))  # papermill's own cell, with the values that were used
    if [cell.source for cell in cells] != [cell.source for cell in stored.cells]:
        stored.cells = cells
        with atomic_path(executed) as fresh:
            nbformat.write(stored, fresh)


@contextmanager
def _own_kernel() -> Iterator[None]:
    """Make `python3` mean this interpreter, whatever kernels the user has installed under that name."""
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="srmir-kernel-") as folder:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        quiet = "--log-level=CRITICAL"  # what goes wrong in a cell is in the notebook
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
        content = {"argv": command, "display_name": "Python 3", "language": "python", "env": KERNEL_ENVIRONMENT}
        spec.write_text(json.dumps(content), encoding="utf8")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def _reason(error) -> str:
    """The exception's last line; for an assert without a message, the line that asserts."""
    lines = f"{error.ename}: {error.evalue}".strip().splitlines()
    if error.evalue.strip():
        return lines[-1] if lines[-1].startswith(error.ename) else f"{error.ename}: {lines[-1]}"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    arrows = re.findall(r"^-+> *\d+ (.*)$", plain, flags=re.MULTILINE)
    return f"{error.ename}: {arrows[0].strip()}" if arrows else error.ename


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


def execute(
    notebook: Path, executed: Path, parameters: dict, root: Path, board: Board | None = None
) -> tuple[float, float]:
    """Run `notebook` in a fresh kernel with `root` as working directory; save it, outputs and all, as `executed`.
    `board` is shown how it stands.

    Returns (seconds, peak memory in MB of the kernel and its children, seen before every cell and twice a second).
    A cell that raises is a `StageFailed`; the notebook up to there, with its traceback, stays at `executed`.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    logging.getLogger("papermill").setLevel(logging.ERROR)
    name = notebook.stem
    cells = len(json.loads(notebook.read_text(encoding="utf8"))["cells"])
    try:
        with _own_kernel(), Watch(name, cells, board) as watch:
            execute_notebook(
                notebook,
                executed,
                parameters,
                kernel_name="python3",
                cwd=root,
                progress_bar=False,
                stdout_file=watch,
                stderr_file=watch,
                coalesce_streams=True,
                on_cell_start=watch.cell_start,
            )
    except PapermillExecutionError as error:
        where = f"{name}, cell {watch.cell}, In [{error.exec_count}]"
        raise StageFailed(f"{where}: {_reason(error)}; see {executed}") from error
    except DeadKernelError as error:
        where = f"{name}, cell {watch.cell}"
        raise StageFailed(f"{where}: its kernel died, most often for lack of memory; see {executed}") from error
    finally:
        clear_bars(executed)
    return watch.seconds, watch.peak_mb


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
    """Resident memory of all processes below this one, in MB (10^6 bytes)."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it ended between the listing and the look
    return total / 1e6
