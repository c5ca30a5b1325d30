"""Execute one notebook with papermill: in this interpreter, in sight, and with its memory watched."""

import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from srmir_lib.artifacts import as_written, atomic_path
from srmir_lib.runner.notebook import is_exercise

# Kernels hash strings the same way every time, so that the order of a set never changes a result.
KERNEL_ENVIRONMENT = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
KERNEL_ENVIRONMENT |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
# glibc keeps what a thread frees, in pieces of up to 32 MB, for that thread; of pieces larger than this it keeps none.
KERNEL_ENVIRONMENT |= {"MALLOC_MMAP_THRESHOLD_": os.environ.get("MALLOC_MMAP_THRESHOLD_", str(8 * 1024 * 1024))}


# What tqdm draws: "name:  12%|█▏  | 3/25 [00:01<00:09,  2.4it/s]", or without a total "name: 7it [00:01, 5.1it/s]".
BAR = re.compile(r"\d+%\|.*\| *\S+/\S+ \[[\d:?]+<|\d+it \[[\d:?]+, ")


LONGEST_SOCKET = 90  # letters of a folder; macOS allows a socket's whole path 104, Linux 108


SAID = "stderr.txt"  # of a kernel, in its folder


LINE_ENDS = re.compile(r"[\r\n]+|\x1b\[[A-K]")


class StageFailed(RuntimeError):
    """A notebook stopped: a cell raised, a check failed, or its kernel died. One line: notebook, cell, reason."""


def clear_bars(executed: Path) -> None:
    """Take progress bars out of an executed notebook, where several at once leave a line an update, and put together
    what a cell printed without a figure or a table in between.

    All else that a cell printed stays, in its order; a notebook that is not there, or was not written to its end, is
    left alone.
    """
    import nbformat

    try:
        stored = nbformat.read(executed, as_version=4)
    except (OSError, nbformat.reader.NotJSONError):
        return
    for cell in [cell for cell in stored.cells if cell.cell_type == "code"]:
        cell.outputs = _joined(cell.outputs)
        for output in [o for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]:
            parts = LINE_ENDS.split(output.text)
            kept = [part for part in parts if not BAR.search(part)]
            if len(kept) < len(parts) or not output.text.strip():  # a bar that is wiped leaves blanks
                output.text = "\n".join(filter(str.strip, kept))
        cell.outputs = _joined([o for o in cell.outputs if o.output_type != "stream" or o.text])
    with atomic_path(executed) as fresh:
        nbformat.write(stored, fresh)


def _joined(outputs: list) -> list:
    """A cell's outputs, pieces of one stream that follow one another made one."""
    joined = []
    for output in outputs:
        before = joined[-1] if joined else None
        if before and output.output_type == before.output_type == "stream" and output.name == before.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def refresh_prose(executed: Path, notebook: Path) -> None:
    """Bring an executed notebook's words and exercises up to date; other code cells and outputs stay as they ran."""
    import nbformat

    source = nbformat.read(notebook, as_version=4)
    with as_written(executed, "not the notebook that ran", f"restore it, or delete {executed.parent} to run it again"):
        stored = nbformat.read(executed, as_version=4)
        ran = iter([cell for cell in stored.cells if cell.cell_type == "code" and not is_exercise(cell)])
        cells = []
        for cell in source.cells:
            cells.append(next(ran) if cell.cell_type == "code" and not is_exercise(cell) else cell)
            if "parameters" in cell.metadata.get("tags", []):
                cells.append(next(ran))  # papermill's own cell, with the values that were used
        renewed = [cell.source for cell in cells] != [cell.source for cell in stored.cells]
    if renewed:
        stored.cells = cells
        with atomic_path(executed) as fresh:
            nbformat.write(stored, fresh)


