"""Cleanup of temporary files and folders left behind by killed processes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path


def remove_unfinished(folder: Path, name: re.Pattern[str]) -> None:
    """Remove the entries of ``folder`` that match ``name``, a pattern of temporary names of this package, if the
    process in its group ``pid`` no longer exists."""
    for path in folder.iterdir():
        match = name.fullmatch(path.name)
        if match is None or _lives(int(match["pid"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
