"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finerank.errors import UserError


def vacant(folder: Path) -> None:
    """Raises UserError if the folder exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already and is not empty; remove it or name another folder")


@contextmanager
def whole_or_nothing(folder: Path, need: str = "") -> Iterator[Path]:
    """A folder beside `folder` that takes its place at a good end, and is removed otherwise.

    need  what to say of how much space is needed
    Raises UserError for a disk that is full.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:  # a failed write knows of no name
                error.filename = str(folder)
            raise
        free = shutil.disk_usage(folder.parent).free / 1e9
        raise UserError(
            f"{folder}: the disk is full ({free:.1f} GB were left when writing failed), nothing was kept; free some space "
            f"or name a folder on a larger disk{need and f': {need}'}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
