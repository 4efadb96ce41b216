"""One process at a time where two would write over each other."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finerank.errors import UserError

NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOTSUP)
"""What some network file systems answer: there nobody is kept out."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder for the length of a block. Raises UserError if one is there.

    The system lets go when the process ends, however it ends.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        if not _locked(held, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise UserError(f"{folder}: another process is at work here; wait until it ends, or name another folder")
        yield
    finally:
        os.close(held)


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Wait until no other process is in a block of this name. file: made, and removed in the end."""
    while True:
        held = os.open(file, os.O_RDONLY | os.O_CREAT, 0o666)
        _locked(held, fcntl.LOCK_EX)
        if _names(file, held):
            break
        os.close(held)  # of one who was before: the name means another file by now
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(held)


def _names(file: Path, held: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(held))
    except FileNotFoundError:
        return False


def _locked(held: int, how: int) -> bool:
    try:
        fcntl.flock(held, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
