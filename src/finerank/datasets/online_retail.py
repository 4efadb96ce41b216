"""Online Retail: a year of invoices of a gift shop, shipped with the package. Source and credit: online_retail.md.

D. Chen, Online Retail, UCI Machine Learning Repository, doi 10.24432/C5BW33, CC BY 4.0.

The log knows purchases only. One invoice becomes one request, its products become positives, and negatives are drawn by
popularity as known by then (`data.negatives`). Nothing in a sample depends on later invoices. Every candidate, positive
or negative, was sold before in an invoice strictly earlier: a product never sold yet cannot be drawn as a negative, so
as a positive it would give itself away by its missing price. An invoice stands at the time of its last line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from finerank.data.negatives import PopularitySampler
from finerank.errors import UserError, nearest
from finerank.runtime.hashing import mix, uniform

Task = Literal["discover", "basket"]
POWER = 0.75
"""Negatives are drawn in proportion to this power of popularity."""
CATEGORY_DIGITS = 3
"""A stock code's leading digits that serve as category: neighbours in the catalogue, listed at the same time."""
DRAW, ORDER = 0, 1  # what a request's random numbers are for: an order by the numbers that drew would show the labels

SALE = (
    pl.col("CustomerID").is_finite()
    & (pl.col("Quantity").is_finite() & (pl.col("Quantity") > 0))
    & (pl.col("UnitPrice").is_finite() & (pl.col("UnitPrice") > 0))
    & pl.col("InvoiceNo").str.contains(r"^\d+$")  # a cancellation's begins with C, a corrected debt's with A
    & pl.col("StockCode").str.contains(r"^\d{5}")
)
"""The lines that count: a product, sold to a known customer."""


@dataclass(frozen=True)
class RetailData:
    """Requests with candidates, and the purchases they may look back on.

    samples  one row per candidate, rows of a request adjacent, requests in time order:
             request (number of the invoice in order of time; without rows it leaves a gap), customer, time,
             product_id, category, price (GBP, at its last earlier sale), words (of its description there, joined by
             spaces), country, hour, weekday (1 Monday ... 7 Sunday), bought (0 or 1)
    events   one row per (invoice, product) in time order: customer, time, product_id, category, price (paid per piece),
             quantity, words, invoice
    """

    samples: pl.DataFrame
    events: pl.DataFrame


def online_retail(task: Task = "discover", negatives: int = 4, seed: int = 0) -> RetailData:
    """The shipped log as samples and events.

    task       discover (default): which products that the customer never bought before are in this invoice? Customers
               without any earlier invoice make no request. "Bought before" is false for every row, so it cannot help
               basket: which products are in this invoice? Products bought before are among positives and negatives
    negatives  per positive, all different within a request, never in the invoice (discover: nor bought before); fewer
               where the catalogue known by then holds no more
    seed       of the draws and of the order of the candidates within a request
    """
    return build(clean(read_lines()), task, negatives, seed)


def read_lines() -> pl.DataFrame:
    """The 541,909 lines as published, cancellations and postage included; online_retail.md tells the columns."""
    return pl.read_parquet(Path(__file__).with_name("online_retail.parquet"))


def clean(lines: pl.DataFrame) -> pl.DataFrame:
    """The events of the published lines, with `country` besides: sales of products to a known customer.

    Kept are lines with a customer, a quantity and a price above 0, that are no cancellation, and whose code begins with
    five digits (the others are postage, carriage, charges and manual entries). Lines of one product in one invoice are
    one event: their quantities add up, the last line's price and description stand.
    """
    sales = lines.filter(SALE)
    words = sales.select(pl.col("Description").unique()).with_columns(
        words=pl.col("Description")
        .str.to_lowercase()
        .str.extract_all(r"[a-z0-9]+")
        .list.unique(maintain_order=True)
        .list.join(" ")
    )
    return (
        sales.join(words, on="Description", how="left", nulls_equal=True, maintain_order="left")
        .with_columns(time=pl.col("InvoiceDate").max().over("InvoiceNo"))
        .group_by("InvoiceNo", "StockCode", maintain_order=True)
        .agg(
            customer=pl.col("CustomerID").first().cast(pl.Int64),
            time=pl.col("time").first().cast(pl.Datetime("us")),
            price=pl.col("UnitPrice").last(),
            quantity=pl.col("Quantity").sum().cast(pl.Int64),
            words=pl.col("words").last(),
            country=pl.col("Country").first(),
        )
        .select(
            "customer",
            "time",
            product_id="StockCode",
            category=pl.col("StockCode").str.slice(0, CATEGORY_DIGITS),
            price="price",
            quantity="quantity",
            words="words",
            country="country",
            invoice=pl.col("InvoiceNo").cast(pl.Int64),
        )
        .sort("time", "invoice", maintain_order=True)
    )


