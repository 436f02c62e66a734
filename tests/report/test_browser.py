"""The page in headless Chromium with the network off: drawn, linked, reachable, readable, printable."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stabilitylab.report.html.page import render_report
from tests.report.browser import CHROMIUM, Browser, wait_for
from tests.report.pages import compared_runs, comparison_of, odd_runs, planted_page
from tests.synthetic import planted_run

pytestmark = [pytest.mark.slow, pytest.mark.browser]
if CHROMIUM is None and not os.environ.get("CI"):
    pytestmark.append(pytest.mark.skip(reason="no Chromium"))

AXE = Path(__file__).parents[2] / ".cache" / "axe.min.js"
EVIL = "</script><script>window.hit = 1</script><img src=x onerror=\"window.hit=2\"> 'q' \\u2028 {{ 7*7 }} <b>Ω 雪</b>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs, and twelve, as files."""
    folder = tmp_path_factory.mktemp("pages")
    runs = compared_runs()
    made = {"two": planted_page(), "many": render_report(runs, comparison_of(runs))}
    made |= {kind: render_report([run], None) for kind, run in odd_runs().items()}
    for name, page in made.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def ranges(browser: Browser) -> dict[str, list[float]]:
    """The iterations each time chart shows."""
    found: dict[str, list[float]] = json.loads(
        browser.value(
            "JSON.stringify(Object.fromEntries([...document.querySelectorAll('.chart[tabindex]')]"
            ".filter(c => c._fullLayout).map(c => [c.id, c._fullLayout.xaxis.range])))"
        )
    )
    return found


def wait_until_all_show(browser: Browser, wanted: list[float], within: float = 0.01) -> None:
    def shown() -> bool:
        return all(got == pytest.approx(wanted, abs=within) for got in ranges(browser).values())

    wait_for(shown, f"charts at {wanted}, not {ranges(browser)}", 20)


