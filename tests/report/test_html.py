"""The page without a browser: what it says, what it escapes, what it never fetches."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.report.downsample import block_max, min_max
from stabilitylab.report.html import render_report, write_report
from tests.report.pages import odd_runs, planted_page
from tests.synthetic import layer_series, noise

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page() -> str:
    return planted_page()


def own_part(page: str) -> str:
    """The page without plotly's own code."""
    return min(re.split(r"<script>\s*/\*\*", page, maxsplit=1)[0], page, key=len)


def charts(page: str) -> dict[str, dict[str, object]]:
    found = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    parsed: dict[str, dict[str, object]] = json.loads(found[1])
    return parsed


def test_it_says_what_was_planted(page: str) -> None:
    assert "Lag from patch_embed to predictor: 20 iterations" in page
    assert "first leads" in page
    assert "frozen-patch does not end higher" in page
    assert "1 seed: no interval and no p-value" in page
    assert {"knn", "loss", "norms0", "heat0", "lag0", "depth0", "norms1", "heat1"} <= charts(page).keys()


def test_names_cannot_become_markup() -> None:
    page = own_part(planted_page(name=EVIL, layer=EVIL))
    assert "<img src=x" not in page
    assert "alert(1)</script><img" not in page
    assert "<script>alert" not in page


def test_it_fetches_nothing(page: str) -> None:
    own = own_part(page)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "default-src 'none'" in own


@pytest.mark.parametrize("kind", sorted(odd_runs()))
def test_runs_that_lack_something_still_have_a_page(kind: str) -> None:
    page = render_report([odd_runs()[kind]], None)
    assert "</html>" in page
    assert "nan" not in re.sub(r"\bnan:|>nan\b|nan</|, nan", "", own_part(page).split("<main>")[0]).lower().split()
    charts(page)


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write_report(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_report(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("n", [10, 2400, 2401, 100_000])
def test_downsampling_keeps_every_spike(n: int) -> None:
    y = np.exp(noise(n, seed=n))
    spikes = np.unique(np.random.default_rng(n).integers(0, n, min(n // 5, 40)))
    y[spikes] = 1e3 + np.arange(len(spikes))
    x, kept = min_max(np.arange(n), y, bins=1200)
    assert len(x) <= 2400
    assert (np.diff(x) > 0).all()
    np.testing.assert_array_equal(y[x], kept)
    edges = np.linspace(0, n, 1201).astype(int)
    peaks = {y[start:stop].max() for start, stop in pairwise(edges) if stop > start}
    assert peaks <= set(kept.tolist())


def test_a_heat_map_cell_is_its_largest_value() -> None:
    y = layer_series(noise(3000, seed=0)).grad_norm
    y[1234] = 50.0
    y[10] = np.nan
    cells = block_max(y, columns=500)
    assert len(cells) == 500
    assert cells.max() == 50.0
    assert cells[0] == y[:6].max()


def test_a_value_that_is_not_finite_breaks_the_line() -> None:
    y = np.ones(50_000)
    y[777] = np.inf
    x, kept = min_max(np.arange(50_000), y)
    assert 777 in x
    assert not np.isfinite(kept[list(x).index(777)])
