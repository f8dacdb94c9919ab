"""The notebooks: what is kept of them, and that each runs from top to bottom here."""

import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

COLAB = Path(__file__).parents[2] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
NAMES = [
    "01_quickstart",
    "02_published_weights",
    "03_finetune",
    "04_sharding_lab",
    "05_evaluate",
]
BADGE = re.compile(
    r"\[!\[Open in Colab\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
    r"\(https://colab\.research\.google\.com/github/vljax/vljax/blob/main/colab/(\w+)\.ipynb\)\n"
)

nbformat = pytest.importorskip("nbformat")


def test_the_notebooks_that_there_are():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_kept_of_a_notebook(path):
    """Valid, the badge on the first line, no outputs, no counts, no metadata of a cell."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    badge = BADGE.match(notebook.cells[0].source)
    assert badge and badge[1] == path.stem
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.execution_count is None and cell.outputs == []
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "https://github.com/vljax/vljax" in first.source


def executed(path: Path, folder: Path) -> tuple[str, int]:
    """Runs a copy in ``folder`` with this interpreter; what it printed, and how many plots."""
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(shutil.copy(path, folder), 4)
    kernel = AsyncKernelManager(kernel_name="python3")
    kernel.kernel_spec.argv[0] = sys.executable
    NotebookClient(
        notebook, km=kernel, timeout=600, resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    plots = sum("image/png" in o.get("data", {}) for o in outputs)
    return "".join(o.get("text", "") for o in outputs), plots


# By notebook: what must be among what it prints, and how many plots it draws at least. It asserts
# on its results itself, and a cell that fails ends it.
TOLD = {
    "01_quickstart": ["A green car moves left, and I hear a drum."],
    "02_published_weights": [
        "healthy",
        "got a Git LFS stub",
        "tensors, all as they were",
    ],
    "03_finetune": ["after   seen: A red bell moves right.  heard: A drum."],
    "04_sharding_lab": ["legal here: tp:data=2:tensor=4", "v5e:4x4"],
    "05_evaluate": ["not on the sound", "n = 36"],
}
PLOTS = {
    "01_quickstart": 4,
    "02_published_weights": 1,
    "03_finetune": 2,
    "04_sharding_lab": 3,
    "05_evaluate": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    printed, plots = executed(path, tmp_path)
    print(printed)
    assert f"vljax {version('vljax')}, jax {version('jax')}, {sys.executable}\n" in printed
    for words in TOLD[path.stem]:
        assert words in printed
    assert plots >= PLOTS[path.stem]