def build(purchases: pl.DataFrame, task: Task = "discover", negatives: int = 4, seed: int = 0) -> RetailData:
    """Samples and events of cleaned purchases (`clean`, or a part of them that is complete up to some time)."""
    if task not in get_args(Task):
        raise UserError(f"online_retail: task = {task!r}; {nearest(str(task), get_args(Task))}")
    if negatives < 1:
        raise UserError(f"online_retail: negatives = {negatives} per positive; accepted: 1 and up, usually 4")
    requests = list(_requests(purchases, task, negatives, seed))
    sizes = [len(r.items) for r in requests]

    def column(name: str) -> np.ndarray:
        parts = [getattr(r, name) for r in requests]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def repeated(name: str) -> np.ndarray:
        return np.repeat(np.array([getattr(r, name) for r in requests], dtype=np.int64), sizes)

    asked = purchases[repeated("line")].select("customer", "time", "country")
    known = purchases[column("last_sale")].select("product_id", "category", "price", "words")
    samples = pl.DataFrame({"request": repeated("number"), "bought": column("bought")}).hstack(asked).hstack(known)
    return RetailData(
        samples=samples.select(
            "request", "customer", "time", "product_id", "category", "price", "words", "country",
            hour=pl.col("time").dt.hour().cast(pl.Int64),
            weekday=pl.col("time").dt.weekday().cast(pl.Int64),
            bought="bought",
        ),
        events=purchases.drop("country"),
    )  # fmt: skip


@dataclass(frozen=True)
class _Request:
    """A request: its number, a line of its invoice, and N candidates: item, line of its last earlier sale, label."""

    number: int
    line: int
    items: np.ndarray
    last_sale: np.ndarray
    bought: np.ndarray


def _requests(purchases: pl.DataFrame, task: Task, negatives: int, seed: int) -> Iterator[_Request]:
    """Walk through the invoices in order of time; those of one moment do not see each other."""
    products = purchases["product_id"]
    # Numbered by first sale, so that an item's number, and with it its random numbers, never depends on later invoices.
    item = products.cast(pl.Enum(products.unique(maintain_order=True))).to_physical().to_numpy().astype(np.int64)
    invoices = (
        purchases.with_row_index("line")
        .group_by("invoice", maintain_order=True)
        .agg(pl.col("time", "customer").first(), start=pl.col("line").first(), stop=pl.col("line").last() + 1)
        .select("time", "customer", "start", "stop")
    )
    last_sale = np.full(products.n_unique(), -1)  # [I] the line of each item's last sale so far
    owned: dict[int, np.ndarray] = {}  # customer -> bool [I]: bought before
    sampler = PopularitySampler(POWER)
    for _, same_time in groupby(enumerate(invoices.iter_rows()), key=lambda numbered: numbered[1][0]):
        moment = list(same_time)
        for number, (_, customer, start, stop) in moment:
            inside = item[start:stop]
            positives = exclude = inside
            if task == "discover":
                if customer not in owned:
                    continue
                before = owned[customer]
                positives = inside[~before[inside]]
                exclude = np.concatenate([inside, np.flatnonzero(before)])
            positives = positives[last_sale[positives] >= 0]
            if not len(positives):
                continue
            drawn = sampler.draw(negatives * len(positives), exclude, mix(seed, number, DRAW))
            items = np.concatenate([positives, drawn])
            order = np.argsort(uniform(mix(seed, number, ORDER), items), kind="stable")
            items, bought = items[order], (order < len(positives)).astype(np.int64)
            yield _Request(number, start, items, last_sale[items], bought)
        for _, (_, customer, start, stop) in moment:
            inside = item[start:stop]
            sampler.add(inside)
            last_sale[inside] = np.arange(start, stop)
            owned.setdefault(customer, np.zeros(len(last_sale), dtype=bool))[inside] = True
