"""Check the rows of a run: duplicates, missing rows, gaps, and blocks that do not match their checksum."""

from __future__ import annotations

import duckdb
import numpy as np

from stabilitylab.store.database import one_line
from stabilitylab.store.segments import first_value


def find_row_problems(con: duckdb.DuckDBPyConnection, prefix: str = "") -> list[str]:
    """Duplicate and missing (iteration, layer_id) rows of the tables `prefix`layer_stats, iterations, layers.

    A layer is expected at every iteration at which any layer was recorded. Returns one line per kind of problem.
    """
    problems = []
    # Compare a count and a sum of hashes of the layers of each iteration: if all agree, no row is duplicate or missing.
    # This is fast (0.1 s for 15 million rows); the exact query runs only if they differ.
    kinds = first_value(
        con,
        f"""SELECT count(DISTINCT (rows_, hashes)) FROM (SELECT count(*) AS rows_, sum(hash(layer_id)) AS hashes
            FROM {prefix}layer_stats GROUP BY iteration)""",
    )
    per_iteration = first_value(
        con,
        f"""SELECT max(rows_) FROM (SELECT count(*) AS rows_ FROM {prefix}layer_stats
            WHERE iteration = (SELECT min(iteration) FROM {prefix}layer_stats) GROUP BY layer_id)""",
    )
    if kinds > 1 or (per_iteration or 0) > 1:
        problems += _doubles_and_missing(con, prefix)
    problems += _silent_layers(con, prefix)
    double = first_value(con, f"SELECT count(*) - count(DISTINCT iteration) FROM {prefix}iterations")
    if double:
        problems.append(f"iterations has {double} duplicate rows")
    problems += _gaps(con, prefix)
    return problems


def _doubles_and_missing(con: duckdb.DuckDBPyConnection, prefix: str) -> list[str]:
    rows = con.execute(
        f"""SELECT layer_id, count(*) AS rows_, count(DISTINCT iteration) AS kept
            FROM {prefix}layer_stats GROUP BY layer_id ORDER BY layer_id"""
    ).fetchall()
    expected = first_value(con, f"SELECT count(DISTINCT iteration) FROM {prefix}layer_stats")
    problems = []
    double = sum(count - kept for _, count, kept in rows)
    if double:
        where = con.execute(
            f"""SELECT iteration, layer_id FROM {prefix}layer_stats GROUP BY iteration, layer_id
                HAVING count(*) > 1 ORDER BY iteration, layer_id LIMIT 1"""
        ).fetchone()
        assert where is not None
        problems.append(f"layer_stats has {double} duplicate rows, first at iteration {where[0]}, layer {where[1]}")
    # A layer that was frozen during training is not expected to have later rows.
    frozen = {row[0] for row in con.execute(f"SELECT layer_id FROM {prefix}layers WHERE NOT trainable").fetchall()}
    short = [(id_, expected - kept) for id_, _, kept in rows if kept < expected and id_ not in frozen]
    if short:
        missing = sum(count for _, count in short)
        problems.append(f"layer_stats lacks {missing} rows in {len(short)} layers, first in layer {short[0][0]}")
    return problems


def _silent_layers(con: duckdb.DuckDBPyConnection, prefix: str) -> list[str]:
    names = con.execute(
        f"""SELECT name FROM {prefix}layers WHERE trainable
            AND layer_id NOT IN (SELECT DISTINCT layer_id FROM {prefix}layer_stats)
            AND (SELECT count(*) FROM {prefix}layer_stats) > 0 ORDER BY depth, layer_id"""
    ).fetchall()
    if not names:
        return []
    return [f"{len(names)} trainable layers were never recorded, first {names[0][0]}"]


def _gaps(con: duckdb.DuckDBPyConnection, prefix: str) -> list[str]:
    problems = []
    for table in ("iterations", "layer_stats"):
        recorded = con.execute(f"SELECT DISTINCT iteration FROM {prefix}{table} ORDER BY iteration").fetchnumpy()[
            "iteration"
        ]
        steps = np.diff(np.asarray(recorded, dtype=np.int64))
        if len(steps) < 3:
            continue
        values, counts = np.unique(steps, return_counts=True)
        every = int(values[counts.argmax()])
        # Gaps are defined only for regular recordings; imported logs may be irregular.
        if counts.max() < 0.9 * len(steps):
            continue
        late = np.flatnonzero(steps > every)
        if len(late):
            lost = int((steps[late] // every - 1).sum())
            problems.append(f"{table} lacks {lost} iterations, first after iteration {int(recorded[late[0]])}")
    return problems


def find_damage(con: duckdb.DuckDBPyConnection, tables: list[str]) -> list[str]:
    """Read every block of every table, so that DuckDB verifies its checksum."""
    problems = []
    for table in tables:
        try:
            con.execute(f"SELECT sum(hash(t)) FROM {table} AS t").fetchall()
        except duckdb.OutOfMemoryException:  # says nothing about the table
            raise
        except duckdb.Error as error:
            problems.append(f"{table} cannot be read completely: {one_line(error)}")
    return problems
