"""Lightning's CSVLogger: ``metrics.csv``, by itself or in the folder of a version."""

from __future__ import annotations

from pathlib import Path

from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.long_tables import wide_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log
from stabilitylab.importers.tables import open_table

METRICS = "metrics.csv"


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return bool(_files(sample.path))
    return sample.path.name == METRICS and sample.has("step", "epoch")


def read(path: Path, options: Options) -> list[Log]:
    """One run per ``metrics.csv``. A row contains the values logged at a step; its other cells are empty."""
    logs = []
    for file in _files(path) if path.is_dir() else [path]:
        curves = wide_logs(open_table(file, options, "lightning"), options, ("step", "global_step"))
        for log in curves:
            log.run = file.parent.name if file.parent != path else ""
        logs += curves
    return logs


def _files(folder: Path) -> list[Path]:
    for pattern in (METRICS, f"version_*/{METRICS}", f"*/version_*/{METRICS}"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


FORMAT = Format(
    "lightning",
    "the metrics.csv of Lightning's CSVLogger",
    recognises,
    read,
    ("metrics.csv", "epoch", "step", "hparams.yaml"),
)
