"""The tables of a run: the one place that knows their names, columns and types."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1

# Readable by DuckDB 1.4, the oldest this package accepts, and by every later one. Measured: it costs neither
# size nor speed against the format of DuckDB 2.
STORAGE_VERSION = "v1.4.0"

STATUSES = ("running", "finished", "stopped", "crashed")


@dataclass(frozen=True)
class LayerRow:
    """One layer of the model; `depth` orders the layers from input (0) to output."""

    layer_id: int
    name: str
    depth: int
    num_params: int
    trainable: bool = True


@dataclass(frozen=True)
class EventRow:
    """Something that happened at an iteration: nonfinite, checkpoint, resume, rows_lost, ..."""

    iteration: int
    kind: str
    detail: str


@dataclass(frozen=True)
class Column:
    """A column of a table. A column that is not `required` is NULL where nothing was measured."""

    name: str
    type: str
    required: bool = False


def _columns(*required: tuple[str, str], optional: tuple[tuple[str, str], ...] = ()) -> tuple[Column, ...]:
    must = tuple(Column(name, kind, required=True) for name, kind in required)
    return must + tuple(Column(name, kind) for name, kind in optional)


META = _columns(("key", "VARCHAR"), optional=(("value", "VARCHAR"),))

TABLES: dict[str, tuple[Column, ...]] = {
    "layers": _columns(
        ("layer_id", "SMALLINT"),
        ("name", "VARCHAR"),
        ("depth", "INTEGER"),
        ("num_params", "BIGINT"),
        ("trainable", "BOOLEAN"),
    ),
    "layer_stats": _columns(
        ("iteration", "INTEGER"),
        ("layer_id", "SMALLINT"),
        optional=(
            ("grad_norm", "FLOAT"),
            ("grad_max", "FLOAT"),
            ("weight_norm", "FLOAT"),
            ("adam_rms", "FLOAT"),
            ("update_ratio", "FLOAT"),
            ("nonfinite", "FLOAT"),
            ("activation_max", "FLOAT"),
            ("attention_max", "FLOAT"),
        ),
    ),
    "iterations": _columns(
        ("iteration", "INTEGER"),
        optional=(
            ("epoch", "DOUBLE"),
            ("loss", "DOUBLE"),
            ("lr", "DOUBLE"),
            ("ema_momentum", "DOUBLE"),
            ("grad_norm", "DOUBLE"),
            ("seconds", "DOUBLE"),
            ("images", "BIGINT"),
        ),
    ),
    "evals": _columns(
        ("iteration", "INTEGER"),
        ("metric", "VARCHAR"),
        optional=(("value", "DOUBLE"), ("num_samples", "BIGINT")),
    ),
    "scalars": _columns(("iteration", "INTEGER"), ("name", "VARCHAR"), optional=(("value", "DOUBLE"),)),
    "events": _columns(("iteration", "INTEGER"), ("kind", "VARCHAR"), optional=(("detail", "VARCHAR"),)),
}

# A resumed run drops what these tables hold at or past the resume point. Events stay: they happened.
CUT_AT_RESUME = ("layer_stats", "iterations", "evals", "scalars")

# What compaction orders by, so that one layer's series lies together on disk.
ORDER_BY = {
    "layers": "layer_id",
    "layer_stats": "layer_id, iteration",
    "iterations": "iteration",
    "evals": "metric, iteration",
    "scalars": "name, iteration",
    "events": "iteration",
}

SIGNALS = tuple(column.name for column in TABLES["layer_stats"] if not column.required)


def column_list(table: str) -> str:
    """The columns of `table`, in order, for a SELECT."""
    return ", ".join(column.name for column in TABLES[table])


def empty_select(table: str) -> str:
    """A SELECT with the columns and types of `table` and no rows."""
    typed = ", ".join(f"NULL::{column.type} AS {column.name}" for column in TABLES[table])
    return f"SELECT {typed} WHERE false"


def create_table(table: str, prefix: str = "") -> str:
    """The CREATE TABLE of `table`, or of `meta`."""
    columns = META if table == "meta" else TABLES[table]
    body = ", ".join(f"{c.name} {c.type}{' NOT NULL' if c.required else ''}" for c in columns)
    return f"CREATE TABLE {prefix}{table} ({body})"


def quote(text: str) -> str:
    """`text` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
