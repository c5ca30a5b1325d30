"""One notebook, in a kernel of the runner's."""

from pathlib import Path

import nbformat

from srmir_lib.runner.execute import Watch, execute

REPOSITORY = Path(__file__).resolve().parents[1]


def run_notebook(name: str, root: Path, **parameters) -> nbformat.NotebookNode:
    """Run the notebook `name` with `root` as the repository its stage sees; return what is saved, `root/name.ipynb`."""
    book, executed = REPOSITORY / "notebooks" / f"{name}.ipynb", root / f"{name}.ipynb"
    execute(book, executed, parameters, REPOSITORY, Watch(name, 0), {"SRMIR_ROOT": str(root)})
    return nbformat.read(executed, as_version=4)
