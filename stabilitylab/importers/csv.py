"""Import gradient norms and scalars from the two CSV formats of this package.

Any fault raises an error that names the line. All files are read and validated before a run is written, so an invalid
file leaves nothing behind.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.long_tables import LongColumns, long_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import MAX_ITERATION, Log, Series
from stabilitylab.importers.tables import open_table
from stabilitylab.importers.write import Imported, write_logs


@dataclass
class GradsTable:
    """Columns of a grads.csv. ``layer`` (n,) indexes ``layers``; ``grad_max`` (n,) is NaN where not given."""

    layers: list[str] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    iteration: list[int] = field(default_factory=list)
    layer: list[int] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    grad_max: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Scalar:
    iteration: int
    name: str
    value: float
    num_samples: int | None


def read_grads(path: Path) -> GradsTable:
    """Read ``iteration,layer,grad_norm[,grad_max][,depth]``. Raises LogFormatError at the first fault."""
    table, index = GradsTable(), dict[str, int]()
    seen: dict[tuple[int, int], int] = {}
    given_depths = False
    for line, row in _rows(path, ("iteration", "layer", "grad_norm"), ("grad_max", "depth")):
        iteration = _iteration(path, line, row["iteration"])
        name = row["layer"]
        if not name:
            raise LogFormatError(f"{path}, line {line}: the layer has no name")
        layer = index.setdefault(name, len(index))
        depth = None
        if row.get("depth"):
            given_depths = True
            depth = _whole(path, line, "depth", row["depth"])
        if layer == len(table.layers):
            table.layers.append(name)
            table.depths.append(layer if depth is None else depth)
        elif depth is not None and table.depths[layer] != depth:
            raise LogFormatError(
                f"{path}, line {line}: layer {name!r} has depth {depth} here and {table.depths[layer]} before"
            )
        first = seen.setdefault((iteration, layer), line)
        if first != line:
            raise LogFormatError(
                f"{path}, line {line}: iteration {iteration} of layer {name!r} is already on line {first}; "
                "remove one of the two"
            )
        table.iteration.append(iteration)
        table.layer.append(layer)
        table.grad_norm.append(_norm(path, line, "grad_norm", row["grad_norm"]))
        table.grad_max.append(_norm(path, line, "grad_max", row["grad_max"]) if row.get("grad_max") else None)
    if given_depths and len(set(table.depths)) < len(table.depths):
        raise LogFormatError(f"{path}: two layers share a depth; number the layers from input to output")
    return table


def read_scalars(path: Path) -> list[Scalar]:
    """Read ``iteration,name,value[,num_samples]``. Raises LogFormatError at the first fault."""
    read = []
    seen: dict[tuple[int, str], int] = {}
    for line, row in _rows(path, ("iteration", "name", "value"), ("num_samples",)):
        iteration, name = _iteration(path, line, row["iteration"]), row["name"]
        if not name:
            raise LogFormatError(f"{path}, line {line}: the scalar has no name")
        first = seen.setdefault((iteration, name), line)
        if first != line:
            raise LogFormatError(
                f"{path}, line {line}: {name!r} at iteration {iteration} is already on line {first}; "
                "remove one of the two"
            )
        samples = _whole(path, line, "num_samples", row["num_samples"]) if row.get("num_samples") else None
        value = _number(path, line, "value", row["value"])
        if name == "knn_top1" and not (0 <= value <= 1 or math.isnan(value)):
            raise LogFormatError(f"{path}, line {line}: knn_top1 {value:g} is not a fraction between 0 and 1")
        read.append(Scalar(iteration, name, value, samples))
    return read


def import_csv(runs_dir: Path, grads: Path, scalars: Path | None = None, name: str | None = None) -> Path:
    """As `write_csv`, but returns the folder of the run."""
    return write_csv(runs_dir, grads, scalars, name).path


def write_csv(runs_dir: Path, grads: Path, scalars: Path | None = None, name: str | None = None) -> Imported:
    """Write the files as a finished run below ``runs_dir``.

    The depth of a layer comes from the column ``depth``, else from the order of first appearance.

    Raises:
        LogFormatError: at the first fault.
        RunExists: a run with this name exists.
    """
    log = _grads_log(grads)
    log.may_restart = False  # each step of a layer occurs once, in any order
    if scalars is not None:
        curves = _scalars(scalars)
        log.series.update({tag if tag not in log.series else f"{tag} (scalar)": one for tag, one in curves.items()})
    return write_logs(runs_dir, [log], Options(), name)[0]


def _grads_log(path: Path) -> Log:
    """The layers of a grads.csv, read by DuckDB. An invalid file is read again row by row to locate the fault."""
    try:
        log = _read_fast(path, ("iteration", "layer", "grad_norm"), is_layer=True)
    except LogFormatError:
        log = None
    if log is None:
        table = read_grads(path)
        log = Log("csv", path)
        layer, step = np.array(table.layer, np.int64), np.array(table.iteration, np.int64)
        norm = np.array(table.grad_norm)
        largest = np.array([np.nan if value is None else value for value in table.grad_max])
        given = np.array([value is not None for value in table.grad_max], dtype=bool)
        for place, layer_name in enumerate(table.layers):
            rows = np.flatnonzero(layer == place)
            _add_layer(log, layer_name, Series(layer_name, step[rows], norm[rows], rows), table.depths[place])
            rows = rows[given[rows]]
            if len(rows):
                tag = f"{layer_name} (largest)"
                log.series[tag] = Series(tag, step[rows], largest[rows], rows)
                log.maxima[tag] = layer_name
        return log
    depths = [log.depths.get(layer, place) for place, layer in enumerate(log.layers)]
    for place, layer_name in enumerate(log.layers):
        log.depths[layer_name] = depths[place]
    return log


def _add_layer(log: Log, name: str, series: Series, depth: int) -> None:
    log.series[name] = series
    log.layers[name] = name
    log.depths[name] = depth


def _scalars(path: Path) -> dict[str, Series]:
    try:
        log = _read_fast(path, ("iteration", "name", "value"), is_layer=False)
    except LogFormatError:
        log = None
    if log is not None:
        return log.series
    rows: dict[str, list[Scalar]] = {}
    for scalar in read_scalars(path):
        rows.setdefault(scalar.name, []).append(scalar)
    curves = {}
    for name, scalars in rows.items():
        samples = np.array([-1 if s.num_samples is None else s.num_samples for s in scalars], np.int64)
        steps = np.array([s.iteration for s in scalars], np.int64)
        values = np.array([s.value for s in scalars])
        curves[name] = Series(name, steps, values, np.arange(len(scalars)), num_samples=samples)
    return curves


def _read_fast(path: Path, needed: tuple[str, str, str], *, is_layer: bool) -> Log | None:
    """Read the file with DuckDB. Returns None or raises LogFormatError if it must be read row by row."""
    table = open_table(path, Options(strict=True), "csv")
    if not set(needed) <= set(table.columns) or table.delimiter != "," or not table.rows:
        return None
    if "depth" in table.columns and is_layer:
        return None  # the consistency of depths is checked row by row
    step, name, value = needed
    columns = LongColumns(step, name, value, is_layer=is_layer, largest="grad_max", num_samples="num_samples")
    logs = long_logs(table, columns)
    if len(logs) != 1:
        return None
    log = logs[0]
    if sum(len(series) for tag, series in log.series.items() if tag not in log.maxima) != table.rows:
        return None
    for series in log.series.values():
        wrong = series.value < 0
        if not is_layer:
            wrong = (wrong | (series.value > 1)) & (series.name == "knn_top1")
        if wrong.any() or len(np.unique(series.step)) < len(series):
            return None
    return log


def _rows(path: Path, needed: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each non-blank row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            if not any(header):
                raise LogFormatError(f"{path} is empty; it needs the columns {', '.join(needed)}")
            missing = [name for name in needed if name not in header]
            if missing:
                raise LogFormatError(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}; "
                    f"needed: {', '.join(needed)}"
                )
            twice = sorted({name for name in header if header.count(name) > 1} & {*needed, *optional})
            if twice:
                raise LogFormatError(f"{path} has the column {', '.join(twice)} twice")
            places = [(name, header.index(name)) for name in (*needed, *optional) if name in header]
            count = 0
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise LogFormatError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)}"
                    )
                count += 1
                yield reader.line_num, {name: cells[place].strip() for name, place in places}
            if not count:
                raise LogFormatError(f"{path} has a header and no rows")
    except OSError as error:
        raise LogFormatError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LogFormatError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise LogFormatError(f"{path}, line {reader.line_num}: {error}") from None


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except (ValueError, OverflowError):
        raise LogFormatError(f"{path}, line {line}: {column} {text!r} is not a number") from None


def _norm(path: Path, line: int, column: str, text: str) -> float:
    value = _number(path, line, column, text)
    if value < 0:
        raise LogFormatError(f"{path}, line {line}: {column} {text} is negative, but a norm cannot be")
    return value


def _whole(path: Path, line: int, column: str, text: str) -> int:
    value = _number(path, line, column, text)
    if not (0 <= value <= MAX_ITERATION and value == int(value)):
        raise LogFormatError(f"{path}, line {line}: {column} {text!r} is not a non-negative integer")
    return int(value)


def _iteration(path: Path, line: int, text: str) -> int:
    return _whole(path, line, "iteration", text)
