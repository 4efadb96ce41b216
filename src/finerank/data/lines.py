"""What is wrong with the lines of a CSV file, which Polars reads without a word or refuses without saying where.

A packed file (gzip, zlib, zstd, which Polars unpacks) is unpacked here too, as it is read through, a piece at a time.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl

from finerank.errors import UserError

BYTES = 1 << 22
"""That are looked at together."""

_PIECE = 1 << 16
"""Packed bytes, or lines, that are unpacked together: no more are held than are asked for."""

NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars (|)"}
"""Of what separates fields."""

_GZIP, _ZSTD, _ZLIB = (b"\x1f\x8b",), (b"\x28\xb5\x2f\xfd",), (b"\x78\x01", b"\x78\x9c", b"\x78\xda")
"""How packed files begin."""

_NEWLINE, _QUOTE = 10, 34


def refuse_header(path: Path | str, names: Sequence[str], files: Sequence[Path], separator: str) -> None:
    """Raises UserError for a header in another encoding, with another separator, or that names a column twice.

    names   as Polars reads them, for which the second `a` is `a_duplicated_0`
    """
    heads = [_head(file) for file in files]
    for file, head in zip(files, heads, strict=True):
        if not _is_utf8(head):
            raise _not_utf8(file, 1)
    others = [other for other in NAMES if other != separator and len(names) == 1 and other in names[0]]
    if others and names[0].replace("\t", "").isprintable():  # else it is no text
        other = max(others, key=names[0].count)
        packed = "".join(end for end in Path(path).suffixes[-1:] if end.lower() not in (".csv", ".tsv"))
        suffix = {"\t": ".tsv", ",": ".csv"}.get(other)
        remedy = f"rename it to {suffix}{packed}" if suffix else f"save it with {NAMES[separator]}"
        raise UserError(
            f"{path}: its header is one column, {_short(names[0])}: fields look separated by {NAMES[other]}, and are "
            f"accepted separated by commas in .csv and by tabs in .tsv; {remedy}"
        )
    for name in names:
        first, mark, _ = name.rpartition("_duplicated_")
        # a column without a name cannot be asked for, so several of them do no harm
        if mark and first and first in names and not any(name.encode() in head for head in heads):
            raise UserError(f"{path}: its header names the column {first!r} twice; rename or remove one of the two")


def refuse_ragged(path: Path, separator: str, rows: int | None = None) -> None:
    """Raises UserError for a line of more or fewer fields than the header, which Polars cuts or fills with nulls.

    rows   lines that will be read, at least; None: all
    """
    if _suspect(path, separator, rows):
        _tell_ragged(path, separator)


def refuse_encoding(path: Path) -> None:
    """Raises UserError for the first line that is not UTF-8, if there is one."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not _is_utf8(line):
                raise _not_utf8(path, number)


def _not_utf8(path: Path, line: int) -> UserError:
    with opened(path) as file:
        head = file.read(BYTES)
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
    remedy = f"save the file as UTF-8, for example with iconv -f {encoding} -t utf-8"
    if b"\0" in head and encoding != "utf-16":
        remedy = "is it a file of text?"
    return UserError(f"{path}: line {line:,} is not UTF-8, and no other encoding is accepted; {remedy}")


def _suspect(path: Path, separator: str, rows: int | None) -> bool:
    """Whether lines differ in their number of fields, quotes taken to come in pairs wherever they are.

    Many times faster than Python's reader, which is asked only if so.
    """
    mark, wanted, inside, fields, lines, any_byte = ord(separator), -1, 0, 0, 0, False
    for block in _blocks(path):
        kinds = block[(block == mark) | (block == _NEWLINE) | (block == _QUOTE)]
        quotes = kinds == _QUOTE
        if inside or quotes.any():
            opened = (np.cumsum(quotes) + inside) & 1
            inside = int(opened[-1]) if len(opened) else inside
            kinds = kinds[(opened == 0) & ~quotes]
        ends = np.flatnonzero(kinds == _NEWLINE)
        any_byte = bool(block[-1] != _NEWLINE)
        if len(ends) == 0:
            fields += len(kinds)
            continue
        counts = np.diff(ends, prepend=-1) - 1
        counts[0] += fields
        fields = len(kinds) - int(ends[-1]) - 1
        wanted = int(counts[0]) if wanted < 0 else wanted
        if (counts != wanted).any():
            return True
        lines += len(ends)
        if rows is not None and lines > rows:
            return False
    return any_byte and wanted >= 0 and fields != wanted  # the last line, if nothing ends it


