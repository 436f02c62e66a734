"""Write the gradient norms of a run to one small Parquet file: one row per iteration, one column per layer."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from stabilitylab.errors import NoDataError
from stabilitylab.store.reader import open_run


def write_series(run_dir: Path, file: Path, *, bits: int = 23) -> None:
    """Write ``file`` with the columns ``iteration`` (int32), the gradient norm of each trained layer from input to
    output, ``loss`` and ``knn_top1`` (float32). Values that were not recorded, such as kNN between evaluations, are
    NULL. The evaluation after the last update has its own row. About 0.5 MB for 13,000 iterations of 11 layers.

    ``bits``: how many of the 23 bits of the fraction of a float32 are kept. The others are rounded away, so that the
    file is smaller; 12 bits leave a relative error of at most 1.2e-4.

    Raises NoDataError if the run has no gradient norms.
    """
    with open_run(run_dir) as reader:
        recorded = reader.layer_series("grad_norm")
        layers = [
            layer for layer in sorted(reader.layers(), key=lambda layer: layer.depth) if layer.layer_id in recorded
        ]
        columns = {layer.name: recorded[layer.layer_id] for layer in layers}
        losses = reader.table("iterations")
        columns["loss"] = (losses["iteration"], losses["loss"])
        for name, curve in reader.evals().items():
            if name == "knn_top1":
                columns[name] = (curve["iteration"], curve["value"])
    if not layers:
        raise NoDataError(f"run {run_dir.name} has no recorded gradient norms; train with --log-grads")
    series = {
        name: pd.Series(np.asarray(value, dtype=np.float32), index=np.asarray(iteration, dtype=np.int32))
        for name, (iteration, value) in columns.items()
    }
    table = pd.DataFrame({name: one[~one.index.duplicated(keep="last")] for name, one in series.items()}).sort_index()
    table = rounded(table.astype(np.float32), bits).rename_axis("iteration").reset_index()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with duckdb.connect() as con:
        con.register("series", table.astype({"iteration": np.int32}))
        target = str(part).replace("'", "''")
        con.execute(f"COPY series TO '{target}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 19)")
    part.replace(file)


def rounded(table: pd.DataFrame, bits: int) -> pd.DataFrame:
    """float32 values rounded to ``bits`` bits of their fraction; values that are not finite are kept."""
    values = table.to_numpy(dtype=np.float32)
    drop = 23 - bits
    if not drop:
        return table
    whole = values.view(np.uint32).astype(np.uint64)
    near = ((whole + (1 << (drop - 1))) >> drop << drop).astype(np.uint32).view(np.float32)
    return pd.DataFrame(np.where(np.isfinite(values), near, values), index=table.index, columns=table.columns)
