"""Readers concurrent with a writer, and read-only SQL."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.signals import BUILT_IN
from stabilitylab.store import publisher
from stabilitylab.store.reader import open_run
from tests.store.conftest import add, start


def test_readers_never_see_half_a_flush(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "GATHER_SEGMENTS", 4)
    failures: list[str] = []
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                with open_run(run_dir) as run:
                    rows, last = run.query("SELECT count(*), max(iteration) FROM layer_stats").fetchall()[0]
                    if run.problems or rows % 30 or rows != 3 * ((last if last is not None else -1) + 1):
                        failures.append(f"{run.problems} {rows} {last}")
                    seen.append(rows)
        except Exception as error:
            failures.append(repr(error))

    with start(run_dir) as writer:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for begin in range(0, 200, 10):
            add(writer, range(begin, begin + 10))
            writer.publish(wait=True)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(set(seen)) > 2
    with open_run(run_dir) as run:
        assert run.layer_series()[1][0].tolist() == list(range(200))
        assert run.verify() == []


def test_readers_in_other_processes(run_dir: Path, in_process: Callable[[str], subprocess.Popen[str]]) -> None:
    with start(run_dir) as writer:
        add(writer, range(10))
        writer.publish(wait=True)
        code = """
        from stabilitylab.store.reader import open_run
        with open_run(run_dir) as run:
            print(run.status, run.num_iterations, flush=True)
            sys.stdin.readline()
            print(run.num_iterations)
        """
        readers = [in_process(code) for _ in range(2)]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline().split() == ["running", "10"]
        add(writer, range(10, 20))
    for reader in readers:
        assert reader.communicate("\n")[0].split() == ["20"]


def test_small_segments_are_gathered(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "GATHER_SEGMENTS", 4)
    with start(run_dir) as writer:
        for begin in range(0, 400, 10):
            add(writer, range(begin, begin + 10))
            writer.publish(wait=True)
        with open_run(run_dir) as run:
            assert run.num_iterations == 400
            assert run.table("iterations")["iteration"].tolist() == list(range(400))
        writer.publish(wait=True)
        files = list((run_dir / "segments").glob("layer_stats-*.parquet"))
        assert 3 <= len(files) <= 12
    with open_run(run_dir) as run:
        assert run.verify() == []


def test_damage_is_not_gathered_into_health(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "GATHER_SEGMENTS", 8)
    with start(run_dir) as writer:
        for begin in range(0, 100, 10):
            add(writer, range(begin, begin + 10))
            writer.publish(wait=True)
            if begin == 20:
                path = run_dir / "segments" / "layer_stats-000003.parquet"
                data = bytearray(path.read_bytes())
                data[20] ^= 1
                path.write_bytes(data)
    with open_run(run_dir) as run:
        assert "layer_stats-000003.parquet does not match its checksum" in run.problems[0]
        assert run.layer_series()[0][0].tolist() == [*range(20), *range(30, 100)]


@pytest.fixture(scope="module", params=["live", "finished"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run_dir = tmp_path_factory.mktemp("runs") / "run_001"
    writer = start(run_dir)
    add(writer, range(5))
    writer.publish(wait=True)
    if request.param == "finished":
        writer.close()
    yield run_dir
    writer.close()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM layer_stats", "use SELECT, not DELETE"),
        ("CREATE TABLE t (a INT)", "use SELECT, not CREATE"),
        ("INSERT INTO layers SELECT * FROM layers", "use SELECT, not INSERT"),
        ("/* c */ EXPLAIN -- d\nANALYZE CREATE TABLE t (a INT)", "use SELECT, not CREATE"),
        ("EXPLAIN ANALYZE CREATE TABLE t (a INT)", "use SELECT, not CREATE"),
        ("EXPLAIN (ANALYZE, FORMAT json) DELETE FROM layers", "use SELECT, not DELETE"),
        ("DROP VIEW layers", "use SELECT, not DROP"),
        ("COPY layers TO 'out.csv'", "use SELECT, not COPY"),
        ("ATTACH 'x.duckdb'", "use SELECT, not ATTACH"),
        ("SET enable_external_access = true", "use SELECT, not"),
        ("PRAGMA enable_profiling", "use SELECT, not"),
        ("SELECT 1; SELECT 2", "expected one statement"),
        ("", "expected one statement"),
        ("SELECT * FROM read_text('/etc/hostname')", "disabled by configuration"),
        ("SELECT * FROM '/etc/passwd'", "SQL: "),
        ("SELECT * FROM glob('/*')", "SQL: "),
        ("SELECT nothing FROM layers", 'column "nothing" not found'),
        ("SELEC 1", "SQL: "),
    ],
)
def test_sql_that_does_more_than_read_is_refused(either: Path, sql: str, message: str) -> None:
    with open_run(either) as run:
        with pytest.raises(StoreError) as caught:
            run.query(sql)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert run.query("SELECT count(*) FROM layer_stats").fetchone() == (15,)


@pytest.mark.parametrize(
    "sql",
    [
        "FROM layers",
        "WITH l AS (FROM layers) FROM l",
        "DESCRIBE layers",
        "SHOW TABLES",
        "EXPLAIN FROM layers",
        "/* c */ explain select 1",
    ],
)
def test_sql_that_reads_is_let_through(either: Path, sql: str) -> None:
    with open_run(either) as run:
        result = run.query(sql)
        assert len(result) > 0
        assert len(result.columns) == len(result.fetchall()[0])
        assert result.fetchone() is None


def test_all_tables_are_there_under_their_names(either: Path) -> None:
    with open_run(either) as run:
        names = sorted(row[0] for row in run.query("SHOW TABLES"))
        types = run.query("SELECT * FROM layer_stats").types
    assert names == ["evals", "events", "iterations", "layer_stats", "layers", "meta", "scalars"]
    assert types == ["INTEGER", "SMALLINT", *["FLOAT"] * len(BUILT_IN)]


def test_unknown_signal_and_table(either: Path) -> None:
    with open_run(either) as run:
        with pytest.raises(StoreError, match="the signals are grad_norm"):
            run.layer_series("norm")
        with pytest.raises(StoreError, match="the tables are meta"):
            run.table("stats")


def edit(run_dir: Path, sql: str) -> None:
    with start(run_dir) as writer:
        add(writer, range(5))
    with duckdb.connect(str(run_dir / "run.duckdb")) as con:
        con.execute(sql)


def test_files_that_this_version_cannot_read(tmp_path: Path) -> None:
    edit(tmp_path / "new", "UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(RunBroken, match="schema version 99, but this StabilityLab reads up to 1"):
        open_run(tmp_path / "new")
    edit(tmp_path / "other", "DROP TABLE meta")
    with pytest.raises(RunBroken, match="has no table meta"):
        open_run(tmp_path / "other")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "run.duckdb").write_text("not a database")
    with pytest.raises(RunBroken, match="cannot be read"):
        open_run(tmp_path / "text")


def test_a_flipped_byte_in_the_file_is_told(run_dir: Path) -> None:
    with start(run_dir) as writer:
        add(writer, range(60_000))
    path = run_dir / "run.duckdb"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with open_run(run_dir) as run:
        assert any("cannot be read completely" in problem for problem in run.verify())


def test_no_progress_bar_is_drawn_where_there_is_no_script(run_dir: Path) -> None:
    """Standard output is the caller's. A process without a main file looks interactive to DuckDB."""
    with start(run_dir) as writer:
        add(writer, range(3))
    code = (
        f"from stabilitylab.store.reader import open_run; run = open_run({str(run_dir)!r}); "
        "print(run._con.execute(\"SELECT value FROM duckdb_settings() WHERE name = 'enable_progress_bar'\").fetchall())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[('false',)]"
