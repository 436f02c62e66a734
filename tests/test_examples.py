"""The notebooks of examples/ run from top to bottom, and are committed without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("STABLAB_RUNS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert shown, "the last cell shows a result"


def test_notebooks_hold_no_outputs() -> None:
    import json

    assert len(EXAMPLES) == 3
    for path in EXAMPLES:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells), path


def test_the_citation_names_this_version() -> None:
    import stabilitylab

    text = (Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {stabilitylab.__version__}\n" in text