def test_every_chart_is_drawn_without_an_error_or_a_request(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    assert browser.faults == []
    assert browser.value("document.querySelectorAll('.chart .main-svg').length") >= 8
    assert browser.value("[...document.querySelectorAll('.chart')].every(c => c.querySelector('.main-svg'))")


def test_runs_that_are_folded_are_drawn_when_opened(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["many"])
    folded = "document.querySelectorAll('details.run')[6]"
    inside = f"[...{folded}.querySelectorAll('.chart')]"
    assert browser.value(f"{inside}.length") >= 3
    assert browser.value(f"{inside}.every(c => !c.querySelector('.main-svg'))")
    browser.value(f"{folded}.open = true")
    browser.until(f"{inside}.every(c => c.querySelector('.main-svg'))", "the charts of one run")
    assert browser.faults == []


def test_a_console_error_and_a_request_would_be_seen(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    code = "<script>missing()</script><img src='https://example.invalid/x.png'></body>"
    bad.write_text(pages["empty"].read_text(encoding="utf-8").replace("</body>", code), encoding="utf-8")
    browser.open(bad)
    assert any("missing is not defined" in fault for fault in browser.faults)
    assert any("example.invalid" in fault for fault in browser.faults)


def test_time_charts_zoom_together(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    whole = ranges(browser)
    assert {"knn", "loss", "norms0", "heat0", "norms1", "heat1"} == whole.keys()
    for source in ("norms0", "heat0"):
        left, top, width, height = json.loads(
            browser.value(
                f"document.getElementById('{source}').scrollIntoView({{block: 'center'}});"
                f"(() => {{ const r = document.querySelector('#{source} .nsewdrag').getBoundingClientRect();"
                "return JSON.stringify([r.x, r.y, r.width, r.height]) })()"
            )
        )
        middle = top + height / 2
        browser.drag((left + 0.25 * width, middle), (left + 0.5 * width, middle))
        first, last = whole[source]
        wanted = [first + 0.25 * (last - first), first + 0.5 * (last - first)]
        wait_until_all_show(browser, wanted, within=30)
        browser.value(f"document.getElementById('{source}').focus()")
        browser.press("0")
        wait_until_all_show(browser, whole[source])


def test_keys_reach_and_zoom_every_time_chart(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    reached = []
    for _ in range(40):
        browser.press("Tab")
        reached.append(browser.value("document.activeElement.id || document.activeElement.tagName"))
    assert {"knn", "loss", "norms0", "heat0", "norms1", "heat1", "SUMMARY"} <= set(reached)
    browser.value("document.getElementById('heat0').focus()")
    first, last = ranges(browser)["heat0"]
    quarter = (last - first) / 4
    for key, wanted in (
        ("+", [first + quarter, last - quarter]),
        ("ArrowRight", [first + 1.5 * quarter, last - 0.5 * quarter]),
        ("-", [first + 0.5 * quarter, last + 0.5 * quarter]),
    ):
        browser.press(key)
        wait_until_all_show(browser, wanted)


def test_dark_mode_is_dark_and_follows_the_system(browser: Browser, pages: dict[str, Path]) -> None:
    def paper() -> float:
        image = Image.open(io.BytesIO(browser.screenshot())).convert("L")
        histogram = image.histogram()
        return float(max(range(256), key=histogram.__getitem__))

    browser.open(pages["two"], dark=True)
    assert paper() < 40
    browser.scheme("light")
    browser.until("document.getElementById('knn')._fullLayout.paper_bgcolor === '#ffffff'", "a light chart")
    assert paper() > 220


def test_lines_have_their_colours(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["two"])
    image = Image.open(io.BytesIO(browser.screenshot(whole=True))).convert("RGB")
    colours = {colour for _, colour in image.getcolors(maxcolors=1 << 24) or []}
    for wanted in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the first and the second series
        assert any(max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 12 for colour in colours)


@pytest.mark.parametrize("name", ["two", "many"])
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_sticks_out_sideways(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    browser.open(pages[name], width=width)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    inside = "[...document.querySelectorAll('.chart, p, h1, h2, dl')].every(e => {0} <= {1} + 0.5)"
    assert browser.value(inside.format("e.getBoundingClientRect().right", "document.documentElement.clientWidth"))


@pytest.mark.parametrize("width", [400, 1200])
def test_the_heat_map_shows_every_planted_spike_at_any_width(
    browser: Browser, pages: dict[str, Path], width: int
) -> None:
    browser.open(pages["two"], width=width)
    heat: Any = json.loads(
        browser.value("(c => JSON.stringify({x: c.data[0].x, z: c.data[0].z}))(document.getElementById('heat0'))")
    )
    pixels = browser.value("document.querySelector('#heat0 .nsewdrag').getBoundingClientRect().width")
    assert len(heat["z"][0]) <= pixels + 60
    planted = planted_run(seed=0, layers=("patch_embed", "blocks.0", "predictor"))
    for row, onsets in zip(heat["z"], planted.onsets.values(), strict=True):
        for onset in onsets:
            column = max(i for i, edge in enumerate(heat["x"]) if edge <= onset)
            assert max(row[column : column + 3]) > 0.5, f"the spike at {onset} is hidden"


@pytest.mark.parametrize("kind", sorted(odd_runs()))
def test_runs_that_lack_something_open_without_an_error(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    browser.open(pages[kind])
    assert browser.faults == []


def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "evil.html"
    file.write_text(planted_page(name=EVIL, layer=EVIL), encoding="utf-8")
    browser.open(file)
    assert browser.faults == []
    assert browser.value("window.hit === undefined")
    assert EVIL in browser.value("document.querySelector('.card h2').textContent")
    shown = browser.value("[...document.querySelectorAll('#norms0 .legendtext')].map(e => e.textContent).join('\\n')")
    assert "<img src=x" in shown


@pytest.mark.parametrize("width", [400, 1400])
def test_it_prints_in_light_and_as_wide_as_the_sheet(browser: Browser, pages: dict[str, Path], width: int) -> None:
    browser.open(pages["two"], width=width, dark=True)
    browser.value(
        "window.addEventListener('beforeprint', () => { window.printed = [...document.querySelectorAll('.chart')].map("
        "c => [c._fullLayout.width, c._fullLayout.paper_bgcolor]) })"
    )
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) <= 12
    printed = browser.value("window.printed")
    assert len(printed) >= 8
    assert all(paper == "#ffffff" for _, paper in printed)
    assert max(chart_width for chart_width, _ in printed) <= 660
    browser.until("document.getElementById('knn')._fullLayout.paper_bgcolor === '#14171b'", "the screen's own colours")
    assert browser.faults == []


@pytest.mark.skipif(not AXE.exists() and not os.environ.get("CI"), reason="no axe-core: .ci/run fetches it")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["two", "many", "empty"])
def test_axe_finds_nothing_serious(browser: Browser, pages: dict[str, Path], name: str, dark: bool) -> None:
    browser.open(pages[name], dark=dark)
    browser.value(AXE.read_text(encoding="utf-8") + "; 0")
    found = json.loads(
        browser.value("axe.run().then(r => JSON.stringify([r.passes.length, r.violations.map(v => [v.id, v.impact])]))")
    )
    assert found[0] > 15
    assert [violation for violation in found[1] if violation[1] in ("serious", "critical")] == []
