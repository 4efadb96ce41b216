"""What training minimises, from the raw rows (`by_rows`): the terms of the loss by the logits of the loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from by_rows import (
    CANDIDATES,
    EVENTS,
    KINDS,
    REQUESTS,
    TRAINING,
    D,
    Event,
    Pencil,
    Vector,
    batch_of,
    dataset,
    lively,
    past,
    sigmoid,
)
from test_rows_sequences import TOWER, clicks_alone, gru
from test_rows_tasks import AT, MODELS, two_tasks

from finerank.data.batch import Batch
from finerank.models.composition import Model
from finerank.schema import FIRST

ROWS = range(len(CANDIDATES))
CLICK, CONVERSION = [c[5] for c in CANDIDATES], [c[6] for c in CANDIDATES]


def bce(y: int, logit: float) -> float:
    return -math.log(sigmoid(logit) if y else 1 - sigmoid(logit))


def losses(model: Model, batch: Batch) -> dict[str, float]:
    """In training: every term by name."""
    model.train()
    return {name: float(loss.detach()) for name, loss in model.losses(batch, model(batch)).items()}


def of_tasks(name: str, clicks: float = 0.0) -> tuple[dict[str, float], list[list[float]], Pencil]:
    """(the terms of the loss, the logits of every row by hand, the pencil). clicks: added to the logits of clicks."""
    table, loop = MODELS[name]
    data, _ = dataset(two_tasks)
    model = lively(table, data)
    with torch.no_grad():
        model.head.bias[0] += clicks  # type: ignore[index,operator,union-attr]
    p = Pencil(model, data)
    return losses(model, batch_of(data, model)), [list(loop(p, n)) for n in ROWS], p


@pytest.mark.parametrize("name", ["esmm", "esmm_ns", "esmm_din"])
def test_esmm_learns_clicks_and_their_product_with_conversions_over_all_rows(name: str) -> None:
    found, logits, _ = of_tasks(name)
    click = sum(bce(CLICK[n], logits[n][0]) for n in ROWS) / len(ROWS)
    both = sum(bce(CLICK[n] * CONVERSION[n], logits[n][2]) for n in ROWS) / len(ROWS)
    assert found == pytest.approx(
        {"click": click, "click&conversion": both}, rel=1e-8
    )  # and no term of conversions alone


def test_the_base_of_esmm_learns_conversions_of_clicked_rows_alone() -> None:
    found, logits, _ = of_tasks("cvr_base")
    assert found["conversion"] == pytest.approx(
        sum(bce(CONVERSION[n], logits[n][1]) for n in ROWS if CLICK[n]) / len(ROWS), rel=1e-8
    )


def test_unbias_weighs_clicked_rows_by_one_over_their_chance() -> None:
    """Brought to a mean of one by the click rate of training, and at most ten."""
    found, logits, _ = of_tasks("unbias")
    clicks = [CLICK[n] for n in ROWS if CANDIDATES[n][0] in TRAINING]
    rate = sum(clicks) / len(clicks)
    weights = [min(rate / sigmoid(logits[n][0]), 10.0) for n in ROWS]
    expected = sum(weights[n] * bce(CONVERSION[n], logits[n][1]) for n in ROWS if CLICK[n]) / len(ROWS)
    assert found["conversion"] == pytest.approx(expected, rel=1e-6)  # the rate is kept in single precision


def test_division_learns_both_and_clicks() -> None:
    found, logits, _ = of_tasks("division")
    click = sum(bce(CLICK[n], logits[n][0]) for n in ROWS) / len(ROWS)
    both = sum(bce(CLICK[n] * CONVERSION[n], logits[n][2]) for n in ROWS) / len(ROWS)
    assert found == pytest.approx({"click": click, "click&conversion": both}, rel=1e-8)


def test_aitm_is_charged_where_a_conversion_is_likelier_than_its_click() -> None:
    found, logits, _ = of_tasks("aitm", clicks=-1.0)
    over = sum(max(sigmoid(both) - sigmoid(a), 0.0) for a, _, both in logits) / len(ROWS)
    both = sum(bce(CLICK[n] * CONVERSION[n], logits[n][2]) for n in ROWS) / len(ROWS)
    click = sum(bce(CLICK[n], logits[n][0]) for n in ROWS) / len(ROWS)
    assert over > 0
    assert sum(found.values()) == pytest.approx(click + both + 0.6 * over, rel=1e-8)


@pytest.mark.parametrize("name", ["snr_trans", "snr_aver"])
def test_snr_is_charged_for_the_gates_expected_open(name: str) -> None:
    """1e-4 Σ σ(log α - β log(-γ/ζ)), β = 2/3, γ = -0.1, ζ = 1.1."""
    found, _, p = of_tasks(name)
    alphas = np.concatenate([p.p[f"{AT}.routes.{k}.gates.log_alpha"].flatten() for k in range(2)])
    charge = 1e-4 * sum(sigmoid(a - 2 / 3 * math.log(0.1 / 1.1)) for a in alphas)
    (extra,) = found.keys() - {"click", "conversion"}
    assert found[extra] == pytest.approx(charge, rel=1e-8)


def test_deepmcp_matches_the_user_with_what_was_clicked() -> None:
    """5 times the cross-entropy of u·a, both of tanh."""
    data, _ = dataset()
    table = {"name": "deepmcp", "representation": {"embedding": {"width": D}, "hidden": [3, 2], "beta": 0.0}}
    model = lively(
        table | {"interactions": [{"kind": "tower", "hidden": [3, 2]}]},
        data,
        ("representation.user", "representation.ad"),
    )
    p, total = Pencil(model, data), 0.0

    def side(name: str, x: Vector) -> Vector:
        hidden = p.tower(f"representation.{name}.0", x, last=True)
        return np.tanh(p.dense(f"representation.{name}.1", hidden))

    for n in ROWS:
        u = side("user", np.concatenate([*p.of_request(n), *p.pooled(n), p.age(n)]))
        a = side("ad", np.concatenate([p.candidate(n), p.price(n)]))
        total += bce(CLICK[n], float(u @ a))
    assert losses(model, batch_of(data, model))["matching"] == pytest.approx(5 * total / len(ROWS), rel=1e-8)


def test_youtube_corrects_by_the_share_of_an_item_among_the_events_known() -> None:
    """Clicked rows among four drawn items, logit - log Q each; Q counts the clicks of all users before the request."""
    data, _ = dataset(clicks_alone)
    table = {"name": "youtube_candidates", "representation": {"embedding": {"width": D}, "hidden": [3, 2], "drawn": 4}}
    model = lively(table, data)
    p, batch, vectors = Pencil(model, data), batch_of(data, model), "representation.catalogue.vectors.weight"
    newest = max(time for r, _, time, _ in REQUESTS if r in TRAINING)
    names = {p.symbols["item"](item): item for _, item, *_ in CANDIDATES if p.symbols["item"](item) >= FIRST}
    total = 0.0
    for n in (n for n in ROWS if CLICK[n]):
        request, item, *_ = CANDIDATES[n]
        time = REQUESTS[request][2]
        known = [e[3] for e in EVENTS if e[2] == "click" and e[1] < time]
        days = max(newest - time, 0) / 86_400
        x = np.concatenate([*p.of_request(n), p.age(n), p.pooled(n, mean=True)[0], [math.log1p(days)]])
        u = p.tower("representation.tower", x, last=True)

        def logit(of: str, u: Vector = u, known: list[str] = known) -> float:
            share = max(known.count(of), 1) / len(known)  # what nobody clicked yet counts as clicked once
            return float(u @ p.value(vectors, "item", of)) - math.log(share)

        drawn = [names[row] for row in batch.drawn["clicks"].ids[request].tolist()]
        assert len(drawn) == 4
        assert set(drawn) <= set(known)
        others = [math.exp(logit(other)) for other in drawn if other != item]
        total -= math.log(math.exp(logit(item)) / (math.exp(logit(item)) + sum(others)))
    assert losses(model, batch) == pytest.approx(
        {"catalogue": total / len(ROWS)}, rel=1e-6
    )  # shares in single precision


# ------------------------------------------------------------------------------------------------ along the past


def drawn_events(p: Pencil, batch: Batch, history: str) -> list[list[Event | None]]:
    """Request by request what was drawn in the place of each event: which event of the log it is. None: nothing comes before
    the first."""
    block, at, out = batch.negatives[history], 0, []
    tags = block.lists["tags"]
    for request, *_ in REQUESTS:
        row = next(n for n in ROWS if CANDIDATES[n][0] == request)
        mine: list[Event | None] = []
        for true in past(row, KINDS[history]):
            item = int(block.ids[at, 0])
            of = sorted(tags.ids[tags.segments == tags.index[at], 0].tolist())
            known = [e for e in EVENTS if e[2] == KINDS[history] and e[1] < REQUESTS[request][2]]
            same = [e for e in known if p.symbols["item"](e[3]) == item and sorted(map(p.symbols["tags"], e[5])) == of]
            assert bool(same) == bool(mine)  # an event known to the request; none for the first
            assert not same or same[0][3] != true[3]
            mine.append(same[0] if same else None)
            at += 1
        out.append(mine)
    assert at == len(block.ids)
    return out


def test_dien_tells_the_next_event_from_one_drawn() -> None:
    """-log σ(h_t·e_{t+1}) - log(1 - σ(h_t·ê_{t+1})), the mean over all events that have one before them; for each history."""
    data, _ = dataset()
    table = {"name": "dien", "representation": {"embedding": {"width": D}}, "interactions": [TOWER]}
    model = lively(table, data)
    p, batch, expected = Pencil(model, data), batch_of(data, model), {}
    for h, (name, kind) in enumerate(KINDS.items()):
        terms = []
        for (request, *_), drawn in zip(REQUESTS, drawn_events(p, batch, name), strict=True):
            events = past(next(n for n in ROWS if CANDIDATES[n][0] == request), kind)
            states = gru(p, f"representation.extract.{h}", [p.event(e) for e in events])
            for t, other in enumerate(drawn[1:]):
                assert other is not None
                terms.append(
                    bce(1, float(states[t] @ p.event(events[t + 1]))) + bce(0, float(states[t] @ p.event(other)))
                )
        expected[f"{name} next event"] = sum(terms) / len(terms)
    found = losses(model, batch)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-8)


def test_deepmcp_draws_neighbours_in_a_past_together_and_others_apart() -> None:
    """-log σ(t·c) - Σ_q log σ(-t·n_q) over pairs at most two apart, n_q what was drawn in the place of the context and on; what
    equals target or context is passed over."""
    data, _ = dataset()
    table = {
        "name": "deepmcp",
        "representation": {"embedding": {"width": D}, "hidden": [3, 2], "alpha": 0.0, "beta": 0.5},
    }
    model = lively(table | {"interactions": [TOWER]}, data, ("representation.items",))
    p, batch, expected = Pencil(model, data), batch_of(data, model), {}
    for h, (name, kind) in enumerate(KINDS.items()):
        at, terms = f"representation.items.{h}", []

        def seen(e: Event, at: str = at) -> Vector:
            return np.tanh(p.dense(f"{at}.1", p.tower(f"{at}.0", p.event(e), last=True)))

        for (request, *_), (_, *drawn) in zip(
            REQUESTS, [d or [None] for d in drawn_events(p, batch, name)], strict=True
        ):
            events = past(next(n for n in ROWS if CANDIDATES[n][0] == request), kind)
            for t, c in itertools.permutations(range(len(events)), 2):  # no past here is longer than three
                term = bce(1, float(seen(events[t]) @ seen(events[c])))
                for q in range(len(drawn)):
                    other = drawn[(c - 1 + q) % len(drawn)]
                    assert other is not None
                    if other[3] not in (events[t][3], events[c][3]):
                        term += bce(0, float(seen(events[t]) @ seen(other)))
                terms.append(term)
        expected[f"{name} correlation"] = 0.5 * sum(terms) / len(terms)
    found = losses(model, batch)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-8)
