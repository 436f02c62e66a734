"""Import gradient norms and scalars that another tool logged as CSV.

Everything is read and checked before a run is claimed, so a bad file leaves nothing behind.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.store.whole import write_run_whole
from stabilitylab.store.writer import LayerRow, RunWriter

MAX_ITERATION = 2**31 - 1  # the store's INTEGER
_MAX_LAYERS = 2**15 - 1  # its SMALLINT


@dataclass
class GradsTable:
    """Columns of a grads.csv. ``layer`` (n,) indexes ``layers``; ``grad_max`` is NaN-free only where given."""

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
    """Read ``iteration,layer,grad_norm[,grad_max][,depth]``. LogFormatError names the first fault."""
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
                f"{path}, line {line}: iteration {iteration} of layer {name!r} stands on line {first} already; "
                "keep one of the two"
            )
        table.iteration.append(iteration)
        table.layer.append(layer)
        table.grad_norm.append(_norm(path, line, "grad_norm", row["grad_norm"]))
        table.grad_max.append(_norm(path, line, "grad_max", row["grad_max"]) if row.get("grad_max") else None)
    if given_depths and len(set(table.depths)) < len(table.depths):
        raise LogFormatError(f"{path}: two layers share a depth; number the layers from input to output")
    return table


def read_scalars(path: Path) -> list[Scalar]:
    """Read ``iteration,name,value[,num_samples]``. LogFormatError names the first fault."""
    found = []
    seen: dict[tuple[int, str], int] = {}
    for line, row in _rows(path, ("iteration", "name", "value"), ("num_samples",)):
        iteration, name = _iteration(path, line, row["iteration"]), row["name"]
        if not name:
            raise LogFormatError(f"{path}, line {line}: the scalar has no name")
        first = seen.setdefault((iteration, name), line)
        if first != line:
            raise LogFormatError(
                f"{path}, line {line}: {name!r} at iteration {iteration} stands on line {first} already; "
                "keep one of the two"
            )
        samples = _whole(path, line, "num_samples", row["num_samples"]) if row.get("num_samples") else None
        value = _number(path, line, "value", row["value"])
        if name == "knn_top1" and not (0 <= value <= 1 or math.isnan(value)):
            raise LogFormatError(f"{path}, line {line}: knn_top1 {value:g} is not a fraction between 0 and 1")
        found.append(Scalar(iteration, name, value, samples))
    return found


def import_csv(runs_dir: Path, grads: Path, scalars: Path | None = None, name: str | None = None) -> Path:
    """Write the files as a finished run under ``runs_dir`` and return its folder."""
    table = read_grads(grads)
    logged = read_scalars(scalars) if scalars is not None else []
    source = {"source": "csv", "grads": grads.name, "scalars": scalars.name if scalars else ""}
    return write_run(runs_dir, table, logged, config=source, name=name)


def write_run(
    runs_dir: Path, table: GradsTable, logged: list[Scalar], *, config: dict[str, str], name: str | None
) -> Path:
    """Checked logs as a finished run. Returns its folder."""
    if len(table.layers) > _MAX_LAYERS:
        raise LogFormatError(f"{len(table.layers):,} layers; a run holds up to {_MAX_LAYERS:,}: name fewer as layers")
    order = sorted(range(len(table.layers)), key=table.depths.__getitem__)
    layer_id = {layer: position for position, layer in enumerate(order)}
    rows = [LayerRow(i, table.layers[layer], table.depths[layer], 0, True) for i, layer in enumerate(order)]

    def fill(writer: RunWriter) -> None:
        absent = [value is None for value in table.grad_max]
        writer.append(
            "layer_stats",
            {
                "iteration": np.array(table.iteration, np.int32),
                "layer_id": np.array([layer_id[layer] for layer in table.layer], np.int16),
                "grad_norm": np.array(table.grad_norm),
                "grad_max": np.ma.masked_array([0.0 if v is None else v for v in table.grad_max], absent),
            },
        )
        _append_scalars(writer, logged)

    return write_run_whole(runs_dir, name, fill, config=config, meta={"source": config["source"]}, layers=rows)


def _append_scalars(writer: RunWriter, logged: list[Scalar]) -> None:
    kinds: dict[str, Callable[[Scalar], bool]] = {
        "evals": lambda s: s.name == "knn_top1",
        "iterations": lambda s: s.name == "loss",
        "scalars": lambda s: s.name not in ("knn_top1", "loss"),
    }
    for table, belongs in kinds.items():
        chosen = [s for s in logged if belongs(s)]
        if not chosen:
            continue
        iteration, value = [s.iteration for s in chosen], [s.value for s in chosen]
        if table == "iterations":
            writer.append(table, {"iteration": iteration, "loss": value})
        elif table == "scalars":
            writer.append(table, {"iteration": iteration, "name": [s.name for s in chosen], "value": value})
        else:
            samples = [s.num_samples for s in chosen]
            columns = {"iteration": iteration, "metric": [s.name for s in chosen], "value": value}
            unknown = [n is None for n in samples]
            writer.append(table, {**columns, "num_samples": np.ma.masked_array([n or 0 for n in samples], unknown)})


def _rows(path: Path, needed: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            if not any(header):
                raise LogFormatError(f"{path} is empty; it needs the columns {', '.join(needed)}")
            missing = [name for name in needed if name not in header]
            if missing:
                raise LogFormatError(
                    f"{path} has no column {', '.join(missing)}; found {', '.join(header)}; needed {', '.join(needed)}"
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
        raise LogFormatError(f"{path}, line {line}: {column} {text} is negative; a norm is not")
    return value


def _whole(path: Path, line: int, column: str, text: str) -> int:
    value = _number(path, line, column, text)
    if not (0 <= value <= MAX_ITERATION and value == int(value)):
        raise LogFormatError(f"{path}, line {line}: {column} {text!r} is not a whole number from 0 up")
    return int(value)


def _iteration(path: Path, line: int, text: str) -> int:
    return _whole(path, line, "iteration", text)
