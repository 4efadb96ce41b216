"""Nothing that happens at or after a row's moment reaches the row: neither its history nor its sampled negatives.

Property tests at the level of events; that no test row is in training is tested with the data sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finerank.data.events import EventLog, EventTable
from finerank.runtime.blocks import Block
from finerank.runtime.history import ProfileStore

USERS, MOST = 3, 4
quick = settings(derandomize=True, max_examples=150, deadline=None)

Table = NDArray[np.int64]
# an event: user, time, delay, sequence; a row: user, time, sequence. Small ranges, so that nearly everything ties
events_of = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, 6), st.integers(0, 3), st.integers(0, 6)), max_size=25
).map(lambda e: np.array(e, dtype=np.int64).reshape(-1, 4))
row_of = st.tuples(st.integers(-1, USERS), st.integers(-1, 11), st.integers(-1, 7))
both_ties = st.sampled_from(["strict", "file_order"])


def table_of(events: Table, numbers: Table) -> EventTable:
    """A table whose block holds nothing but the number of each event."""
    block: Block[Any] = Block(numbers[:, None], np.zeros((len(numbers), 0), dtype=np.float32))
    user, time, delay, sequence = events.T
    return EventTable.build(None, user, time, time + delay, sequence, block, users=USERS)


def log_of(events: Table, numbers: Table, cut: int) -> EventLog:
    """The same events as a base and a segment."""
    return EventLog(table_of(events[:cut], numbers[:cut]), [table_of(events[cut:], numbers[cut:])])


def known_to(row: tuple[int, int, int], events: Table, ties: str) -> NDArray[np.bool_]:
    """Plainly: which events a row may know."""
    _, time, sequence = row
    known_at = events[:, 1] + events[:, 2]
    if ties == "strict":
        return known_at < time
    return (known_at < time) | ((known_at == time) & (events[:, 3] < sequence))


def seen_by(source: EventTable | EventLog, row: tuple[int, int, int], ties: Any) -> list[int]:
    user, time, sequence = (np.array([v]) for v in row)
    index, _, _ = source.histories(user, time, sequence, ties, MOST)
    return source.gather(index)[0].ids[:, 0].tolist()


def drawn_by(source: EventTable | EventLog, row: tuple[int, int, int], ties: Any, u: float) -> list[int]:
    """The event that a uniform number in [0, 1) draws as a negative; none where the row knows no event."""
    known = source.known_before(np.array([row[1]]), np.array([row[2]]), ties)
    if known[0] == 0:
        return []
    return source.gather(source.at_rank((u * known).astype(np.int64)))[0].ids[:, 0].tolist()


uniform = st.floats(0, 1, exclude_max=True)


@quick
@given(events_of, row_of, both_ties, uniform, st.integers(0, 25))
def test_what_a_row_gets_was_known_before_it(
    events: Table, row: tuple[int, int, int], ties: Any, u: float, cut: int
) -> None:
    numbers = np.arange(len(events))
    allowed = set(np.flatnonzero(known_to(row, events, ties)).tolist())
    for source in (table_of(events, numbers), log_of(events, numbers, cut)):
        seen = seen_by(source, row, ties)
        assert set(seen) <= allowed
        assert len(seen) == min(
            MOST, sum(int(events[n, 0]) == row[0] for n in allowed)
        )  # and nothing known is held back
        assert set(drawn_by(source, row, ties, u)) <= allowed
        assert len(drawn_by(source, row, ties, u)) == min(1, len(allowed))


@quick
@given(events_of, row_of, both_ties, uniform, st.integers(0, 25), st.randoms(use_true_random=False))
def test_deleting_all_later_events_changes_nothing(
    events: Table, row: tuple[int, int, int], ties: Any, u: float, cut: int, random: Any
) -> None:
    numbers = np.arange(len(events))
    known = known_to(row, events, ties)
    full, past = table_of(events, numbers), table_of(events[known], numbers[known])
    log, past_log = log_of(events, numbers, cut), log_of(events[known], numbers[known], int(known[:cut].sum()))
    seen, drawn = seen_by(full, row, ties), drawn_by(full, row, ties, u)
    for source in (past, log, past_log):
        assert seen_by(source, row, ties) == seen
        assert drawn_by(source, row, ties, u) == drawn
    # nor does anything that happens later still: half the future is deleted, the rest moves on and changes hands
    later = np.flatnonzero(~known)
    kept = np.sort(np.array(random.sample(later.tolist(), len(later) // 2), dtype=np.int64))
    other = events.copy()
    other[kept, 1] += 3
    other[kept, 0] = (other[kept, 0] + 1) % USERS
    chosen = np.sort(np.concatenate([np.flatnonzero(known), kept]))
    changed = table_of(other[chosen], numbers[chosen])
    assert seen_by(changed, row, ties) == seen
    assert drawn_by(changed, row, ties, u) == drawn


@quick
@given(events_of, row_of, both_ties)
def test_a_profile_that_already_holds_the_future_does_not_show_it(
    events: Table, row: tuple[int, int, int], ties: Any
) -> None:
    """As when logged requests are replayed through a server whose profiles are of today."""
    known = known_to(row, events, ties)
    nothing: Block[Any] = Block(np.zeros((0, 1), dtype=np.int64), np.zeros((0, 0), dtype=np.float32))
    answers = []
    for chosen in (np.arange(len(events)), np.flatnonzero(known)):
        store = ProfileStore(nothing, max_length=MOST, ties=ties)
        for number in chosen:
            user, time, delay, sequence = (int(v) for v in events[number])
            block: Block[Any] = Block(np.array([[number]]), np.zeros((1, 0), dtype=np.float32))
            store.append(str(user), np.array([time + delay]), np.array([time]), np.array([sequence]), block)
        seen, times, known_at = store.history(str(row[0]), row[1], row[2])
        assert (times <= known_at).all()
        assert (known_at < row[1]).all() if ties == "strict" else (known_at <= row[1]).all()
        answers.append(seen.ids[:, 0].tolist())
    assert answers[0] == answers[1] == seen_by(table_of(events, np.arange(len(events))), row, ties)
