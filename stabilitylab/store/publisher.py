"""Write batches of rows to disk atomically: first the segments, then the manifest that lists them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb

from stabilitylab.store.compaction import clean_folder
from stabilitylab.store.manifest import (
    MANIFEST,
    START,
    Manifest,
    Segment,
    check_segment,
    sync,
    write_manifest,
)
from stabilitylab.store.outbox import Loss
from stabilitylab.store.rows import Rows, join, make_rows
from stabilitylab.store.schema import TABLES, LayerRow
from stabilitylab.store.segments import gather_segments, write_segment, writer_connection

# Number of small segments that are merged into a larger one, and the maximum number of its rows.
GATHER_SEGMENTS = 32
GATHER_ROWS = 4_000_000


class Publisher:
    """Owns `segments/` and its manifest. Used by one thread at a time."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._number = 0
        self._damaged: set[str] = set()
        self._con: duckdb.DuckDBPyConnection | None = None

    def start(self, layers: Sequence[LayerRow] | None) -> None:
        """Write the first manifest and the first segments, which are empty except for `layers`."""
        write_manifest(self.folder, self.manifest, "start.json")
        write_manifest(self.folder, self.manifest)
        rows = {table: [_no_rows(table)] for table in TABLES if table != "layers"}
        if layers is not None:
            rows["layers"] = [layer_rows(layers)]
        self.publish(rows)

    def withdraw(self) -> None:
        """Undo `start`. No rows were added, so the run is as before, or does not exist."""
        self.close()
        with contextlib.suppress(OSError):
            for name in (MANIFEST, START):
                (self.folder / name).unlink(missing_ok=True)
            clean_folder(self.folder)

    def publish(self, rows: Mapping[str, Sequence[Rows]]) -> None:
        """Make `rows` durable and visible atomically. Raises OSError or duckdb.Error with nothing changed."""
        number = self._number
        written = []
        try:
            if self._con is None:
                self._con = writer_connection()
            for parts in rows.values():
                written.append(write_segment(self._con, self.folder, join(parts), number))
            sync(self.folder)
            manifest = self.manifest.with_segments(written)
            write_manifest(self.folder, manifest)
        except BaseException:
            for segment in written:
                (self.folder / segment.file).unlink(missing_ok=True)
            self.close()
            raise
        self.manifest = manifest
        self._number = number + 1

    def gather(self) -> None:
        """Merge small segments into larger ones, so that a run of many days has few files.

        A segment that does not match its checksum is not merged, because the copy would have a valid checksum. Raises
        OSError or duckdb.Error with nothing changed.
        """
        for parts in self._small_segments():
            if bad := {part.file for part in parts if check_segment(self.folder, part)}:
                self._damaged |= bad
                continue
            if self._con is None:
                self._con = writer_connection()
            merged = gather_segments(self._con, self.folder, parts, self._number)
            self._number += 1
            # Insert it at the position of its parts, because views read the segments in the order of the manifest.
            gone = {part.file for part in parts}
            segments = [merged if s is parts[0] else s for s in self.manifest.segments]
            manifest = replace(self.manifest, segments=tuple(s for s in segments if s.file not in gone))
            try:
                sync(self.folder)
                write_manifest(self.folder, manifest)
            except BaseException:
                (self.folder / merged.file).unlink(missing_ok=True)
                raise
            self.manifest = manifest
            for name in gone:
                (self.folder / name).unlink(missing_ok=True)

    def _small_segments(self) -> list[list[Segment]]:
        groups: dict[tuple[str, int], list[Segment]] = {}
        for segment in self.manifest.segments:
            if segment.file not in self._damaged:
                groups.setdefault((segment.table, segment.level), []).append(segment)
        return [
            parts
            for parts in groups.values()
            if len(parts) >= GATHER_SEGMENTS and sum(part.rows for part in parts) <= GATHER_ROWS
        ]

    def set_status(self, status: str) -> None:
        """Write `status` to the manifest. It is set in memory even if writing fails."""
        self.manifest = self.manifest.with_meta(status=status)
        write_manifest(self.folder, self.manifest)

    def close(self) -> None:
        """Close the DuckDB connection, which may be unusable after an error."""
        if self._con is not None:
            self._con.close()
            self._con = None


def layer_rows(layers: Sequence[LayerRow]) -> Rows:
    """Convert `layers` to rows of the table layers."""
    return make_rows(
        "layers",
        {
            "layer_id": [layer.layer_id for layer in layers],
            "name": [layer.name for layer in layers],
            "depth": [layer.depth for layer in layers],
            "num_params": [layer.num_params for layer in layers],
            "trainable": [layer.trainable for layer in layers],
        },
    )


def _no_rows(table: str) -> Rows:
    return make_rows(table, {column.name: [] for column in TABLES[table]})


def loss_events(losses: Mapping[str, Loss]) -> list[Rows]:
    """One event per table that lost rows."""
    return [
        make_rows(
            "events",
            {
                "iteration": [loss.first],
                "kind": ["rows_lost"],
                "detail": [f"{loss.rows} rows of {table}, iterations {loss.first}..{loss.last}, were not written"],
            },
        )
        for table, loss in losses.items()
    ]
