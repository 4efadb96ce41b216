"""Online Retail: counts, both tasks against a plain twin, and that nothing knows the future."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import finerank.datasets
from finerank.datasets.online_retail import RetailData, Task, build, clean, online_retail, read_lines
from finerank.errors import UserError
from finerank.metrics.ranking import auc

Line = tuple[str, str, float, str, float, int | None]
TASKS: tuple[Task, ...] = ("discover", "basket")


@pytest.fixture(scope="module")
def lines() -> pl.DataFrame:
    return read_lines()


@pytest.fixture(scope="module")
def discover() -> RetailData:
    return online_retail()


def published(*rows: Line) -> pl.DataFrame:
    """Lines as published, from (invoice, product, quantity, time of a day, price, customer)."""
    return pl.DataFrame(
        {
            "InvoiceNo": [r[0] for r in rows],
            "StockCode": [r[1] for r in rows],
            "Description": [f" The  {r[1]} in RED, the T-light of {r[4]}" for r in rows],
            "Quantity": [float(r[2]) for r in rows],
            "InvoiceDate": [datetime.fromisoformat(f"2011-03-01T{r[3]}") for r in rows],
            "UnitPrice": [r[4] for r in rows],
            "CustomerID": [None if r[5] is None else float(r[5]) for r in rows],
            "Country": ["France" if r[5] == 2 else "United Kingdom" for r in rows],
        },
        schema_overrides={"CustomerID": pl.Float64, "InvoiceDate": pl.Datetime("us")},
    )


def made_up(seed: int, invoices: int = 150) -> pl.DataFrame:
    """A random cleaned log of few products and customers, with many invoices of the same minute."""
    rng = np.random.default_rng(seed)
    minutes = np.sort(rng.integers(0, invoices // 2, invoices))
    rows: list[Line] = []
    for i, minute in enumerate(minutes):
        for product in rng.choice(40, size=rng.integers(1, 8), p=np.arange(40, 0, -1) / 820):
            time = f"{8 + minute // 60:02d}:{minute % 60:02d}:00"
            rows.append((f"{500 + i}", f"{10000 + product}", 1, time, round(rng.uniform(1, 9), 2), 1 + i * 7 % 9))
    return clean(published(*rows))


# ------------------------------------------------------------------------------------------------ the file and cleaning


def test_counts_of_the_file(lines: pl.DataFrame) -> None:
    assert lines.height == 541_909
    sales = lines.filter(
        pl.col("CustomerID").is_not_null(),
        pl.col("Quantity") > 0,
        pl.col("UnitPrice") > 0,
        ~pl.col("InvoiceNo").str.starts_with("C"),
    )
    assert (sales.height, sales["CustomerID"].n_unique(), sales["StockCode"].n_unique()) == (397_884, 4_338, 3_665)
    dropped = sales.filter(~pl.col("StockCode").str.contains(r"^\d{5}"))
    assert dropped.height == 1_547
    assert set(dropped["StockCode"]) == {"POST", "M", "C2", "DOT", "BANK CHARGES", "PADS"}


def test_counts_of_the_events(lines: pl.DataFrame, discover: RetailData) -> None:
    events = discover.events
    assert events.columns == ["customer", "time", "product_id", "category", "price", "quantity", "words", "invoice"]
    assert events.height == events.select("invoice", "product_id").n_unique() == 386_326
    uniques = events.select(pl.col("invoice", "customer", "product_id", "category").n_unique()).row(0)
    assert uniques == (18_402, 4_334, 3_659, 111)
    assert events["time"].is_sorted()
    assert events["time"].dtype == pl.Datetime("us")
    assert sum(events.null_count().row(0)) == 0
    sold = lines.filter(pl.col("InvoiceNo").cast(pl.Int64, strict=False).is_in(events["invoice"].implode()))
    products = sold.filter(pl.col("StockCode").is_in(events["product_id"].implode()), pl.col("UnitPrice") > 0)
    assert products.height == 396_337
    assert events["quantity"].sum() == products["Quantity"].sum()


def test_credit_is_shipped() -> None:
    text = Path(finerank.datasets.__file__).with_name("online_retail.md").read_text()
    for word in ("CC BY 4.0", "10.24432/C5BW33", "UCI Machine Learning Repository", "Chen"):
        assert word in text


def test_cleaning_by_hand() -> None:
    events = clean(
        published(
            ("500002", "22222", 1, "09:00:00", 2.0, 2),
            ("500001", "11111A", 3, "09:00:00", 1.0, 1),
            ("500001", "22222", 1, "09:00:00", 2.1, 1),
            ("500001", "11111A", 4, "09:01:00", 1.5, 1),  # the same product again: one event, at its last line's price
            ("500003", "POST", 1, "09:02:00", 18.0, 1),
            ("500003", "M", 1, "09:02:00", 5.0, 1),
            ("C500004", "22222", 1, "09:03:00", 2.0, 2),
            ("500005", "22222", -1, "09:03:00", 2.0, 2),
            ("500006", "22222", 1, "09:03:00", 0.0, 2),
            ("500007", "22222", 1, "09:03:00", 2.0, None),
        )
    )
    nine = datetime(2011, 3, 1, 9)
    assert events.select("invoice", "customer", "time", "product_id", "category", "price", "quantity").rows() == [
        (500002, 2, nine, "22222", "222", 2.0, 1),
        (500001, 1, nine + timedelta(minutes=1), "11111A", "111", 1.5, 7),
        (500001, 1, nine + timedelta(minutes=1), "22222", "222", 2.1, 1),
    ]
    assert events["words"].to_list()[1] == "the 11111a in red t light of 1 5"


# ------------------------------------------------------------------------------------------------ requests


def test_requests_by_hand() -> None:
    log = clean(
        published(
            ("500001", "10001", 1, "09:00:00", 1.0, 1),
            ("500001", "10002", 1, "09:00:00", 2.0, 1),
            ("500002", "10003", 1, "09:00:00", 3.0, 2),  # the same minute: neither sees the other
            ("500003", "10001", 1, "09:05:00", 1.1, 3),  # another customer sets the price that is known next
            ("500004", "10001", 1, "10:00:00", 9.9, 2),
            ("500004", "10004", 1, "10:00:00", 4.0, 2),  # sold for the first time: no candidate
            ("500004", "10003", 1, "10:00:00", 3.5, 2),  # bought before
        )
    )
    what = ("request", "customer", "product_id", "price", "country", "hour", "weekday", "bought")
    discover = build(log, "discover").samples.select(what).sort("request", "product_id").rows()
    assert discover == [
        (3, 2, "10001", 1.1, "France", 10, 2, 1),
        (3, 2, "10002", 2.0, "France", 10, 2, 0),  # all that is left to draw
    ]
    basket = build(log, "basket").samples.select(what).sort("request", "product_id").rows()
    assert basket == [
        (2, 3, "10001", 1.0, "United Kingdom", 9, 2, 1),
        (2, 3, "10002", 2.0, "United Kingdom", 9, 2, 0),
        (2, 3, "10003", 3.0, "United Kingdom", 9, 2, 0),
        (3, 2, "10001", 1.1, "France", 10, 2, 1),
        (3, 2, "10002", 2.0, "France", 10, 2, 0),
        (3, 2, "10003", 3.0, "France", 10, 2, 1),
    ]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("negatives", [1, 4])
def test_equals_a_plain_twin(task: Task, negatives: int) -> None:
    """All but the choice among what may be drawn: sets and dictionaries, invoice after invoice."""
    log = made_up(seed=1)
    samples = build(log, task, negatives).samples
    rows = samples.partition_by("request", as_dict=True, maintain_order=True)
    assert [key[0] for key in rows] == sorted(key[0] for key in rows)  # type: ignore[type-var]
    bought: dict[int, list[tuple[datetime, str]]] = defaultdict(list)
    sold: list[tuple[datetime, str, float, str]] = []
    requests = 0
    for number, invoice in enumerate(log.partition_by("invoice", maintain_order=True)):
        time, customer = invoice["time"][0], invoice["customer"][0]
        before = {p for t, p in bought[customer] if t < time}
        price = {p: (money, words) for t, p, money, words in sold if t < time}  # the last one stands
        inside = set(invoice["product_id"])
        positives = inside & set(price)
        allowed = set(price) - inside
        if task == "discover":
            positives, allowed = (positives - before, allowed - before) if before else (set(), set())
        for product, money, words in invoice.select("product_id", "price", "words").rows():
            bought[customer].append((time, product))
            sold.append((time, product, money, words))
        if not positives:
            assert (number,) not in rows
            continue
        requests += 1
        got = rows[(number,)]
        assert set(got.filter(bought=1)["product_id"]) == positives
        drawn = got.filter(bought=0)["product_id"].to_list()
        assert set(drawn) <= allowed
        assert len(set(drawn)) == len(drawn) == min(negatives * len(positives), len(allowed))
        for product, money, words in got.select("product_id", "price", "words").rows():
            assert (money, words) == price[product]
        assert got.select("customer", "time").unique().rows() == [(customer, time)]
    assert requests == len(rows) > 30


@pytest.mark.parametrize("task", TASKS)
def test_nothing_depends_on_the_future_at_any_moment(task: Task) -> None:
    log = made_up(seed=2, invoices=60)
    whole = build(log, task)
    for moment in log["time"].unique():
        part = build(log.filter(pl.col("time") <= moment), task)
        assert_frame_equal(part.samples, whole.samples.filter(pl.col("time") <= moment), check_exact=True)
        assert_frame_equal(part.events, whole.events.filter(pl.col("time") <= moment), check_exact=True)


def test_nothing_depends_on_the_future_in_the_real_log(lines: pl.DataFrame, discover: RetailData) -> None:
    moment = datetime(2011, 5, 1)  # midnight: no invoice is cut
    part = build(clean(lines.filter(pl.col("InvoiceDate") < moment)))
    assert part.samples.height > 150_000
    assert_frame_equal(part.samples, discover.samples.filter(pl.col("time") < moment), check_exact=True)
    assert_frame_equal(part.events, discover.events.filter(pl.col("time") < moment), check_exact=True)


def test_negatives_follow_popularity_to_the_power_three_quarters() -> None:
    """Two products can be drawn, sold 16 times and once: 16 ** .75 = 8, so the first comes in 8 of 9 draws."""
    sales: list[Line] = [(f"{100_000 + i}", "10001", 1, f"08:{i:02d}:00", 1.0, 1) for i in range(16)]
    sales += [("200100", "10002", 1, "09:00:00", 1.0, 1), ("200101", "10003", 1, "09:00:00", 1.0, 1)]
    for customer in range(2, 502):  # each has a past, and then finds the same product at the same minute
        sales += [(f"{300_000 + customer}", "10004", 1, "09:00:00", 1.0, customer)]
        sales += [(f"{400_000 + customer}", "10003", 1, "10:00:00", 1.0, customer)]
    log = clean(published(*sales))
    drawn: list[str] = []
    for seed in range(4):
        drawn += build(log, "discover", 1, seed).samples.filter(bought=0)["product_id"].to_list()
    assert len(drawn) == 2000
    assert set(drawn) == {"10001", "10002"}
    assert abs(drawn.count("10001") - 2000 * 8 / 9) < 3 * (2000 * 8 / 81) ** 0.5


# ------------------------------------------------------------------------------------------------ the real samples


def test_shape_of_discover(discover: RetailData) -> None:
    samples = discover.samples
    head = ["request", "customer", "time", "product_id", "category", "price", "words", "country", "hour", "weekday"]
    assert samples.columns == [*head, "bought"]
    assert sum(samples.null_count().row(0)) == 0
    assert samples.height == 5 * samples["bought"].sum() == 821_585
    assert samples.select(pl.col("request", "customer").n_unique()).row(0) == (12_040, 2_743)
    assert samples["request"].is_sorted()
    assert samples["time"].is_sorted()
    assert samples.select("request", "product_id").n_unique() == samples.height
    of_request = samples.group_by("request").agg(pl.col("customer", "time", "country", "hour", "weekday").n_unique())
    assert set(of_request.drop("request").max().row(0)) == {1}


def occurs(data: RetailData) -> np.ndarray:
    """For each sample: has the customer bought the product strictly before?"""
    first = data.events.group_by("customer", "product_id").agg(first=pl.col("time").min())
    joined = data.samples.join(first, on=["customer", "product_id"], how="left", maintain_order="left")
    return joined.select((pl.col("first") < pl.col("time")).fill_null(False)).to_series().to_numpy()


def test_occurring_in_history_tells_nothing_in_discover_and_something_in_basket(discover: RetailData) -> None:
    seen = occurs(discover)
    assert not seen.any()
    assert auc(discover.samples["bought"].to_numpy(), seen) == 0.5
    basket = build(discover.events.with_columns(country=pl.lit("x")).head(60_000), "basket")
    assert auc(basket.samples["bought"].to_numpy(), occurs(basket)) > 0.54


def test_order_within_a_request_does_not_show_the_label(discover: RetailData) -> None:
    place = discover.samples.select(
        place=pl.int_range(pl.len()).over("request") / pl.len().over("request"), bought="bought"
    )
    assert abs(auc(place["bought"].to_numpy(), place["place"].to_numpy()) - 0.5) < 0.003  # four sigmas


def test_seed_changes_the_negatives_only() -> None:
    log = made_up(seed=3)
    zero, again, one = build(log, seed=0), build(log, seed=0), build(log, seed=1)
    assert_frame_equal(zero.samples, again.samples)
    key = ["request", "product_id"]
    positives = [d.samples.filter(bought=1).sort(key) for d in (zero, one)]
    assert_frame_equal(*positives)
    assert not zero.samples.filter(bought=0).select(key).equals(one.samples.filter(bought=0).select(key))
    assert_frame_equal(zero.events, one.events)


def test_fewer_negatives_are_among_the_more() -> None:
    log = made_up(seed=4)
    two, four = ({*build(log, negatives=n).samples.select("request", "product_id").rows()} for n in (2, 4))
    assert two < four


def test_an_empty_log() -> None:
    log = made_up(seed=5)
    empty, full = build(log.head(0)), build(log)
    assert empty.samples.is_empty()
    assert empty.samples.schema == full.samples.schema


def test_errors() -> None:
    log = made_up(seed=6, invoices=5)
    with pytest.raises(UserError, match="did you mean 'basket'"):
        build(log, "baskets")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="negatives = 0"):
        build(log, negatives=0)
