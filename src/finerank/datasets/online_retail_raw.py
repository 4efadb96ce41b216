"""Online Retail from the file as the UCI archive gives it, to the tables of the shipped demonstration.

The package holds the same lines as Parquet (`datasets.online_retail`); this is the way there from a file of one's own: the
archive's spreadsheet, or the CSV that goes round. A spreadsheet is a ZIP file of XML, which the standard library reads.
"""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, register
from finerank.datasets.online_retail import SALE, Task, build, clean
from finerank.datasets.raw import find, raw_lines
from finerank.errors import UserError

SCHEMA: dict[str, pl.DataType] = {
    "InvoiceNo": pl.String(), "StockCode": pl.String(), "Description": pl.String(), "Quantity": pl.Float64(),
    "InvoiceDate": pl.Datetime("us"), "UnitPrice": pl.Float64(), "CustomerID": pl.Float64(), "Country": pl.String(),
}  # fmt: skip
COLUMNS = tuple(SCHEMA)
_EPOCH = datetime(1899, 12, 30)  # day 0 of a spreadsheet
_TIMES = ("%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M")
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The choices of `online_retail`: task, negatives per positive, seed."""

    task: Task = "discover"
    negatives: int = 4
    seed: int = 0


def convert(folder: Path, options: Options) -> Converted:
    """See `Adapter.convert`."""
    path = find(folder, "Online Retail.xlsx", "online_retail.parquet", "*.csv")
    lines, counts = _typed(path) if path.suffix != ".parquet" else _parquet(path)
    purchases = clean(lines)
    if not purchases.height:
        raise UserError(
            f"{path}: none of {counts['read']} lines is a sale to a known customer; is this the right file?"
        )
    made = build(purchases, options.task, options.negatives, options.seed)
    other = lines.height - lines.filter(SALE).height
    counts |= {"no sale of a product to a known customer (cancelled, without customer, postage, ...)": other}
    counts |= {"events (products of one invoice)": purchases.height, "rows": made.samples.height}
    counts["bought"] = int(made.samples["bought"].sum())
    shipped = resources.files("finerank.datasets").joinpath("demo.toml").read_text(encoding="utf-8")
    recipe = re.sub(r"(?m)^dataset = .*$", 'samples = "samples.parquet"\nevents = "events.parquet"', shipped)
    recipe = recipe.replace(
        "[training]\n", '[model]\nname = "din"\n\n[training]\nepochs = 4\nregularise = {kind = "l2", strength = 0.05}\n'
    )
    note = f"task {options.task}: negatives by popularity^0.75 as known by then, {options.negatives} for each product bought"
    return Converted(samples=made.samples, events=made.events, recipe=recipe, counts=counts, notes=(note,))


def _parquet(path: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    try:
        lines = pl.read_parquet(path).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}; accepted: the columns {', '.join(COLUMNS)}") from error
    return lines, {"read": lines.height, "kept": lines.height}


def _typed(path: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """The lines of a spreadsheet or a CSV file; a line that does not parse is counted as malformed."""
    rows = _spreadsheet(path) if path.suffix == ".xlsx" else _csv(path)
    head = [cell.strip().lstrip("\ufeff") for cell in next(rows, [])]
    if tuple(head) != COLUMNS:
        raise UserError(f"{path}: the first line is {head}; accepted: {', '.join(COLUMNS)}")
    kept, read = [], 0
    for row in rows:
        read += 1
        if (line := _line(row)) is not None:
            kept.append(line)
    counts = {"read": read, "kept": len(kept)}
    if read > len(kept):
        counts["malformed"] = read - len(kept)
    return pl.DataFrame(kept, schema=SCHEMA, orient="row"), counts


def _line(row: list[str]) -> tuple[str | float | datetime | None, ...] | None:
    """A line's typed cells; None if it is malformed."""
    if len(row) != len(COLUMNS):
        return None
    invoice, code, description, quantity, when, price, customer, country = row
    try:
        numbers = float(quantity), float(price), float(customer) if customer else None
    except ValueError:
        return None
    time = _time(when)
    if not (invoice and code) or time is None:
        return None
    return invoice, code, description or None, numbers[0], time, numbers[1], numbers[2], country or None


def _time(text: str) -> datetime | None:
    """A stamp in whole minutes: days since 1899-12-30, as spreadsheets count, or one of the usual texts."""
    try:
        return _EPOCH + timedelta(minutes=round(float(text) * 1440))
    except (ValueError, OverflowError):
        pass
    for form in _TIMES:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    return None


def _csv(path: Path) -> Iterator[list[str]]:
    def texts() -> Iterator[str]:
        for line in raw_lines(path):
            try:
                yield line.decode()
            except UnicodeDecodeError:
                yield line.decode("latin-1")

    try:
        yield from csv.reader(texts())
    except csv.Error as error:
        raise UserError(f"{path}: not readable as csv: {error}; is the file whole?") from error


def _spreadsheet(path: Path) -> Iterator[list[str]]:
    """The rows of the first sheet, cells as text; an absent cell is empty."""
    try:
        with zipfile.ZipFile(path) as book:
            shared: list[str] = []
            if "xl/sharedStrings.xml" in book.namelist():
                with book.open("xl/sharedStrings.xml") as file:
                    for _, node in ElementTree.iterparse(file):
                        if node.tag == f"{_MAIN}si":
                            shared.append("".join(t.text or "" for t in node.iter(f"{_MAIN}t")))
                            node.clear()
            with book.open("xl/worksheets/sheet1.xml") as file:
                for _, node in ElementTree.iterparse(file):
                    if node.tag == f"{_MAIN}row":
                        row = [""] * len(COLUMNS)
                        for cell in node:
                            column = ord(cell.get("r", "?")[0]) - ord("A")
                            if column < len(row):
                                row[column] = _cell(cell, shared)
                        yield row
                        node.clear()
    except (zipfile.BadZipFile, zlib.error, ElementTree.ParseError, KeyError, IndexError, EOFError) as error:
        raise UserError(f"{path}: not readable as a spreadsheet: {error}; is the file whole?") from error


def _cell(cell: ElementTree.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return "".join(t.text or "" for t in cell.iter(f"{_MAIN}t"))
    value = cell.findtext(f"{_MAIN}v") or ""
    return shared[int(value)] if cell.get("t") == "s" and value else value


register(
    Adapter(
        name="online_retail",
        options=Options,
        files=("Online Retail.xlsx", "(or online_retail.parquet, or a .csv of the same columns)"),
        convert=convert,
        about="Half a million invoice lines of a gift shop, 2010-2011. UCI (D. Chen, doi 10.24432/C5BW33), CC BY 4.0.",
    )
)
