"""Puts batches of rows on disk: segments first, then the manifest that makes them count, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from stabilitylab.store.manifest import Manifest, sync_folder, write_manifest
from stabilitylab.store.outbox import Loss
from stabilitylab.store.rows import Rows, join, make_rows
from stabilitylab.store.schema import TABLES, LayerRow
from stabilitylab.store.segments import write_segment, writer_connection


class Publisher:
    """Owns `segments/` and its manifest. Used by one thread at a time."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._number = 0
        self._con: duckdb.DuckDBPyConnection | None = None

    def start(self, layers: Sequence[LayerRow] | None) -> None:
        """Write the first segments, empty but for `layers`, and the first manifest."""
        write_manifest(self.folder, self.manifest, "start.json")
        write_manifest(self.folder, self.manifest)
        rows = {table: [_no_rows(table)] for table in TABLES if table != "layers"}
        if layers is not None:
            rows["layers"] = [layer_rows(layers)]
        self.publish(rows)

    def publish(self, rows: Mapping[str, Sequence[Rows]]) -> None:
        """Make `rows` durable and visible together. Raises OSError or duckdb.Error with nothing changed."""
        number = self._number
        written = []
        try:
            if self._con is None:
                self._con = writer_connection()
            for parts in rows.values():
                written.append(write_segment(self._con, self.folder, join(parts), number))
            sync_folder(self.folder)
            manifest = self.manifest.with_segments(written)
            write_manifest(self.folder, manifest)
        except BaseException:
            for segment in written:
                (self.folder / segment.file).unlink(missing_ok=True)
            self.close()
            raise
        self.manifest = manifest
        self._number = number + 1

    def set_status(self, status: str) -> None:
        """Write `status` into the manifest; in memory it holds even if the disk refuses."""
        self.manifest = self.manifest.with_meta(status=status)
        write_manifest(self.folder, self.manifest)

    def close(self) -> None:
        """Drop the DuckDB connection; a failed one may not be usable again."""
        if self._con is not None:
            self._con.close()
            self._con = None


def layer_rows(layers: Sequence[LayerRow]) -> Rows:
    """`layers` as rows of the table layers."""
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
    """One event a table that lost rows."""
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