def _blocks(path: Path) -> Iterator[np.ndarray]:
    """The bytes of a file without the empty lines before the header."""
    started = False
    with opened(path) as file:
        while content := file.read(BYTES):
            content = content if started else content.lstrip(b"\r\n")
            started = started or bool(content)
            if content:
                yield np.frombuffer(content, dtype=np.uint8)


def _tell_ragged(path: Path, separator: str) -> None:
    """Raises UserError for the first line of another number of fields than the header, as Python's reader counts them."""
    wanted, start = 0, 1
    with opened(path) as file:
        # as Latin-1, in which every byte is a character; to Polars a lone carriage return ends no line
        texts = (line.rstrip(b"\r\n").replace(b"\r", b" ").decode("latin-1") + "\n" for line in file)
        reader = csv.reader(texts, delimiter=separator)
        try:
            for found in reader:
                wanted = wanted or len(found)
                if wanted and len(found) != wanted and (found or wanted > 1):
                    refuse_encoding(path)  # of a file that is no text, it says more
                    got = f"has {len(found)} field{'s' * (len(found) > 1)}" if found else "is empty"
                    raise UserError(
                        f"{path}: line {start:,} {got}, and its header has {wanted}; accepted: as many fields in every line. "
                        f"{'Mend' if found else 'Remove'} the line"
                        + ('; a field that holds a separator itself wants "quotes"' if len(found) > wanted else "")
                    )
                start = reader.line_num + 1
        except csv.Error:  # a field beyond its limit: Polars' word must do
            return


def _head(path: Path) -> bytes:
    """The first line."""
    with opened(path) as file:
        return file.readline(BYTES)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file as text in bytes, unpacked if need be. Raises UserError, here or as it is read, for one that is damaged."""
    with path.open("rb") as file:
        begins = file.read(4)
        file.seek(0)
        try:
            if begins.startswith(_GZIP):
                yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
            elif begins.startswith(_ZLIB):
                yield io.BufferedReader(cast(io.RawIOBase, _Parts(_inflated(file))))
            elif begins.startswith(_ZSTD):
                yield io.BufferedReader(cast(io.RawIOBase, _Parts(_lines(path))))
            else:
                yield file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: cannot be unpacked ({error}); is the file whole?") from error


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """What a zlib file holds. Of one that is cut off Polars reads what there is, without a word."""
    unpack = zlib.decompressobj()
    packed = b""
    while not unpack.eof:
        packed = unpack.unconsumed_tail or file.read(_PIECE)
        if not packed:
            raise EOFError("it ends in the middle")
        yield unpack.decompress(packed, BYTES)  # some bytes can stand for many


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that only Polars can unpack: Python does not know zstd before 3.14. Other than UTF-8 is replaced."""
    frame = pl.scan_csv(
        path,
        has_header=False,
        separator="\x1e",
        quote_char=None,
        encoding="utf8-lossy",
        schema={"line": pl.String},
        raise_if_empty=False,
    )
    try:
        for batch in frame.collect_batches(maintain_order=True):
            for part in batch.fill_null("").iter_slices(_PIECE):
                yield f"{part['line'].str.join(chr(_NEWLINE)).item()}\n".encode()
    except pl.exceptions.ComputeError:  # a line with that separator: Polars' word must do
        return


class _Parts(io.RawIOBase):
    """Bytes that come in parts, as a file."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self.parts, self.rest = parts, b""

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """The next bytes; 0 at the end."""
        while not self.rest:
            part = next(self.parts, None)
            if part is None:
                return 0
            self.rest = part
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
