"""Every notebook runs, and was committed as executed from top to bottom in a fresh kernel."""

import copy
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_is_stored_executed(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    # A cell that only defines things shows nothing; one that ends in a print or a plot does.
    for cell in cells:
        if "print(" in cell.source or "plt.show()" in cell.source:
            assert cell.outputs, f"no output is stored of:\n{cell.source}"


def test_stored_outputs_are_clean(notebook):
    for output in [output for cell in code_cells(notebook) for output in cell.outputs]:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
    text = nbformat.writes(notebook)
    assert "Traceback" not in text
    assert not [p for p in ("/home/", "/root/", "/Users/", "/tmp/", str(ROOT)) if p in text]


@pytest.mark.parametrize(
    "notebook",
    # A minute and a half, and half a minute, of methods compiled one after the other.
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem[:2] in ("01", "02"))) for p in NOTEBOOKS],
    indirect=True,
    ids=lambda path: path.stem,
)
def test_runs_and_shows_the_same_kinds_of_output(notebook):
    # The copy is in memory, and nothing is written. The working directory comes first on the
    # kernel's path, so the rlhf_jax that runs is this repository's, installed or not.
    copied = copy.deepcopy(notebook)
    for cell in code_cells(copied):
        cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        copied,
        kernel_name="python3",
        timeout=600,
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute(env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""})

    def kinds(notebook):
        """Of each cell's outputs; text may come in one piece or several."""
        return [
            {
                (output.output_type, *sorted(output.get("data", {})))
                for output in cell.outputs
                if output.get("name") != "stderr"
            }
            for cell in code_cells(notebook)
        ]

    assert kinds(copied) == kinds(notebook)
