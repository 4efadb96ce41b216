"""Work dealt out to threads: in order, with few results alive, and the first error first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from finerank.data.threads import THREADS, ahead, side_by_side


def slowest_first(i: int) -> int:
    time.sleep(0.002 * (5 - i % 5))
    return i * i


@pytest.mark.parametrize("waiting", [0, 1, THREADS])
def test_results_come_in_order_however_long_each_takes(waiting: int) -> None:
    assert list(ahead(slowest_first, range(23), waiting)) == [i * i for i in range(23)]
    assert side_by_side(slowest_first, range(23)) == [i * i for i in range(23)]


def test_nothing_gives_nothing() -> None:
    assert list(ahead(slowest_first, [])) == []
    assert side_by_side(slowest_first, []) == []


@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_few_results_are_alive(waiting: int) -> None:
    """So a ring of `waiting + 1` buffers is enough: none is filled again before its reader has gone on."""
    begun: list[int] = []
    read = 0

    def make(i: int) -> int:
        begun.append(i)
        return i

    def items() -> Iterator[int]:
        for i in range(40):
            assert i - read <= waiting, "begun before an earlier result was read"
            yield i

    for i in ahead(make, items(), waiting):
        assert i == read
        read += 1
    assert read == len(begun) == 40


def test_the_first_error_comes_first_and_nothing_begins_behind_it() -> None:
    seen = []

    def make(i: int) -> int:
        seen.append(i)
        if i >= 3:
            time.sleep(0.01 if i == 3 else 0)
            raise ValueError(i)
        return i

    results = ahead(make, range(1000), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)
    assert max(seen) <= 3 + 2


def test_a_reader_that_stops_ends_the_threads() -> None:
    before = threading.active_count()
    results = ahead(slowest_first, range(1000), 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before
