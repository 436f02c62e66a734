"""Input that once ended in a traceback or a wrong word, each as one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import stabilitylab
from stabilitylab.cli import cli
from stabilitylab.config import parse_override, read_toml
from stabilitylab.errors import ConfigError
from stabilitylab.store.locks import WRITER_LOCK, try_lock
from stabilitylab.store.reader import RunReader, open_run
from stabilitylab.train.checkpoint import (
    checkpoints,
    load_checkpoint,
    make_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from tests.hostile.runs import make_run


@pytest.mark.parametrize(
    "text", ["a = " + "9" * 5000, "a = " + "[" * 3000 + "]" * 3000, 'a = "\udcff"', "a = 1\na = 2", "\x00"]
)
def test_toml_that_python_chokes_on(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"is not valid TOML|nested too deeply"):
        read_toml(file)
    if "\n" not in text and text.startswith("a = ") and "udcff" not in ascii(text):
        with pytest.raises(ConfigError, match=r"--set optim\.a"):
            parse_override(f"optim.a={text[4:]}")


def small_checkpoint(folder: Path, iteration: int) -> tuple[Path, torch.nn.Module, torch.optim.Optimizer]:
    method = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(method.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    folder.mkdir(exist_ok=True)
    return save_checkpoint(folder, make_checkpoint(iteration, method, optimizer, scaler), keep=9), method, optimizer


def test_copies_of_checkpoints_are_left_alone(tmp_path: Path) -> None:
    path, _, _ = small_checkpoint(tmp_path / "checkpoints", 20)
    for name in ("iteration-000080 (copy).pt", "iteration-.pt", "iteration-000090.pt.bak", "iteration-1e3.pt"):
        (path.parent / name).write_bytes(path.read_bytes())
    (path.parent / "iteration-000099.pt").mkdir()
    assert checkpoints(path.parent) == [path]
    assert load_checkpoint(path.parent)["iteration"] == 20


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path) -> None:
    """torch.load does not compare checksums: it would return other weights."""
    path, method, _ = small_checkpoint(tmp_path / "checkpoints", 20)
    earlier, _, _ = small_checkpoint(tmp_path / "checkpoints", 10)
    good = path.read_bytes()
    at = good.index(next(method.parameters()).detach().numpy().tobytes())
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    assert not torch.equal(torch.load(path, weights_only=True)["method"]["weight"], method.state_dict()["weight"])
    with pytest.warns(UserWarning, match="checksum"):
        assert load_checkpoint(path.parent)["iteration"] == 10
    earlier.unlink()
    with pytest.warns(UserWarning, match="checksum"), pytest.raises(ConfigError, match="no readable checkpoint"):
        load_checkpoint(path.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rng", torch.ones(3)), ("rng", None), ("optimizer", {}), ("optimizer", 3), ("method", []), ("scaler", 1)],
)
def test_a_damaged_part_of_a_checkpoint_is_one_line(key: str, value: object, tmp_path: Path) -> None:
    path, method, optimizer = small_checkpoint(tmp_path / "checkpoints", 20)
    state = torch.load(path, weights_only=True) | {key: value}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before = torch.get_rng_state()
    if key == "scaler":
        restore_checkpoint(state, method, optimizer, scaler)  # unused where nothing is scaled
    else:
        with pytest.raises(ConfigError) as refused:
            restore_checkpoint(state, method, optimizer, scaler)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=f"it lacks {key}"):
        restore_checkpoint({k: v for k, v in state.items() if k != key}, method, optimizer, scaler)
    torch.set_rng_state(before)


def test_verify_while_another_process_merges_finds_no_damage(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run_001", finish=False)
    lock = try_lock(run_dir / "segments" / WRITER_LOCK)
    assert lock is not None
    live = RunReader(run_dir)  # sees the segments
    lock.release()
    open_run(run_dir).close()  # merges them away
    assert not (run_dir / "segments").exists()
    assert live.verify() == []
    live.close()


def test_a_run_is_called_by_its_folder_everywhere(tmp_path: Path) -> None:
    """Two runs of the same name, brought together from two machines: meta.run_id is run_001 in both."""
    runs = tmp_path / "runs"
    make_run(runs / "run_001").rename(runs / "theirs")
    make_run(runs / "run_001")
    with open_run(runs / "theirs") as theirs:
        assert theirs.meta["run_id"] == "run_001"
    assert sorted(stabilitylab.runs(runs).index) == ["run_001", "theirs"]
    assert {run.name for run in (stabilitylab.open_run(name, runs) for name in ("run_001", "theirs"))} == {
        "run_001",
        "theirs",
    }
    where, out = ["--runs-dir", str(runs)], tmp_path / "both.html"
    done = CliRunner().invoke(cli, ["report", "run_001", "theirs", "-o", str(out), *where])
    assert done.exit_code == 0, done.output
    page = out.read_text()
    assert ">theirs<" in page
    assert ">run_001<" in page
