"""The recipes in CONTRIBUTING.md work exactly as printed, in a separate package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds my_package with its entry points, as pip would install it; and one that is broken."""
    folder = tmp_path_factory.mktemp("site")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        name = re.match(r"# (my_package/\w+\.py)\n", block)
        assert name is not None
        (folder / name[1]).parent.mkdir(exist_ok=True)
        (folder / name[1]).write_text(block, encoding="utf-8")
    (declared,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    groups = tomllib.loads(declared)["project"]["entry-points"]
    install(folder, "my_package", groups)
    install(folder, "broken_package", {"stabilitylab.methods": {"broken": "broken_package:nothing"}})
    return folder


def install(folder: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))


def python(package: Path, cwd: Path, script: str) -> None:
    """Run a script in a process of its own, which sees the package. Commands in it share that process."""
    path = os.pathsep.join([str(package), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("STABLAB_RUNS", None)
    script = COMMANDS + script
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


COMMANDS = """
from pathlib import Path
from tests.commands import stablab_here

def stablab(*args, code=0):
    done = stablab_here(*args, cwd=Path())
    assert done.returncode == code, done.stdout + done.stderr
    return done
"""


def test_the_recipes_work_together(package: Path, tmp_path: Path) -> None:
    """One training with the method, the mitigation, the signal and the data set; then the rule and the panel."""
    script = """
trained = stablab(
    *("train", "--log-grads", "--name", "mine", "--iterations", "8", "--batch-size", "32"),
    *("--method", "mean-teacher", "--mitigation", "halve-gradient", "--data", "stripes"),
    *("--set", 'record.signals=["grad_norm", "grad_mean"]', "--set", "eval.knn_every=4"),
)
assert "Warning" not in trained.stderr
import numpy as np, stabilitylab as sl
run = sl.open_run("mine")
assert run.config["method"]["name"] == "mean-teacher"
assert list(run.config["mitigation"]) == ["halve-gradient"]
mean = run.signal("grad_mean")
assert mean.shape == run.signal("grad_norm").shape == (8, len(mean.columns))
assert (mean.to_numpy() < 0).any() and (mean.to_numpy() > 0).any()
assert mean.attrs["help"] == "mean of the gradient's entries"
drawn = run.plot("signal", name="grad_mean")
assert drawn.layout.yaxis.type != "log"
lowest = min(np.nanmin(np.asarray(trace.y, float)) for trace in drawn.data)
assert len(mean.columns) <= 12 and np.isclose(lowest, np.nanmin(mean), rtol=1e-5)
last = run.plot("last-norm").data[0]
np.testing.assert_allclose(last.x, run.signal("grad_norm").iloc[-1], rtol=1e-5)
assert "the last gradient norm of each layer" in run.report("r.html").read_text()
assert "mitigation" in set(run.events["kind"])
assert "(rule doubled)" in stablab("analyze", "mine", "--rule", "doubled").stdout
"""
    python(package, tmp_path, script)


def test_a_negative_signal_goes_all_the_way_and_an_importer_reads_its_log(package: Path, tmp_path: Path) -> None:
    lines = [f"NORMS {t} patch_embed={1 + t % 3} blocks.0={2 + t % 5}" for t in range(60)]
    (tmp_path / "norms.txt").write_text("\n".join(lines))
    script = """
import torch, stabilitylab as sl
model = torch.nn.Linear(1, 1, bias=False)
with sl.record(model, run="signed", runs_dir="runs", signals=("grad_norm", "grad_mean")) as rec:
    for value in (1.0, -2.0, 3.0, -4.0):
        model.weight.grad = torch.full((1, 1), value)
        rec.step()
run = sl.open_run("signed")
assert run.signal("grad_mean").iloc[:, 0].tolist() == [1, -2, 3, -4]
assert list(run.plot("signal", name="grad_mean").data[0].y) == [1, -2, 3, -4]
assert run.analyze().result.spikes == ()
stablab("export", "signed", "-o", "out", "--format", "csv")

assert "norms.txt: lines of gradient norms" in stablab("import", "auto", "norms.txt", "--name", "read").stdout
norms = sl.open_run("read").signal("grad_norm")
assert norms["patch_embed"].tolist() == [1 + t % 3 for t in range(60)]
assert norms["blocks.0"].tolist() == [2 + t % 5 for t in range(60)]
"""
    python(package, tmp_path, script)
    header, *rows = (tmp_path / "out" / "layer_stats.csv").read_text().splitlines()
    column = header.split(",").index("grad_mean")
    assert [float(row.split(",")[column]) for row in rows] == [1, -2, 3, -4]


def test_help_and_errors_name_what_packages_add_and_a_broken_one_is_skipped(package: Path, tmp_path: Path) -> None:
    script = """
shown = "".join(stablab("train", "--help").stdout.split())  # unwrapped
for name in ("mean-teacher", "halve-gradient", "stripes"):
    assert name in shown
assert "did you mean mean-teacher" in stablab("train", "--method", "mean-techer", code=2).stderr

warning, error = stablab("train", "--method", "broken", code=2).stderr.splitlines()
assert "skipped the method 'broken' of the package broken_package: ModuleNotFoundError" in warning
assert error.startswith("stablab: unknown method 'broken'; ")
assert "broken" not in error.partition("nown: ")[2]
"""
    python(package, tmp_path, script)
