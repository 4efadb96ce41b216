"""Labels from a log, worked out by hand on toy logs: windows, attribution, horizons, what is not known yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from finerank.data.outcomes import Amount, Conversion, Dwell, Label, Retention, add_labels, only, user_days
from finerank.data.prepare import Keys
from finerank.data.source import scan
from finerank.errors import UserError
from finerank.runtime.values import canonical

KEYS = Keys(user="user", time="time")
HOUR, DAY = 3_600, 86_400


def labelled(
    samples: Sequence[dict[str, Any]] | pl.DataFrame,
    log: Sequence[dict[str, Any]] | pl.DataFrame,
    *labels: Label,
    **more: Any,
) -> pl.DataFrame:
    frames = [f if isinstance(f, pl.DataFrame) else pl.DataFrame(f) for f in (samples, log)]
    return add_labels(frames[0].lazy(), labels, lambda file: frames[1].lazy(), KEYS, **more).collect()


def rows(*times: int, user: object = "a", **more: object) -> list[dict[str, Any]]:
    return [{"user": user, "time": t, **more} for t in times]


# ------------------------------------------------------------------------------------------------ conversions


@pytest.mark.parametrize(("bought", "label"), [(99, 0), (100, 1), (160, 1), (161, 0)])
def test_a_conversion_counts_from_the_click_itself_to_the_end_of_the_window(bought: int, label: int) -> None:
    found = labelled(rows(100), rows(bought), Conversion(name="buy", window=60), snapshot=1_000)
    assert found["buy"].to_list() == [label]


def test_of_several_clicks_the_last_before_the_purchase_is_converted() -> None:
    """Of two clicks at one moment it is the later one in the file; a click after the purchase gets nothing."""
    found = labelled(rows(30, 10, 30, 50), rows(40), Conversion(name="buy", window=60), snapshot=1_000)
    assert found["buy"].to_list() == [0, 0, 1, 0]
    # the last click owns the purchase also when its window is over for it: an earlier click never inherits
    found = labelled(rows(0, 10), rows(100), Conversion(name="buy", window=60), snapshot=1_000)
    assert found["buy"].to_list() == [0, 0]


def test_a_window_that_is_open_leaves_no_label_whether_or_not_the_event_has_come() -> None:
    samples, log = rows(100) + rows(139, 140, 141, user="b"), rows(110) + rows(150, user="b")
    found = labelled(samples, log, Conversion(name="buy", window=60), snapshot=200)
    assert found["buy"].to_list() == [1, 0, 0, None]  # 140 + 60 = 200 is over: the snapshot's own moment is in the log
    assert labelled(samples, log, Conversion(name="buy", window=60), snapshot=159)["buy"].to_list() == [None] * 4


def test_what_comes_after_the_snapshot_is_not_looked_at() -> None:
    click, log = rows(0), rows(50, 100)
    label = Conversion(name="buy", window=60, open_window="so_far")
    found = labelled(click, log, label, snapshot=49)
    assert found.row(0) == ("a", 0, 0, 49.0, None)
    assert labelled(click, log, label, snapshot=50).row(0) == ("a", 0, 1, 50.0, 50.0)
    assert labelled(click, log, label).row(0) == ("a", 0, 1, 100.0, 50.0)  # the last moment of both is the snapshot
    assert labelled(rows(0, 60), log, label, snapshot=55)["buy"].to_list() == [1, None]


def test_row_and_event_share_the_user_and_the_columns_named() -> None:
    samples = [*rows(0, item=1), *rows(0, item=2), *rows(0, user="b", item=1), *rows(0, user=None, item=1)]
    log = [*rows(5, item="1", kind="buy"), *rows(5, user=None, item=1, kind="buy"), *rows(6, item=2, kind="look")]
    found = labelled(
        samples, pl.DataFrame(log, strict=False).cast({"item": pl.String}),
        Conversion(name="buy", window=60, on=("item",), where={"kind": "buy"}),
        snapshot=100,
    )  # fmt: skip
    assert found["buy"].to_list() == [1, 0, 0, None]  # 1 and "1" are one item; of nobody nothing is known


def test_a_push_is_opened_once() -> None:
    pushes = rows(9 * HOUR, 12 * HOUR, 18 * HOUR)
    opened = Conversion(name="opened", window=2 * HOUR, where={"what": "open"})
    log = rows(11 * HOUR, 15 * HOUR, 18 * HOUR + 1, 18 * HOUR + 2, what="open") + rows(12 * HOUR, what="view")
    assert labelled(pushes, log, opened, snapshot=DAY)["opened"].to_list() == [1, 0, 1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(0, 14),
)
def test_conversions_against_a_loop(
    clicks: list[tuple[int, int]], buys: list[tuple[int, int]], window: int, snapshot: int
) -> None:
    expected: list[float | None] = [0.0 if t + window <= snapshot else None for _, t in clicks]
    for user, time in buys:
        before = [(t, i) for i, (u, t) in enumerate(clicks) if u == user and t <= time]
        if before and time <= snapshot:
            asked, i = max(before)
            if time - asked <= window and expected[i] is not None:
                expected[i] = (expected[i] or 0.0) + 2.0
    frames = [pl.DataFrame(f, schema=["user", "time"], orient="row").with_columns(paid=2.0) for f in (clicks, buys)]
    found = labelled(
        frames[0], frames[1], Amount(name="paid now", column="paid", window=window), Conversion(name="buy", window=window),
        snapshot=snapshot,
    )  # fmt: skip
    assert found["paid now"].to_list() == expected
    assert found["buy"].to_list() == [None if e is None else int(e > 0) for e in expected]
    assert found["paid now_bought"].to_list() == found["buy"].to_list()


def test_amounts_add_up_and_are_capped() -> None:
    log = [{"user": "a", "time": t, "paid": p} for t, p in ((11, 5.0), (12, 7.5), (13, None), (90, 100.0))]
    label = Amount(name="gmv", column="paid", window=20)
    found = labelled(rows(0, 10, 95), log, label, snapshot=112)
    assert found["gmv"].to_list() == [0.0, 12.5, None]
    assert found["gmv_bought"].to_list() == [0, 1, None]
    capped = labelled(rows(10), log, Amount(name="gmv", column="paid", window=20, cap=10), snapshot=112)
    assert capped["gmv"].to_list() == [10.0]
    gift = labelled(rows(13), log, label, snapshot=112)  # bought, for nothing
    assert gift.row(0)[2:] == (0.0, 1)


# ------------------------------------------------------------------------------------------------ dwell


def test_seconds_are_capped_weigh_and_have_logarithms() -> None:
    samples = pl.DataFrame({"watched": [0.0, 9.0, 5_000.0, None], "whole": [0.0, 10.0, 6_000.0, 10.0]})

    def shaped(**more: Any) -> pl.DataFrame:
        return labelled(samples, rows(0), Dwell(name="w", column="watched", cap=100, **more))

    assert shaped()["w"].to_list() == [0.0, 9.0, 100.0, None]
    assert shaped()["w_weight"].to_list() == [1.0, 9.0, 100.0, 1.0]  # what was not watched is what odds are against
    assert shaped(measure="log1p")["w"].round(6).to_list() == [0.0, 2.302585, 4.615121, None]
    done = shaped(measure="completed", length="whole", threshold=0.9)["w"]
    assert done.to_list() == [None, 1, 0, None]  # exactly the threshold is complete; 5,000 of 6,000 is not


def test_without_a_column_the_dwell_ends_with_the_next_event() -> None:
    found = labelled(rows(0, 10, 10, 500), rows(0, 10, 40, 500), Dwell(name="w", cap=200))
    assert found["w"].to_list() == [10.0, 30.0, 30.0, None]
    assert labelled(rows(40), rows(0, 10, 40, 500), Dwell(name="w", cap=200))["w"].to_list() == [200.0]


# ------------------------------------------------------------------------------------------------ retention


def test_retention_by_days_with_horizons_that_are_not_over() -> None:
    """Active on days 0, 1, 3 and 33; the log is cut at noon of day 34."""
    active = [0, 1, 3, 33]
    log = rows(*(d * DAY + HOUR for d in active))
    labels = [Retention(name=f"d{n}", first=1, last=n) for n in (1, 3, 30)]
    found = labelled(log, log, *labels, snapshot=34 * DAY + DAY // 2)
    assert found["d1"].to_list() == [1, 0, 0, None]
    assert found["d3"].to_list() == [1, 1, 0, None]
    assert found["d30"].to_list() == [1, 1, 1, None]
    # day 34 is over at its last microsecond, which is the snapshot's if times are counted so
    micro = Keys(user="user", time="time", time_unit="us")
    log_us = pl.DataFrame(log).with_columns(pl.col("time") * 1_000_000).lazy()
    for snapshot, known in ((35 * DAY * 1_000_000 - 2, None), (35 * DAY * 1_000_000 - 1, 0)):
        cut = add_labels(log_us, labels[:1], lambda file: log_us, micro, snapshot).collect()
        assert cut["d1"].to_list() == [1, 0, 0, known]


def test_days_begin_where_the_offset_says() -> None:
    """23:00 and 01:00 are two days in UTC and one day at +8 hours."""
    log, label = rows(23 * HOUR, 25 * HOUR), Retention(name="back")
    assert labelled(log, log, label, snapshot=5 * DAY)["back"].to_list() == [1, 0]
    assert labelled(log, log, label, snapshot=5 * DAY, utc_offset=8.0)["back"].to_list() == [0, 0]
    assert user_days(pl.DataFrame(log).lazy(), KEYS).collect()["time"].to_list() == [23 * HOUR, 25 * HOUR]
    assert user_days(pl.DataFrame(log).lazy(), KEYS, 8.0).collect()["time"].to_list() == [25 * HOUR]
    assert user_days(pl.DataFrame(log).lazy(), KEYS, -3.5).collect()["time"].to_list() == [25 * HOUR]


def test_the_last_row_stands_for_a_users_day() -> None:
    frame = pl.DataFrame({"user": ["a", "b", "a", None, "a"], "time": [5, 5, 3, 5, 5 + DAY], "x": [1, 2, 3, 4, 5]})
    assert user_days(frame.lazy(), KEYS).collect()["x"].to_list() == [1, 2, 5]


def test_retention_needs_the_kind_of_event_that_counts() -> None:
    log = rows(0, DAY, kind="push") + rows(2 * DAY, kind="open")
    label = Retention(name="back", first=1, last=2, where={"kind": "open"})
    assert labelled(rows(0), log, label, snapshot=9 * DAY)["back"].to_list() == [1]
    assert labelled(rows(0), log, Retention(name="back", where={"kind": "open"}), snapshot=9 * DAY)[
        "back"
    ].to_list() == [0]


def test_of_no_rows_and_no_events_there_are_no_labels() -> None:
    """That a file is empty is for `prepare` to say."""
    none = pl.DataFrame(schema={"user": pl.String, "time": pl.Int64})
    found = labelled(none, none, Conversion(name="buy", window=60), Retention(name="back"))
    assert found.shape == (0, 4)


# ------------------------------------------------------------------------------------------------ errors and recipes


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Conversion(name="buy", window=0), "window = 0"),
        (lambda: Amount(name="gmv", column="paid", window=5, cap=-1), "cap = -1"),
        (lambda: Dwell(name="w", measure="completed"), "needs the column of the whole"),
        (lambda: Dwell(name="w", measure="completed", length="l", threshold=1.5), "threshold = 1.5"),
        (lambda: Retention(name="back", first=0), "first = 0"),
        (lambda: Retention(name="back", first=3, last=2), "first = 3, last = 2"),
        (lambda: labelled(rows(0, buy=1), rows(0), Conversion(name="buy", window=5)), "'buy' is in the samples"),
        (lambda: labelled(rows(0), rows(0), Conversion(name="buy", window=5, where={"kynd": 1})), "'kynd'"),
        (lambda: labelled(rows(0), rows(0), Conversion(name="buy", window=5, on=("item",))), "no column 'item'"),
        (lambda: labelled(rows(0), rows(0), Amount(name="gmv", column="paid", window=5)), "no column 'paid'"),
        (lambda: labelled(rows(0, w=-1), rows(0), Dwell(name="x", column="w")), "seconds below 0"),
        (lambda: labelled(rows(0, w="long"), rows(0), Dwell(name="x", column="w")), "accepted: numbers"),
        (lambda: labelled(rows(0), rows(0), Retention(name="back"), utc_offset=99.0), "utc_offset = 99"),
        (lambda: labelled(rows(0), rows(0), Retention(name="back"), snapshot="soon"), "'soon'"),
    ],
)  # fmt: skip
def test_each_mistake_has_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("[", "\\[")):
        make()


def test_rows_are_chosen_by_canonical_text() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, None], "kind": ["a", "b", "a"]}).lazy()
    assert only(frame, {"x": 1}, "samples").collect().height == 1
    assert only(frame, {"kind": "a", "x": "2"}, "samples").collect().height == 0


COLUMNS = {
    "text": pl.Series(["a", "1", "1.0", "", None, "true"]),
    "whole": pl.Series([1, 0, None, -3, 2**40, 1]),
    "small": pl.Series([1, 0, None, 3, 200, 1], dtype=pl.UInt8),
    "float": pl.Series([1.0, 0.1, None, math.nan, 1e300, -0.0]),
    "single": pl.Series([1.0, 0.1, None, math.inf, 2.5, -0.0], dtype=pl.Float32),
    "bool": pl.Series([True, False, None, True, False, True]),
    "category": pl.Series(["a", "1", None, "b", "a", "1"], dtype=pl.Categorical),
    "nothing": pl.Series([None] * 6),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_are_chosen_as_one_by_one(name: str) -> None:
    column = COLUMNS[name].alias("x")
    values = (
        "a",
        "1",
        "1.0",
        "0",
        "-0.0",
        "true",
        "nan",
        "inf",
        "",
        "1_000",
        1,
        0,
        1.0,
        0.1,
        2.5,
        -3,
        1e300,
        2**40,
        True,
    )
    frame = pl.DataFrame({"x": column, "row": range(6)}).lazy()
    for value in (*values, math.nan, math.inf, float(np.float32(0.1))):
        text = canonical(value)
        want = [i for i, x in enumerate(column.to_list()) if text is not None and canonical(x) == text]
        assert only(frame, {"x": value}, "samples").collect()["row"].to_list() == want, value


def test_where_reads_plain_csv_as_any_other_file(tmp_path: Path) -> None:
    """The compiled reader is a source that Polars hands the condition to."""
    log = pl.DataFrame({"u": [1, 1, 2, 2], "t": [0, 5, 0, 5], "kind": ["a", "b", "a", "a"], "row": range(4)})
    log.write_csv(tmp_path / "log.csv")
    read = scan(tmp_path / "log.csv", ["kind"])
    assert only(read, {"kind": "a", "u": 2}, "samples").collect()["row"].to_list() == [2, 3]
    keys = Keys(user="u", time="t")
    for label in (Conversion(name="b", window=9, where={"kind": "b"}), Retention(name="back", where={"kind": "b"})):
        found, same = (add_labels(f, [label], lambda _, f=f: f, keys).collect() for f in (read, log.lazy()))
        assert_frame_equal(found, same)
