"""The accuracy of the cost estimates of experiments: the ratio of the actual to the announced time.

    python benchmarks/cause.py [RUN_DIR] [--at 300] [--repeats 3]

Without a run, trains a small MoCo v3. Times are wall-clock times, so the ratio depends on other load of the machine.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.config import resolve
from stabilitylab.studies import train_run


def seconds(text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+) (s|min)", text).groups()  # type: ignore[union-attr]
    return float(value) * (60 if unit == "min" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--at", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    run = given.run
    if run is None:
        config = resolve(
            {
                "model": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2},
                "method": {"hidden_dim": 64, "out_dim": 32},
                "optim": {"base_lr": 0.1},
                "train": {"iterations": given.at + 100, "batch_size": 32, "device": "cpu", "checkpoint_every": 20}
                | {"checkpoint_keep": 99},
                "record": {"log_grads": True},
                "eval": {"knn_every": 0},
            }
        )
        run = train_run(config, Path(tempfile.mkdtemp()), "run").path
    at = str(given.at)
    commands = {
        "impulse": ["--layer", "patch_embed,blocks.2", "--at", at, "--kicks", "2", "--horizon", "40"],
        "swap": ["--at", at, "--layer", "blocks.0", "--repeats", "4"],
        "blame": ["--at", at, "--layer", "blocks.2"],
        "blame by part": ["--at", at, "--layer", "blocks.2", "--by", "part"],
        "sharpness": ["--at", f"{given.at - 20},{at}"],
    }
    for name, options in commands.items():
        for _ in range(given.repeats):
            arguments = ["cause", name.split()[0], run.name, *options, "--runs-dir", str(run.parent)]
            output = CliRunner().invoke(cli, arguments).output
            announced, took = re.search(r"about ([\d.]+ \w+)", output), re.search(r"took ([\d.]+ \w+);", output)
            if announced is None or took is None:
                print(f"{name}: {output.strip().splitlines()[-1]}", flush=True)
                break
            one, other = seconds(announced[1]), seconds(took[1])
            print(f"{name:14} announced {one:6.1f} s, took {other:6.1f} s, ratio {other / one:.2f}", flush=True)


if __name__ == "__main__":
    main()
