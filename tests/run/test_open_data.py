"""The recorded runs that ship with the package."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stabilitylab as sl
from stabilitylab.errors import ConfigError, NoDataError
from stabilitylab.studies.series import rounded

NAME = "first-layer-spikes"


def test_it_loads_without_pyarrow(tmp_path: Path) -> None:
    """With which alone pandas reads Parquet, and which the package does not require. From a folder with any name."""
    pytest.importorskip("pyarrow")
    data = sl.datasets.load(NAME)
    moved = shutil.copytree(data.path, tmp_path / "it's [here]")
    code = "import sys; sys.modules['pyarrow'] = None; from pathlib import Path; import stabilitylab as sl; "
    code += "data = type(sl.datasets.load('first-layer-spikes'))(Path(sys.argv[1])); run = data.runs['run'][0]; "
    code += "frame = data.series(run); frame.to_pickle(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(moved), str(tmp_path / "frame")], check=True)
    expected = pd.read_parquet(data.path / f"{data.runs['run'][0]}.parquet").set_index("iteration")
    pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / "frame"), expected, check_column_type=False)


def test_every_run_of_the_table_is_there_and_nothing_else() -> None:
    data = sl.datasets.load(NAME)
    files = {file.stem for file in data.path.glob("*.parquet")}
    assert files == set(data.runs["run"])
    assert sum(file.stat().st_size for file in data.path.iterdir()) < 6_000_000
    for run, length in zip(data.runs["run"], data.runs["iterations"], strict=True):
        frame = data.series(run)
        assert list(frame.index) == list(range(length + 1))  # the last evaluation follows the last update
        assert list(frame.columns[-2:]) == ["loss", "knn_top1"]
        norms = frame.iloc[:-1, :-2]
        assert bool(np.isfinite(norms).all(axis=None))
        assert bool((norms > 0).all(axis=None))
        assert not frame["loss"].iloc[:-1].isna().any()


@pytest.mark.parametrize("index", [0, -1])
def test_what_is_found_is_what_the_table_says(index: int) -> None:
    """Whoever loads the data finds the spikes that its table and card tell of."""
    data = sl.datasets.load(NAME)
    row = data.runs.iloc[index]
    found = data.analyze(row["run"])
    assert len(found.spikes) == row["spikes"]
    first = data.series(row["run"]).columns[0]
    assert (found.spikes["layer"] == first).sum() == row["spikes_first_layer"]


def test_the_card_tells_how_many_runs_and_spikes_there_are() -> None:
    data = sl.datasets.load(NAME)
    with (data.path / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"{len(rows)} runs" in data.card
    assert f"{sum(int(row['iterations']) for row in rows):,} iterations" in data.card
    assert f"{len(rows)} runs" in repr(data)


def test_names_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=NAME):
        sl.datasets.load("first-layer-spike")
    with pytest.raises(NoDataError, match="no run 'x' in first-layer-spikes"):
        sl.datasets.load(NAME).series("x")


def test_values_are_rounded_to_the_bits_asked_for() -> None:
    values = np.array([1.0, 1.0 + 2**-13, 1.0 + 2**-11, 3.1415927, 1e-7, np.nan, np.inf], dtype=np.float32)
    near = rounded(pd.DataFrame({"a": values}), 12)["a"].to_numpy()
    for value, kept in zip(values[:5], near[:5], strict=True):
        unit = 2.0 ** (math.floor(math.log2(value)) - 12)
        assert kept / unit == round(kept / unit)
        assert abs(kept - value) <= unit / 2
    assert np.isnan(near[5])
    assert np.isinf(near[6])
