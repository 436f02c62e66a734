"""Opens run.duckdb: read-only, under the name `base`, with clear words where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb

from stabilitylab.errors import RunBroken
from stabilitylab.store.schema import SCHEMA_VERSION, quote

DATABASE = "run.duckdb"


def attach_base(con: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Attach `path` read-only as `base` and return its meta table.

    Raises RunBroken for a file that is damaged or newer than this program.
    """
    try:
        con.execute(f"ATTACH {quote(str(path))} AS base (READ_ONLY)")
        meta = dict(con.execute("SELECT key, value FROM base.meta").fetchall())
    except (duckdb.CatalogException, duckdb.BinderException):
        raise RunBroken(f"{path} is not a StabilityLab run: it has no table meta") from None
    except FileNotFoundError:
        raise
    except duckdb.Error as error:
        if not path.exists():
            raise
        text = one_line(error)
        if "newer version" in text or "version number" in text:
            raise RunBroken(
                f"{path} was written by a newer DuckDB than this one ({duckdb.__version__}); "
                "upgrade with: pip install -U duckdb"
            ) from None
        raise RunBroken(f"{path} cannot be read: {text}; restore it from a copy") from None
    version = meta.get("schema_version", "")
    if not version.isdigit() or int(version) > SCHEMA_VERSION:
        raise RunBroken(
            f"{path} has schema version {version or 'none'}, this StabilityLab reads up to {SCHEMA_VERSION}; "
            "upgrade with: pip install -U stabilitylab"
        )
    return meta


def stored_problems(meta: dict[str, str]) -> list[str]:
    """What compaction found wrong, as it wrote it down."""
    try:
        return [str(problem) for problem in json.loads(meta.get("problems", "[]"))]
    except ValueError:
        return []


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without what follows it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
