"""Makes the pictures of docs/gallery/ from real runs.

    python docs/gallery.py [--runs-dir DIR]

Trains what is missing in DIR: the demo's two runs, and 5 seeds with a learned and with a frozen patch projection at
three learning rates; half an hour on two idle cores. Then draws. Needs Chromium for the screenshots.
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

from tests.report.browser import Browser

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
SEEDS = range(5)
RATES = (0.05, 0.2, 0.5)
UNSTABLE = 0.2
MOST_BYTES = 150_000


def stablab(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "stabilitylab", *arguments], check=True)


def name(mitigation: str, rate: float, seed: int) -> str:
    return f"{mitigation}_lr{rate:g}_s{seed}"


def train(runs_dir: Path) -> None:
    where = ("--runs-dir", str(runs_dir))
    if not (runs_dir / "demo_frozen").exists():
        stablab("demo", *where)
    for rate in RATES:
        for seed in SEEDS:
            for mitigation, option in (("learned", ()), ("frozen", ("--mitigation", "frozen-patch"))):
                run = name(mitigation, rate, seed)
                if not (runs_dir / run).exists():
                    stablab(
                        "train", "--log-grads", "--base-lr", f"{rate:g}", "--seed", str(seed), "--iterations", "400",
                        "--set", "train.batch_size=32", "--set", "eval.knn_every=10", "--name", run, *option, *where,
                    )  # fmt: skip


def draw(runs_dir: Path) -> None:
    where = ("--runs-dir", str(runs_dir))
    demo = ("demo_learned", "demo_frozen")
    unstable = [name(mitigation, UNSTABLE, seed) for mitigation in ("learned", "frozen") for seed in SEEDS]
    every = [name(mitigation, rate, seed) for mitigation in ("learned", "frozen") for rate in RATES for seed in SEEDS]
    figures = {
        "knn": demo,
        "spikes": demo,
        "heatmap": demo[:1],
        "compare": unstable,
        "lr-sensitivity": every,
    }
    for kind, runs in figures.items():
        target = GALLERY / f"{kind}.png"
        stablab("figure", *runs, "--kind", kind, "--width", "double", "-o", str(target), *where)
        small(target, target.read_bytes(), 1350)
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
        for title, runs, dark in (("report", demo, False), ("report-dark", demo, True), ("comparison", every, False)):
            page = Path(folder) / f"{title}.html"
            stablab("report", *runs, "-o", str(page), *where)
            browser.open(page, width=1080, height=1150, dark=dark)
            small(GALLERY / f"{title}.png", browser.screenshot(), 1080)


def small(target: Path, picture: bytes, width: int) -> None:
    """At most ``width`` pixels wide, in 64 colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.quantize(64).save(target, optimize=True)
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
