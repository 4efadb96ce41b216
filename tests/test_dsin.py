"""Deep Session Interest Network: division, and the whole model against loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import OF, PAST, SMALL, D, Event, Hand, batch_of, features_of, fitted, model_of, same, softmax, tower
from transformer_by_hand import block

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.dsin import divide

MINUTE = 60_000_000  # microseconds
AGES = [[120, 90, 20], [], [600, 500]]  # minutes: 30 between the first two is no break, 70 is one, 100 is one
SESSIONS = [[[0, 1], [2]], [], [[0], [1]]]


def dsin(**options: Any) -> dict[str, Any]:
    return {"name": "dsin", "representation": SMALL | {"heads": 2, "feed": 2} | options, "interactions": [tower()]}


def aged(batch: Batch, ages: list[list[int]] = AGES) -> Batch:
    clicks = batch.histories["clicks"]
    made = torch.tensor([a * MINUTE for request in ages for a in request], dtype=torch.int64)
    return replace(batch, histories={"clicks": replace(clicks, ages=made)})


def test_more_than_thirty_minutes_part_sessions() -> None:
    history = aged(batch_of()).histories["clicks"]
    found = divide(history, 1_800.0)
    assert found.begins.tolist() == [True, False, True, True, True]
    assert found.start.tolist() == [0, 0, 2, 3, 4]
    assert found.number.tolist() == [0, 0, 1, 0, 1]
    assert found.place.tolist() == [0, 1, 0, 0, 0]
    assert found.counts.tolist() == [2, 0, 2]
    shorter = divide(history, 1_799.999999)
    assert shorter.begins.tolist() == [True, True, True, True, True]
    assert divide(history, 1e9).counts.tolist() == [1, 0, 1]
    nothing = divide(batch_of([[], [], []]).histories["clicks"], 1_800.0)
    assert nothing.counts.tolist() == [0, 0, 0]


def lstm(hand: Hand, at: str, rows: list[np.ndarray]) -> list[np.ndarray]:
    W, b, U = (hand.p[f"{at}.{name}"] for name in ("input.weight", "input.bias", "state.weight"))
    H, out = len(U) // 4, []
    h, c = np.zeros(H), np.zeros(H)
    for x in rows:
        i, f, g, o = (W @ x + U @ h + b).reshape(4, H)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        out.append(h)
    return out


def by_hand(hand: Hand, n: int, merge: str, bias: bool) -> tuple[list[np.ndarray], list[float]]:
    """(U_I and U_H, the weight of each event's session)."""
    p, r = hand.p, OF[n]
    interests = []
    for number, members in enumerate(SESSIONS[r]):
        rows = []
        for place, t in enumerate(members):
            x = hand.event(PAST[r][t])
            if bias:
                x = x + p["representation.of_session.0"][len(SESSIONS[r]) - 1 - number, 0]
                x = x + p["representation.of_place.0"][place, 0] + p["representation.of_unit.0"]
            rows.append(x)
        after = [block(p, "representation.blocks.0", 2, "relu", x, rows)[0] for x in rows]
        interests.append(np.mean(after, axis=0))
    forth, back = (
        lstm(hand, "representation.forth.0", interests),
        lstm(hand, "representation.back.0", interests[::-1])[::-1],
    )
    merged = [np.concatenate([f, b]) if merge == "concat" else (f + b) / 2 for f, b in zip(forth, back, strict=True)]
    out, weights = [], []
    for name, rows, width in (("own", interests, 2 * D), ("met", merged, 4 * D if merge == "concat" else 2 * D)):
        asked = p[f"representation.ask_{name}.0.weight"] @ hand.candidate(n)
        w = softmax([float(asked @ row) for row in rows])
        weights.append(w)
        out.append(sum((a * row for a, row in zip(w, rows, strict=True)), np.zeros(width)))
    of_event = [weights[0][k] for k, members in enumerate(SESSIONS[r]) for _ in members]
    return out, of_event


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("merge", ["concat", "mean"])
def test_dsin_equals_a_loop_and_gives_the_weights_of_sessions(merge: str, bias: bool) -> None:
    model = model_of(dsin(merge=merge, bias=bias))
    hand, out, logits, weights = Hand(model), model(aged(batch_of())), [], []
    for n in range(5):
        parts, of_event = by_hand(hand, n, merge, bias)
        weights += of_event
        logits.append(hand.tower(hand.row(n, [], parts)) + hand.p["head.bias"][0])
    assert same(out.logits[:, 0], logits)
    assert same(out.attention["clicks"], weights)


def test_what_lies_in_another_session_is_seen_through_the_lstm_alone() -> None:
    """Another first event moves I_k of its own session and of no other; of H_k, all."""
    model = model_of(dsin())
    other: list[list[Event]] = [[(5, 5, 3), *PAST[0][1:]], [], PAST[2]]
    representation = model.representation
    batches = [aged(batch_of()), aged(batch_of(other))]
    found = []
    for batch in batches:
        embedded = representation.embed(batch)  # type: ignore[operator,union-attr]
        history = batch.histories["clicks"]
        k = representation.pairs[0].keys(embedded["clicks"])  # type: ignore[index,union-attr]
        sessions = divide(history, 1_800.0)
        own = representation._interests(0, k, history, sessions, 6)  # type: ignore[operator]
        met = representation._interacting(0, own, history, sessions, 6)  # type: ignore[operator]
        found.append((own[sessions.begins], met[sessions.begins]))
    assert (found[0][0] != found[1][0]).any(1).tolist() == [True, False, False, False]
    assert (found[0][1] != found[1][1]).any(1).tolist() == [True, True, False, False]


def test_longer_batch_mates_change_nothing() -> None:
    model = model_of(dsin())
    longer = aged(batch_of([PAST[0], [], PAST[2] * 3]), [AGES[0], [], [900, 850, 700, 400, 399, 10]])
    assert torch.allclose(model(longer).logits[:3], model(aged(batch_of())).logits[:3], rtol=1e-10)
    assert bool((features_of(model, aged(batch_of())).fields_N[2, 2:] == 0).all())  # no past, no interest


def test_a_past_without_times_is_refused() -> None:
    made = fitted()
    history = replace(made.schema.histories[0], lists={"item": "items", "category": "categories"})
    listed = replace(made, schema=replace(made.schema, histories=(history,)))
    with pytest.raises(
        UserError, match=r"divides the past by time, and events of 'clicks' have none: .* event log, or leave it out"
    ):
        model_of(dsin(), listed)


def test_wrong_gaps_are_refused() -> None:
    with pytest.raises(UserError, match=r"gap = 0\.0; accepted: seconds above 0, usually 1800"):
        registry.parse({"name": "dsin", "representation": {"gap": 0.0}})
