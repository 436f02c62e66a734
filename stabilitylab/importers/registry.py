"""Registry of all import formats, and detection of the format of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stabilitylab.errors import LogFormatError
from stabilitylab.importers import (
    aim,
    clearml,
    comet,
    huggingface,
    jsonlines,
    lightning,
    mlflow,
    neptune,
    table,
    tensorboard,
    text,
    trackio,
    wandb,
)
from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log
from stabilitylab.importers.write import Imported, write_logs
from stabilitylab.registry import Registry

GENERAL = ("jsonl", "table", "text")
"""General formats, which match almost any file of their kind and are therefore tried last."""


def _check(name: str, entry: object) -> None:
    if not isinstance(entry, Format):
        raise TypeError(f"expected a Format, not a {type(entry).__name__}")
    if entry.name != name:
        raise ValueError(f"it declares the name {entry.name!r}")


IMPORTERS: Registry[Format] = Registry(
    "format",
    {
        module.FORMAT.name: module.FORMAT
        for module in (
            huggingface,
            trackio,
            mlflow,
            neptune,
            aim,
            comet,
            lightning,
            wandb,
            tensorboard,
            clearml,
            jsonlines,
            table,
            text,
        )
    },
    group="stabilitylab.importers",
    check=_check,
)
"""name -> format, in the order in which they are tried: specific formats before general ones. Folders of Trainers,
MLflow and W&B may also contain event files, so they come before TensorBoard."""

NEAREST = 3


def import_log(
    root: Path, path: Path, options: Options | None = None, *, format: str | None = None, name: str | None = None
) -> list[Imported]:
    """Import a file or folder as runs below ``root``, as ``format`` or with the detected format.

    Nothing is written unless everything could be read.

    Raises:
        LogFormatError: the format is unknown (the message lists the nearest ones), or the file contains no run.
        StoreError: the runs cannot be written.

    Example:
        >>> import_log(Path("runs"), Path("trainer_state.json"), name="finetune")  # doctest: +SKIP
    """
    options = options or Options()
    chosen = IMPORTERS.choose(format) if format is not None else recognise(path, options)
    return write_logs(root, read_logs(path, options, chosen), options, name)


def read_logs(path: Path, options: Options, format: Format) -> list[Log]:
    if not path.exists():
        raise LogFormatError(f"cannot read {path}: No such file or directory")
    logs = format.read(path, options)
    if not logs:
        raise LogFormatError(f"{path} contains no run in the format {format.name}; nothing was imported")
    return logs


def recognise(path: Path, options: Options | None = None) -> Format:
    """Detect the format of a file or folder. Raises LogFormatError, with the nearest formats, if it is unknown."""
    if not path.exists():
        raise LogFormatError(f"cannot read {path}: No such file or directory")
    if options is not None and options.pattern is not None:
        return IMPORTERS["text"]
    sample = Sample(path)
    for format in _special_first():
        if format.recognises(sample):
            return format
    if options is not None and options.step is not None and options.step in sample.columns:
        return IMPORTERS["table"]
    near = "; ".join(f"{format.name}: {format.title}" for format in nearest(sample))
    raise LogFormatError(f"{path} is {looks_like(sample)}, not a log in a known format. Nearest formats: {near}")


def _special_first() -> list[Format]:
    """All formats; those of plugins come before the general ones."""
    return sorted(IMPORTERS.values(), key=lambda format: format.name in GENERAL)


def nearest(sample: Sample, count: int = NEAREST) -> Sequence[Format]:
    """The formats with the most marks in the name or the beginning of a file."""
    inside = sample.path.name.lower() + "\n" + sample.head
    if sample.is_folder:
        inside += "\n".join(file.name for file in list(sample.path.iterdir())[:200])

    def match_score(format: Format) -> float:
        return sum(mark in inside for mark in format.marks) / max(len(format.marks), 1)

    return sorted(IMPORTERS.values(), key=match_score, reverse=True)[:count]


def looks_like(sample: Sample) -> str:
    """A description of a file, based on its beginning."""
    if sample.is_folder:
        count = sum(1 for _ in sample.path.iterdir())
        return f"a folder of {count} entries" if count else "an empty folder"
    if not sample.raw.strip():
        return "an empty file"
    if not sample.head:
        return "a binary file"
    if sample.records:
        return "JSON"
    if sample.head.lstrip().startswith(("{", "[")):
        return "JSON"
    if len(sample.columns) > 1:
        return f"a table with the columns {', '.join(sample.columns[:6])}"
    return f"a text file that begins {sample.lines[0].strip()[:60]!r}"
