"""Draw the figures of docs/gallery/ from real runs.

    python docs/gallery.py [--runs-dir DIR]

First trains the runs that are missing in DIR: the runs of the demo, and the study of the first layer's spikes, which
compares a learned with a frozen patch projection for 10 seeds. This takes half an hour on two idle cores.
The screenshots need Chromium.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.studies.collect import finished_runs
from stabilitylab.studies.study import load_study
from tests.report.browser import Browser

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
STUDY = ROOT / "experiments" / "small" / "first_layer_spikes.toml"
MOST_BYTES = 150_000


def stablab(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "stabilitylab", *arguments], check=True)


def train(runs_dir: Path) -> None:
    if not (runs_dir / "demo_frozen").exists():
        stablab("demo", "--runs-dir", str(runs_dir))
    stablab("study", str(STUDY), "--jobs", "2", "--runs-dir", str(runs_dir), "-o", str(runs_dir / "summary"))


def draw(runs_dir: Path) -> None:
    where = ("--runs-dir", str(runs_dir))
    demo = ("demo_learned", "demo_frozen")
    study = finished_runs(load_study(str(STUDY)), runs_dir)
    every = [run.name for run in study]
    figures = {
        "knn": demo,
        "spikes": demo,
        "heatmap": demo[:1],
        "compare": every,
    }
    for kind, runs in figures.items():
        target = GALLERY / f"{kind}.png"
        stablab("figure", *runs, "--kind", kind, "--width", "double", "-o", str(target), *where)
        small(target, target.read_bytes(), 1350)
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
        for title, runs, dark in (
            ("report", demo, False),
            ("report-dark", demo, True),
            ("comparison", every, False),
        ):
            page = Path(folder) / f"{title}.html"
            stablab("report", *runs, "-o", str(page), *where)
            browser.open(page, width=1080, height=1150, dark=dark)
            small(GALLERY / f"{title}.png", browser.screenshot(), 1080)


def small(target: Path, picture: bytes, width: int) -> None:
    """Save a picture in 256 colours, scaled down to at most ``width`` pixels."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.quantize(256).save(target, optimize=True)
    if target.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{target} is larger than {MOST_BYTES} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "gallery", help="default: runs/gallery")
    runs_dir = parser.parse_args().runs_dir
    runs_dir.mkdir(parents=True, exist_ok=True)
    GALLERY.mkdir(exist_ok=True)
    train(runs_dir)
    draw(runs_dir)