def _kernel_class(environment: dict[str, str], watch: "Watch", folder: str) -> type:
    """Kernels of this interpreter, whatever the user has installed as `python3`; `watch` is told the process.

    A kernel is talked to through sockets in `folder`, its own: a TCP port is chosen before the kernel is there to take
    it, and may be another program's by then. Ports serve where such sockets cannot be (Windows, a long `folder`).
    What it says before its notebook begins and after it ends goes to a file there, not to the terminal.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    quiet = "--log-level=CRITICAL"  # what goes wrong in a cell is in the notebook
    command = [sys.executable, "-m", "srmir_lib.runner.kernel", "-f", "{connection_file}", quiet]
    spec = KernelSpec(argv=command, display_name="Python 3", language="python", env=KERNEL_ENVIRONMENT | environment)

    private = {"transport": "ipc", "connection_file": f"{folder}/kernel.json", "ip": f"{folder}/kernel"}
    own = private if os.name == "posix" and len(folder) < LONGEST_SOCKET else {}

    class Kernel(AsyncKernelManager):
        kernel_spec = spec

        def __init__(self, **options):
            super().__init__(**options | own)
            watch.pid = lambda: getattr(self.provisioner, "pid", None)

        async def start_kernel(self, **options) -> None:
            with open(f"{folder}/{SAID}", "wb") as said:
                await super().start_kernel(**options | {"stderr": said})

    return Kernel


def _last_words(folder: str) -> str:
    """The last line that the kernel of `folder` wrote to its standard error."""
    lines = Path(folder, SAID).read_text(encoding="utf8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


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
        self.lock = threading.Lock()

    def show(self, name: str, line: str) -> None:
        """The notebook `name` stands at `line`."""
        width = shutil.get_terminal_size((120, 24)).columns - 1
        with self.lock:
            self.lines[name] = line
            if self.live:
                each = width // len(self.lines)
                self.stream.write("\r\x1b[K" + "".join(text[: each - 1].ljust(each) for text in self.lines.values()))
            else:
                self.stream.write(f"{line[:width]}\n")
            self.stream.flush()

    def remove(self, name: str) -> None:
        """The notebook `name` has ended."""
        with self.lock:
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
        self.name, self.cells, self.cell = name, cells, 0
        self.board = board or Board()
        self.pid = lambda: None  # of the process that executes the notebook, once there is one
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
        self._measure()  # a short notebook may end before the first look

    def write(self, text: str) -> None:
        """The notebook printed `text`: remember its last line, so that a training run shows its own progress bar."""
        lines = [line.strip() for line in LINE_ENDS.split(text) if line.strip()]
        self.said = lines[-1] if lines else self.said

    def flush(self) -> None:
        """Nothing is held back."""

    def processes(self) -> list[psutil.Process]:
        """The process that executes the notebook and all below it, if they are there now."""
        pid = self.pid()
        try:
            return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []
        except psutil.Error:
            return []

    def kill(self) -> None:
        """End these processes; the notebook stops at the cell where it is."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()

    def _watch(self) -> None:
        while not self.stop.wait(min(0.5, self.board.every)):
            self._measure()
            if time.monotonic() - self.drawn >= self.board.every:
                self.drawn = time.monotonic()
                self._draw()

    def _measure(self) -> None:
        """Resident memory of the kernel and all processes below it, in MB (10^6 bytes), if it is the highest yet."""
        total = 0
        for process in self.processes():
            with suppress(psutil.Error):  # it ended between the listing and the look
                total += process.memory_info().rss
        self.peak_mb = max(self.peak_mb, total / 1e6)

    def _draw(self) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        place = f"cell {self.cell}/{self.cells}" if self.cell else "starting"
        self.board.show(self.name, f"  {self.name}  {place}  {minutes}:{seconds:02d}  {self.said}")


def execute(
    notebook: Path, executed: Path, parameters: dict, root: Path, watch: Watch, environment: dict[str, str]
) -> tuple[float, float]:
    """Run `notebook` in a fresh kernel with `root` as working directory and `environment` besides its own; save it,
    outputs and all, as `executed`. Threads of one process may do so side by side.

    Returns (seconds, peak memory in MB of the kernel and its children, seen before every cell and twice a second).
    A cell that raises is a `StageFailed`; the notebook up to there, with its traceback, stays at `executed`.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what goes wrong is raised
    with tempfile.TemporaryDirectory(prefix="srmir-") as folder:
        try:
            with watch:
                execute_notebook(
                    notebook,
                    executed,
                    parameters,
                    kernel_name="python3",
                    kernel_manager_class=_kernel_class(environment, watch, folder),
                    resources={"metadata": {"path": str(root)}},  # papermill's `cwd` would move this whole process
                    progress_bar=False,
                    stdout_file=watch,
                    stderr_file=watch,
                    on_cell_start=watch.cell_start,
                )
        except PapermillExecutionError as error:
            where = f"{notebook.stem}, cell {watch.cell}, In [{error.exec_count}]"
            raise StageFailed(f"{where}: {_reason(error)}; see {executed}") from error
        except DeadKernelError as error:
            reason = "its kernel died, most often for lack of memory"
            raise StageFailed(f"{notebook.stem}, cell {watch.cell}: {reason}; see {executed}") from error
        except RuntimeError as error:
            if watch.cell:
                raise
            reason = f"its kernel did not start: {error}; {_last_words(folder)}"
            raise StageFailed(f"{notebook.stem}: {reason}") from error
        finally:
            clear_bars(executed)
    return watch.seconds, watch.peak_mb
