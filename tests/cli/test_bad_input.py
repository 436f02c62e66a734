"""Bad input gets one line that says what, where and what to do; exit code 2; nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Stablab

Refusal = Callable[..., str]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["xyzzy"], "unknown command 'xyzzy'; known: train, analyze, "),
        (["cause", "swp"], "unknown command 'swp'; did you mean swap?"),
        (["import", "/dev/null"], "unknown command '/dev/null'; did you mean stablab import auto /dev/null?"),
        (["train", "--lr", "3"], "unknown option --lr; did you mean --base-lr or --plan? See stablab train --help"),
        (["analyze"], "missing argument 'RUN'; see stablab analyze --help"),
        (["train", "more"], "unexpected extra argument (more); see stablab train --help"),
        (["train", "--method", "xyzzy"], "unknown method 'xyzzy'; known: byol, dino, mocov2"),
        (["train", "--set", "optim.lr=1"], "unknown key optim.lr; did you mean base_lr?"),
        (["train", "--set", "optim.xyzzy=1"], "unknown key optim.xyzzy; known: base_lr, beta1"),
        (["train", "--method", "mocov4"], "unknown method 'mocov4'; did you mean mocov3"),
        (["train", "--arch", "vit_smal"], "model.arch: unknown arch 'vit_smal'; did you mean vit_small"),
        (["train", "--data", "digit"], "unknown data 'digit'; did you mean digits?"),
        (["train", "--data", "imagefolder:/nowhere"], "data folder /nowhere does not exist"),
        (["train", "--mitigation", "frozen-pach"], "unknown mitigation 'frozen-pach'; did you mean frozen-patch"),
        (["train", "--set", "optim.base_lr"], "--set 'optim.base_lr' is not of the form section.key=value"),
        (["train", "--set", "optim.bse_lr=1"], "unknown key optim.bse_lr; did you mean base_lr"),
        (["train", "--set", "optim.name=adam"], "optim.name: unknown optimizer 'adam'; did you mean adamw"),
        (["train", "--batch-size", "5000"], "batch_size 5000 is larger than the data set (1400 images)"),
        (["train", "--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (["train", "--batch-size", "many"], "invalid value for '--batch-size': 'many' is not a valid integer; see"),
        (["train", "--skip-list", "absent.txt"], "cannot read the skip list absent.txt: No such file or directory"),
        (["train", "--config", "absent.toml"], "cannot read configuration absent.toml: No such file or directory"),
        (["study", "absent.toml"], "cannot read configuration absent.toml: No such file or directory"),
    ],
)
def test_training_is_refused_before_a_run_exists(
    refusal: Refusal, tmp_path: Path, args: list[str], message: str
) -> None:
    assert refusal(*args).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_run_gets_the_nearest_names(stablab: Stablab, refusal: Refusal) -> None:
    stablab("train", "--log-grads", "--iterations", "2", "--set", "eval.knn_every=0", "--name", "held")
    for command in (["analyze", "hled"], ["sql", "hled", "select 1"], ["report", "hled", "-o", "r.html"]):
        message = refusal(*command)
        assert "'hled'" in message
        assert "held" in message.replace("'hled'", "")


def test_a_branch_needs_an_earlier_checkpoint(stablab: Stablab, refusal: Refusal) -> None:
    stablab("train", "--log-grads", "--iterations", "2", "--set", "eval.knn_every=0", "--name", "held")
    message = refusal("branch", "held", "--at", "1", "--mitigation", "zclip")
    assert message.startswith(
        "no checkpoint at or before iteration 1 in runs/held/checkpoints (available: 2); train with --k"
    )
    assert refusal("branch", "held", "--at", "2", "--mitigation", "none").startswith("--mitigation none: a branch")


def test_a_taken_name_is_refused_and_the_run_is_untouched(stablab: Stablab, refusal: Refusal, tmp_path: Path) -> None:
    short = ["train", "--log-grads", "--iterations", "2", "--set", "eval.knn_every=0", "--name", "held"]
    stablab(*short)
    before = {p: p.read_bytes() for p in (tmp_path / "runs" / "held").rglob("*") if p.is_file()}
    assert "held" in refusal(*short)
    assert {p: p.read_bytes() for p in (tmp_path / "runs" / "held").rglob("*") if p.is_file()} == before


def test_a_run_without_gradients(stablab: Stablab, refusal: Refusal) -> None:
    stablab("train", "--iterations", "2", "--name", "blind")
    assert (
        refusal("analyze", "blind")
        == "run blind has no recorded gradient norms; train with --log-grads, record grad_norm, or map the norms of an "
        "imported log with --grads"
    )


def test_sql_only_reads(stablab: Stablab, refusal: Refusal) -> None:
    stablab("train", "--log-grads", "--iterations", "2", "--set", "eval.knn_every=0")
    assert "drop" in refusal("sql", "run_001", "drop table layer_stats").lower()
    assert "nowhere" in refusal("sql", "run_001", "select nowhere from layers")
    assert "; the tables are meta, layers, layer_stats, " in refusal("sql", "run_001", "select * from nowhere")


def test_a_report_into_a_folder_that_is_not_there(stablab: Stablab, refusal: Refusal) -> None:
    stablab("train", "--log-grads", "--iterations", "2", "--set", "eval.knn_every=0")
    assert refusal("report", "run_001", "-o", "no/such/r.html").startswith("cannot write no/such/r.html")


def test_a_bad_csv(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "grads.csv").write_text("iteration,layer,grad_norm\n0,a,1.0\n1,a,much\n")
    message = refusal("import", "csv", "--grads", "grads.csv")
    assert "grads.csv" in message
    assert "line 3" in message
    assert "much" in message
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_demo_that_cannot_be_is_refused_before_it_trains(refusal: Callable[..., str]) -> None:
    assert refusal("demo", "-o", "no/such/report.html").startswith("cannot write no/such/report.html: choose a file")


@pytest.mark.parametrize("group", [[], ["cause"], ["import"]])
def test_a_group_without_a_command_prints_its_help(stablab: Stablab, group: list[str]) -> None:
    done = stablab(*group, code=2)
    assert done.stderr.startswith("Usage: ")
    assert "\nCommands:\n" in done.stderr


def test_outputs_replace_only_files_of_their_kind(stablab: Stablab, refusal: Refusal, tmp_path: Path) -> None:
    stablab("train", "--log-grads", "--iterations", "2", "--set", "eval.knn_every=0")
    database = tmp_path / "runs" / "run_001" / "run.duckdb"
    (tmp_path / "notes.html").write_text("my notes")
    (tmp_path / "a.png").write_text("no picture")
    before = {path: path.read_bytes() for path in (database, tmp_path / "notes.html", tmp_path / "a.png")}
    report = ["report", "run_001", "-o"]
    for command in (
        [*report, str(database)],
        [*report, "notes.html"],
        ["figure", "run_001", "--kind", "spikes", "-o", "a.png"],
        ["figure", "run_001", "--kind", "spikes", "--format", "png", "-o", str(database)],
        ["figure", "run_001", "--kind", "spikes", "--latex", "-o", "notes.html"],
        ["branch", "run_001", "--at", "1", "--mitigation", "zclip", "-o", "a.png"],
        ["demo", "-o", "notes.html"],
    ):
        assert "exists and is not " in refusal(*command)
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):  # an earlier output is replaced
        stablab(*report, "report.html")
        stablab("figure", "run_001", "--kind", "spikes", "-o", "figure.svg")
        stablab("figure", "run_001", "--kind", "spikes", "--latex", "-o", "table.tex")


def test_a_source_tree_that_is_not_installed_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import stabilitylab
    from stabilitylab.run import provenance as module

    def version(library: str) -> str:
        raise module.PackageNotFoundError(library)

    monkeypatch.setattr(module, "version", version)
    facts = module.provenance()
    assert (facts["stabilitylab_version"], facts["torch_version"]) == (stabilitylab.__version__, torch.__version__)


def test_a_machine_without_git_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilitylab.run.provenance import provenance

    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["git_commit"] == ""


def test_a_skip_list_is_read_line_by_line(stablab: Stablab, refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "skip.txt").write_text("# ranked by their share\n17   # 0.31\n\n4\n")
    assert "skip = [4, 17]" in stablab("train", "--skip-list", "skip.txt", "--dry-run").stdout
    (tmp_path / "skip.txt").write_text("17\nseven\n")
    assert (
        refusal("train", "--skip-list", "skip.txt") == "skip.txt, line 2: 'seven' is not the index of an image, e.g. 17"
    )
    assert refusal("train", "--skip-list", "skip.txt", "--resume", "run_001").startswith(
        "--resume uses the configuration of the run"
    )


def test_a_run_that_stablab_did_not_train_has_no_configuration(
    stablab: Stablab, refusal: Refusal, tmp_path: Path
) -> None:
    rows = "".join(f"{t},a,1.0\n" for t in range(5))
    (tmp_path / "grads.csv").write_text(f"iteration,layer,grad_norm\n{rows}")
    said = stablab("import", "csv", "--grads", "grads.csv", "--name", "seen").stdout
    assert "  1 layer (a), 5 rows, 5 iterations\n" in said
    for command in (
        ["train", "--resume", "seen"],
        ["probe", "seen"],
        ["convert", "seen", "-o", "x.pth"],
        ["branch", "seen", "--at", "1", "--mitigation", "zclip"],
    ):
        assert refusal(*command) == "run seen was not trained by `stablab train`, so it has no configuration"
    assert "none" not in stablab("runs").stdout  # its mitigation is unknown
    assert "nowhere, which does not exist" in stablab("runs", "--runs-dir", "nowhere").stdout


def test_by_without_such_a_key_gets_the_nearest_keys(stablab: Stablab, refusal: Refusal) -> None:
    for name in ("a", "b"):
        stablab("train", "--log-grads", "--iterations", "2", "--set", "eval.knn_every=0", "--name", name)
    assert refusal("compare", "a", "b", "--by", "optim.lr").endswith(
        "configuration key 'optim.lr'; did you mean optim.base_lr or optim.name or optim.schedule?"
    )
    said = stablab("compare", "a", "b", "--by", "optim.base_lr").stdout
    assert "paired by seed\n" in said
    assert "note: all runs have optim.base_lr '0.004', so there is nothing to compare" in said
    stablab("train", "--log-grads", "--iterations", "2", "--set", "train.checkpoint_every=1", "--name", "c")
    assert "note: the runs also differ in eval.knn_every\n" in stablab("compare", "a", "c").stdout
