"""A run.duckdb from someone else: nothing in it runs, whatever command opens it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store.export import export_run
from stabilitylab.store.listing import list_runs
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import RunWriter
from tests.hostile.runs import contents, make_run

Harm = Callable[[duckdb.DuckDBPyConnection, Path], None]


def view_of_a_file(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("ALTER TABLE events RENAME TO events_")
    con.execute(
        f"CREATE VIEW events AS SELECT 1 AS iteration, 'x' AS kind, content AS detail FROM read_text('{secret}')"
    )


def view_that_never_ends(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("ALTER TABLE meta RENAME TO meta_")
    con.execute("CREATE VIEW meta AS SELECT * FROM meta_ WHERE (SELECT count(*) FROM range(1000000000000)) > 0")


def view_of_evals(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("DROP TABLE evals")
    con.execute(
        "CREATE VIEW evals AS SELECT 1 AS iteration, 'knn_top1' AS metric, 0.5::DOUBLE AS value, 1 AS num_samples"
    )


def generated_column(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("DROP TABLE scalars")
    con.execute(
        "CREATE TABLE scalars(iteration INTEGER NOT NULL, name VARCHAR NOT NULL, value DOUBLE AS (sin(iteration)))"
    )


def macro_for_a_table(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("DROP TABLE scalars")
    con.execute(f"CREATE MACRO scalars() AS TABLE SELECT * FROM read_text('{secret}')")


def another_type(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("ALTER TABLE iterations ALTER loss TYPE VARCHAR")


def no_layers(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("DROP TABLE layers")


def many_equal_rows(con: duckdb.DuckDBPyConnection, secret: Path) -> None:
    con.execute("INSERT INTO iterations (iteration) SELECT 7 FROM range(60000000)")


HARMS = [
    view_of_a_file,
    view_that_never_ends,
    view_of_evals,
    generated_column,
    macro_for_a_table,
    another_type,
    no_layers,
    pytest.param(many_equal_rows, marks=pytest.mark.slow),
]


def harmed(tmp_path: Path, harm: Harm) -> Path:
    secret = tmp_path / "secret.txt"
    secret.write_text("the private text")
    run_dir = make_run(tmp_path / "runs" / "run_001")
    with duckdb.connect(str(run_dir / "run.duckdb")) as con:
        harm(con, secret)
    return run_dir


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_whatever_is_not_a_plain_table_is_refused(harm: Harm, tmp_path: Path) -> None:
    run_dir = harmed(tmp_path, harm)
    before = contents(run_dir)
    for opens in (open_run, lambda path: export_run(path, tmp_path / "out"), lambda path: RunWriter.resume(path, 10)):
        with pytest.raises(StoreError, match="is not a StabilityLab run") as refused:
            opens(run_dir)
        assert "\n" not in str(refused.value)
        assert "the private text" not in str(refused.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    (listed,) = list_runs(tmp_path / "runs")
    assert (listed.status, listed.name) == ("broken", "run_001")
    assert "the private text" not in str(listed)
    assert contents(run_dir) == before


def test_a_macro_under_a_name_that_we_use_is_not_called(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run_001")
    with duckdb.connect(str(run_dir / "run.duckdb")) as con:
        con.execute("CREATE MACRO coalesce(a, b) AS error('called')")
        con.execute("CREATE MACRO count(a) AS error('called')")
        con.execute("CREATE VIEW other AS SELECT * FROM read_text('/etc/hostname')")
    with open_run(run_dir) as reader:
        assert reader.evals()["knn_top1"]["num_samples"].tolist() == [100, 0]
        assert reader.verify() == []
        with pytest.raises(StoreError, match="SQL: "):
            reader.query("SELECT * FROM base.main.other")


def test_sql_reaches_no_other_file_and_changes_no_setting(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the private text")
    run_dir = make_run(tmp_path / "run_001")
    with open_run(run_dir) as reader:
        for sql in (
            f"SELECT * FROM read_text('{secret}')",
            f"SELECT * FROM '{secret}'",
            f"SELECT * FROM read_csv('{secret}')",
            "SELECT * FROM glob('/*')",
            "SET enable_external_access = true",
            "INSTALL httpfs",
            "SELECT * FROM duckdb_secrets() UNION ALL SELECT getenv('HOME')",
        ):
            with pytest.raises(StoreError) as refused:
                reader.query(sql)
            assert "the private text" not in str(refused.value)


def test_a_database_that_is_no_regular_file_does_not_hang(tmp_path: Path) -> None:
    for name, make in {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "text": lambda path: path.write_text("hello"),
        "empty": lambda path: path.touch(),
        "dangling": lambda path: path.symlink_to("nowhere"),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        make(folder / "run.duckdb")
        with pytest.raises(RunBroken):
            open_run(folder)
    assert {run.status for run in list_runs(tmp_path)} == {"broken"}


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_in_a_block_is_one_line(at: float, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run_001", 20_000)
    whole = open_run(run_dir)
    right = {table: whole.table(table) for table in ("layer_stats", "iterations")}
    whole.close()
    file = run_dir / "run.duckdb"
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 4
    file.write_bytes(data)
    said = ""
    try:
        with open_run(run_dir) as reader:
            for table, columns in right.items():
                for name, values in reader.table(table).items():
                    np.testing.assert_array_equal(values, columns[name])
    except RunBroken as error:
        said = str(error)
    assert "\n" not in said
    assert not said or "restore it from a copy" in said
