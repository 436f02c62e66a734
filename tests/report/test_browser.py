"""The page in headless Chromium with the network off."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from stabilitylab.report.html import render_report
from tests.report.pages import odd_runs, planted_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.browser]
if CHROMIUM is None and not os.environ.get("CI"):
    pytestmark.append(pytest.mark.skip(reason="no Chromium"))


def chromium(folder: Path, page: str, *options: str, width: int = 1200) -> tuple[str, str]:
    """Open ``page``; standard output, and what went wrong (console errors, requests)."""
    assert CHROMIUM is not None, "CI needs Chromium"
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--force-prefers-reduced-motion",
            f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2400", "--virtual-time-budget=10000",
            *options, file.as_uri(),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    faults = [line for line in done.stderr.splitlines() if re.search(r"CONSOLE|ERR_NAME|Uncaught", line)]
    return done.stdout, "\n".join(faults)


@pytest.fixture(scope="module")
def page() -> str:
    return planted_page()


def test_every_chart_is_drawn_without_an_error(tmp_path: Path, page: str) -> None:
    dom, faults = chromium(tmp_path, page, "--dump-dom")
    assert faults == ""
    wanted = len(re.findall(r'class="chart"', page.split("<script")[0]))
    assert f'data-drawn="{wanted}"' in dom
    assert wanted >= 8


def test_a_console_error_would_be_seen(tmp_path: Path, page: str) -> None:
    _, faults = chromium(tmp_path, page.replace("</body>", "<script>missing()</script></body>"), "--dump-dom")
    assert "missing is not defined" in faults


def test_the_screenshot_has_the_charts_in_it(tmp_path: Path, page: str) -> None:
    shot = tmp_path / "shot.png"
    chromium(tmp_path, page, f"--screenshot={shot}")
    image = Image.open(shot).convert("RGB")
    colours = {colour for _, colour in image.getcolors(maxcolors=1 << 24) or []}
    for wanted in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the lines of the first and the second series
        assert any(max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 12 for colour in colours)


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_sticks_out_sideways(tmp_path: Path, page: str, width: int) -> None:
    frame = f'<iframe src="inner.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
    report = "<script>onmessage = (e) => { document.title = e.data }</script>"
    inner = page.replace(
        "</body>",
        "<script>setTimeout(() => parent.postMessage(document.documentElement.scrollWidth + ' of ' + innerWidth, '*'),"
        " 3000)</script></body>",
    )
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    dom, _ = chromium(tmp_path, f"<!doctype html><title></title><body>{report}{frame}</body>", "--dump-dom")
    found = re.search(r"<title>(\d+) of (\d+)</title>", dom)
    assert found is not None
    assert int(found[2]) == width
    assert int(found[1]) <= width


@pytest.mark.parametrize("kind", sorted(odd_runs()))
def test_runs_that_lack_something_open_without_an_error(tmp_path: Path, kind: str) -> None:
    dom, faults = chromium(tmp_path, render_report([odd_runs()[kind]], None), "--dump-dom")
    assert faults == ""
    assert "data-drawn" in dom


def test_it_prints(tmp_path: Path, page: str) -> None:
    pdf = tmp_path / "page.pdf"
    chromium(tmp_path, page, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 50_000
