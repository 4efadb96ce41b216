"""The whole proposal: guesses column by column, and the recipe with the reasons beside its lines.

Nothing is guessed silently: a column that is left out says why, and one that gives the label away is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finerank.data.overlap import row_hashes
from finerank.data.source import collect, scan, write_times
from finerank.errors import UserError, nearest
from finerank.propose.features import guess_feature, name_keys
from finerank.propose.guess import (
    NAMES,
    Guess,
    Role,
    calendar,
    check_time,
    find_moments,
    find_role,
    find_split,
    mean,
    plainly,
    task_kind,
    time_unit,
    zeros_and_ones,
)
from finerank.propose.history import event_history, joined_history, known_at
from finerank.propose.weights import with_weights
from finerank.propose.words import read_nan, told
from finerank.runtime.values import shown
from finerank.typed import to_toml

ROLES: tuple[Role, ...] = ("label", "request", "user", "time")
"""What a column may be besides an input."""

LOOKED_AT = 200_000
"""Rows that are looked at; a recipe is a proposal, the fit sees all of them."""

COPIES = 0.01
"""The share of exact copies from which on they are told; a user may be shown the same twice in a second."""

YES_AND_NO = {("no", "yes"), ("n", "y"), ("false", "true"), ("f", "t"), ("否", "是")}
"""Pairs of words, in order, that a column of texts holds instead of 0 and 1."""


@dataclass(frozen=True)
class Proposal:
    """Guesses by column in the file's order, the recipe as TOML text with the reasons beside, and warnings."""

    guesses: tuple[Guess, ...]
    recipe: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user knows already: names of columns; None: to be guessed."""

    label: str | None = None
    user: str | None = None
    request: str | None = None
    time: str | None = None


def propose(
    samples: str, events: str | None = None, given: Given = Given(), names: tuple[str, str | None] | None = None
) -> Proposal:
    """A recipe for a file of candidates, and an optional file of past events.

    names  how the two files are written in the recipe; default as given
    Raises UserError for a file that cannot be read, a named column that is not there, or no column that could be a label.
    """
    frame = read_nan(_head(samples))
    for role, column in vars(given).items():
        if column is not None and column not in frame.columns:
            raise UserError(f"--{role} {column}: no such column; {nearest(column, frame.columns)}")
    if given.time is not None:
        check_time(frame[given.time])
    roles = {role: find_role(frame, role, getattr(given, role)) for role in ROLES}
    if roles["label"] is None:
        if several := zeros_and_ones(frame):
            raise UserError(
                f"{samples}: {' and '.join(map(repr, several))} hold zeros and ones, and no name says which is the label; "
                "name it with --label"
            )
        texts = _labels_of_text(frame) or _of_yes_and_no(frame)  # which --label would refuse
        raise UserError(
            f"{samples}: no column looks like a label (two values, 0 and 1); {'; '.join(texts) or 'name it with --label'}. "
            f"Columns: {', '.join(frame.columns)}"
        )
    named = [found[0] for found in roles.values() if found is not None]
    roles["request"] = roles["request"] or find_moments(frame, roles["user"], roles["time"], named)
    label, kind = frame[roles["label"][0]], "binary"
    if given.label is not None:
        kind, why = task_kind(label)
        roles["label"] = (given.label, why)
    keys: dict[str, str] = {role: found[0] for role, found in roles.items() if found is not None and role != "label"}
    taken = {found[0]: (role, found[1]) for role, found in roles.items() if found is not None}
    split = find_split(frame.drop(taken))
    if split is not None:
        taken[split] = ("split", "it says train, validation or test of each row")
    guesses = []
    for column in frame.get_columns():
        if column.name in taken:
            role, why = taken[column.name]
            guesses.append(Guess(column.name, role, why))
        else:
            guesses.append(guess_feature(frame, column, label, keys))
    user = keys.get("user")
    if user is not None:
        why = "the user is an input as well: taste that the history does not tell"
        guesses.append(Guess(user, "feature", why, {"kind": "categorical", **name_keys(user), "level": "request"}))
    history, guesses = joined_history(frame, guesses)
    guesses = with_weights(frame, guesses)
    warnings = _warnings(frame, label, kind, keys, guesses) + told(frame)
    if given.label is None:
        warnings += _labels_of_text(frame)
    if events is not None:
        log = _head(events)
        found, more = event_history(log, guesses, keys, events)
        if found is not None:
            guesses = [_told_by_events(g, events) for g in guesses]
            if known := known_at(log, keys["time"]):
                keys["known_at"] = known
                more = [*more, f"{events}: {known!r} says by its name when an event was known: no row sees it before"]
        history = found or history
        warnings += more
    task = [
        f"# {label.name}: {taken[label.name][1]}",
        _toml({"task": [name_keys(label.name) | ({} if kind == "binary" else {"kind": kind})]}),
    ]
    unit = {"time_unit": time_unit(frame[keys["time"]])} if "time" in keys else {}
    named_keys = keys | {key: value for key, value in unit.items() if value != "s"}
    parts = {"by": "time", "validation": 0.1, "test": 0.1} if split is None else {"by": "column", "column": split}
    text = _recipe(names or (samples, events), {"keys": named_keys, "split": parts}, task, guesses, history, warnings)
    return Proposal(tuple(guesses), text, tuple(warnings))


def _told_by_events(guess: Guess, events: str) -> Guess:
    """A list that would be the past, where a file of events is: one past is enough, and that of the events has times."""
    if guess.role != "history":
        return guess
    return Guess(guess.column, "left out", f"the past is that of {events}; these look like the same, joined already")


def _head(path: str) -> pl.DataFrame:
    found = scan(path).head(LOOKED_AT)
    frame = collect(found, found.collect_schema().names(), str(path))
    if not frame.height:
        raise UserError(f"{path}: no rows; is this the right file?")
    return frame


def _warnings(
    frame: pl.DataFrame, label: pl.Series, kind: str, keys: Mapping[str, str], guesses: Sequence[Guess]
) -> list[str]:
    out = []
    if "time" not in keys:
        by = "" if any(g.role == "split" for g in guesses) else ", and the split is by position in the file"
        out.append(f"no column of times: rows count as in order of time{by}")
        out += _times_of_text(frame)
    elif calendar(frame[keys["time"]]):
        first = frame[keys["time"]].drop_nulls()[0]
        out.append(
            f"{keys['time']!r} holds whole numbers such as {first}, which look like a date but count as seconds since 1970: "
            f"ages, delays and windows would be wrong; {write_times(first)}"
        )
    if "user" not in keys:
        out.append("no column of users: no history can be joined, and GAUC is by request")
    if "request" not in keys and {"user", "time"} <= set(keys):
        together = frame.select(pl.struct(keys["user"], keys["time"]).n_unique()).item()
        if together < frame.height:
            out.append(
                "rows of one user at one moment look like one request but have no number: give them one, so that the user's "
                "side is computed once"
            )
    out += _two_moments(frame, keys)
    for guess in guesses:
        if guess.feature is not None and frame[guess.column].dtype.is_float():
            infinite = int(frame[guess.column].is_infinite().sum())
            if infinite:
                out.append(
                    f"{guess.column!r} holds {infinite:,} infinite numbers, which training refuses: make them null"
                )
    if {"user", "time"} <= set(keys):  # else equal rows may be different ones
        copies = frame.height - len(np.unique(row_hashes(frame.get_columns())))
        if copies > COPIES * frame.height:
            out.append(
                f"{copies:,} of {frame.height:,} rows are exact copies of others: they count in training and in metrics "
                "as often as they are there; if the log was written twice, drop them"
            )
    rate = mean(label)
    if kind == "binary" and rate < 0.001:
        out.append(f"only {100 * rate:.3f} % of the labels are 1: give more rows before trusting a difference")
    if not any(g.feature is not None and g.feature["level"] == "candidate" for g in guesses):
        out.append("no feature varies between the candidates of a request: nothing could rank them")
    return out


def _two_moments(frame: pl.DataFrame, keys: Mapping[str, str]) -> list[str]:
    """Of requests that are not one user at one moment, which training refuses."""
    whose = [keys[role] for role in ("user", "time") if role in keys]
    if "request" not in keys or not whose:
        return []
    each = frame.group_by(keys["request"]).agg(pl.col(column).n_unique() for column in whose)
    return [
        f"{int((each[column] > 1).sum()):,} of {each.height:,} values of {keys['request']!r} have rows of several "
        f"{column!r}, and a request is one user at one moment, or training refuses it: give the rows of a request one, or "
        "leave keys.request out"
        for column in whose
        if (each[column] > 1).any()
    ]


def _times_of_text(frame: pl.DataFrame) -> list[str]:
    """Of columns that would be the time by their names, were they read as times."""
    texts = [c for c in frame.get_columns() if c.dtype == pl.String and plainly(c.name) in NAMES["time"]]
    return [
        f"{c.name!r} looks like the time by its name but holds texts such as {shown(first)}: {write_times(first)}"
        for c in texts
        for first in c.drop_nulls().head(1)
    ]


def _labels_of_text(frame: pl.DataFrame) -> list[str]:
    """Of columns that would be the label by their names, were they not yes and no."""
    texts = [c for c in frame.get_columns() if c.dtype == pl.String and plainly(c.name) in NAMES["label"]]
    return [
        f"{c.name!r} looks like a label by its name but holds texts such as {c.drop_nulls()[0]!r}: write 0 and 1"
        for c in texts
        if 1 <= c.drop_nulls().n_unique() <= 2
    ]


def _of_yes_and_no(frame: pl.DataFrame) -> list[str]:
    """Of columns that could be the label by their two values, were these not words."""
    found = []
    for column in frame.get_columns():
        if column.dtype == pl.String and column.drop_nulls().n_unique() == 2:
            values = sorted(column.drop_nulls().unique().to_list())
            if tuple(value.strip().lower() for value in values) in YES_AND_NO:
                found.append(f"{column.name!r} holds {values[0]!r} and {values[1]!r}: write 0 and 1 if it is the label")
    return found


def _recipe(
    names: tuple[str, str | None],
    of_data: Mapping[str, Mapping[str, Any]],
    task: Sequence[str],
    guesses: Sequence[Guess],
    history: Mapping[str, Any] | None,
    warnings: Sequence[str],
) -> str:
    samples, events = names
    lines = ["# Proposed from a look at the file. Read it: every guess says why.", ""]
    lines += [f"# note: {warning}" for warning in warnings] + ([""] if warnings else [])
    data: dict[str, Any] = {"samples": samples} | ({"events": events} if history is not None and events else {})
    lines += [_toml({"data": data | dict(of_data)})]
    left_out = [g for g in guesses if g.role == "left out"]
    if left_out:
        lines += ["# left out:"] + [f"#   {g.column}: {g.why}" for g in left_out] + [""]
    for guess in guesses:
        if guess.feature is not None:
            lines += [f"# {guess.column}: {guess.why}", _toml({"feature": [dict(guess.feature)]})]
    if history is not None:
        lines += ["# what the user did before, as known before each row", _toml({"history": [dict(history)]})]
    model = "din" if history is not None else "deepfm"
    lines += [*task, _toml({"model": {"name": model}})]
    lines += [_toml({"training": {"epochs": 3, "patience": 1}})]
    return "\n".join(lines)


def _toml(table: Mapping[str, Any]) -> str:
    return to_toml(table).strip() + "\n"
