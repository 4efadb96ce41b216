"""SIM: searches against loops over all pairs, the exact units by hand, the soft search's loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import CATEGORIES, OF, PAST, SMALL, D, Event, Hand, batch_of, bce, model_of, same, sigmoid, softmax
from by_hand import tower as tower_of
from torch import Tensor

from finerank.data.batch import Batch, Jagged, Pairs, pair_up
from finerank.errors import UserError
from finerank.layers.search import (
    nearest,
    nearest_mask,
    newest,
    newest_mask,
    of_value,
    of_value_mask,
    outer_sums,
)
from finerank.models import registry
from finerank.runtime.blocks import Block
from finerank.schema import FIRST, OOV

UNIT = {"hidden": [3, 2]}


def sim(name: str = "sim", **options: Any) -> dict[str, Any]:
    return {"name": name, "representation": SMALL | {"unit": UNIT} | options, "interactions": [tower_of()]}


def unit(hand: Hand, at: str, q: np.ndarray, k: np.ndarray, context: np.ndarray) -> float:
    x = np.concatenate([q, k, q - k, q * k, context])
    x = hand.act(f"{at}.rest.0.act", hand.dense(f"{at}.first", x))
    x = hand.act(f"{at}.rest.2.act", hand.dense(f"{at}.rest.1", x))
    return float(hand.dense(f"{at}.rest.3", x)[0])


def exact_heads(hand: Hand, n: int, events: list[Event], heads: int) -> list[np.ndarray]:
    """Of each head: softmax(<W_b z, W_a q>) z, z = [item, category, age]."""
    ask, answer = hand.p["representation.ask.0.weight"], hand.p["representation.answer.0.weight"]
    z = [np.concatenate([hand.event(e), hand.tables()["clicks.age"][e[2]]]) for e in events]
    out = []
    for h in range(heads):
        rows = slice(h * 2 * D, (h + 1) * 2 * D)
        w = softmax([float((answer[rows] @ v) @ (ask[rows] @ hand.candidate(n))) for v in z])
        out.append(sum((a * v for a, v in zip(w, z, strict=True)), np.zeros(3 * D)))
    return out


def recent_interest(hand: Hand, n: int, recent: int) -> list[np.ndarray]:
    if not recent:
        return []
    if "representation.recent.0.match.weight" in hand.p:  # DIEN
        states = hand.gru("representation.recent.0.extract", [hand.event(e) for e in PAST[OF[n]][-recent:]])
        asked = hand.p["representation.recent.0.match.weight"] @ hand.candidate(n)
        weights = softmax([float(asked @ h) for h in states])
        return [[np.zeros(2 * D), *hand.gru("representation.recent.0.evolve", states, weights)][-1]]
    q, total = hand.candidate(n), np.zeros(2 * D)
    for e in PAST[OF[n]][-recent:]:
        total = total + unit(hand, "representation.recent.0", q, hand.event(e), np.zeros(0)) * hand.event(e)
    return [total]


@pytest.mark.parametrize(("recent", "short"), [(0, "dien"), (1, "dien"), (2, "dien"), (2, "din"), (9, "dien")])
@pytest.mark.parametrize("top", [1, 100])
@pytest.mark.parametrize("by", ["auto", "item"])
def test_hard_search_equals_a_loop(by: str, top: int, recent: int, short: str) -> None:
    """auto is the category: the second field that both sides share."""
    model = model_of(sim(by=by, top=top, recent=recent, short=short, heads=3))
    hand, expected = Hand(model), []
    for n in range(5):
        mine = (CATEGORIES[n], 1) if by == "auto" else (batch_of().candidate.ids[n, 0].item(), 0)
        events = [e for e in PAST[OF[n]] if e[mine[1]] == mine[0]][-top:]
        parts = exact_heads(hand, n, events, 3) + recent_interest(hand, n, recent)
        expected.append(hand.tower(hand.row(n, [], parts)) + hand.p["head.bias"][0])
    assert same(model(batch_of()).logits[:, 0], expected)


@pytest.mark.parametrize("softmaxed", [False, True])
def test_exact_unit_of_din(softmaxed: bool) -> None:
    model = model_of(sim(exact="din", recent=0, unit=UNIT | {"softmax": softmaxed}))
    hand, expected = Hand(model), []
    for n in range(5):
        events = [e for e in PAST[OF[n]] if e[1] == CATEGORIES[n]]
        q, ages = hand.candidate(n), hand.tables()["clicks.age"]
        w = [unit(hand, "representation.exact.0", q, hand.event(e), ages[e[2]]) for e in events]
        w = softmax([v / 2 for v in w]) if softmaxed else w
        v = sum((a * hand.event(e) for a, e in zip(w, events, strict=True)), np.zeros(2 * D))
        expected.append(hand.tower(hand.row(n, [], [v])) + hand.p["head.bias"][0])
    assert same(model(batch_of()).logits[:, 0], expected)


@pytest.mark.parametrize("short", ["dien", "din"])
@pytest.mark.parametrize("top", [1, 2, 100])
def test_soft_search_and_its_loss_equal_a_loop(top: int, short: str) -> None:
    """U = sum of r_t e_t over all events, without a softmax; a network over U and the candidate predicts the click."""
    model = model_of(sim("sim_soft", top=top, recent=2, short=short, auxiliary=0.5)).train()
    hand, logits, losses = Hand(model), [], []
    batch = batch_of()
    out = model(batch)
    for n in range(5):
        q = hand.p["representation.search_ask.0.weight"] @ hand.candidate(n)
        r = [float(q @ hand.p["representation.search_answer.0.weight"] @ hand.event(e)) for e in PAST[OF[n]]]
        best = sorted(range(len(r)), key=lambda t: -r[t])[:top]
        parts = exact_heads(hand, n, [PAST[OF[n]][t] for t in sorted(best)], 2) + recent_interest(hand, n, 2)
        logits.append(hand.tower(hand.row(n, [], parts)) + hand.p["head.bias"][0])
        whole = sum((v * hand.event(e) for v, e in zip(r, PAST[OF[n]], strict=True)), np.zeros(2 * D))
        x, at = np.concatenate([whole, hand.candidate(n)]), "representation.judge.0.layers"
        for layer in (0, 2):
            x = hand.act(f"{at}.{layer + 1}.act", hand.dense(f"{at}.{layer}", x))
        losses.append(bce(float(batch.labels[n, 0]), sigmoid(float(hand.dense(f"{at}.4", x)[0]))))
    assert same(out.logits[:, 0], logits)
    assert float(model.losses(batch, out)["clicks search"].detach()) == pytest.approx(0.5 * sum(losses) / 5, rel=1e-8)
    assert set(model.eval().losses(batch, model(batch))) == {"click"}


@pytest.mark.parametrize("recent", [1, 2, 9])
@pytest.mark.parametrize("name", ["sim", "sim_soft"])
def test_the_newest_events_are_told_from_sampled_ones(name: str, recent: int) -> None:
    """DIEN's auxiliary loss over the newest events alone; what stands for an older one is not even read."""
    model = model_of(sim(name, recent=recent, next_event=0.5)).train()
    hand, terms = Hand(model), []
    negatives: list[list[Event]] = [[(7, 3, 0), (5, 5, 0), (6, 4, 0)], [], [(4, 4, 0), (6, 3, 0)]]
    for past, sampled in zip(PAST, negatives, strict=True):
        states = hand.gru("representation.recent.0.extract", [hand.event(e) for e in past[-recent:]])
        for h, true, false in zip(states[:-1], past[-recent:][1:], sampled[-recent:][1:], strict=True):
            terms += [-np.log(sigmoid(float(h @ hand.event(true)))), -np.log(1 - sigmoid(float(h @ hand.event(false))))]
    assert len(terms) == {1: 0, 2: 4, 9: 6}[recent]
    expected = 0.5 * sum(terms) / max(len(terms) // 2, 1)
    batch = batch_of(negatives=negatives)
    found = model.losses(batch, model(batch))["clicks next event"]
    assert float(found.detach()) == pytest.approx(expected, rel=1e-10)
    chunk = replace(batch, rows_in_step=10)  # one of two chunks of a step: half of its loss
    assert float(model(chunk).losses["clicks next event"].detach()) == pytest.approx(expected / 2, rel=1e-10)
    older = batch_of(
        negatives=[[(7, 3, 0), (5, 5, 0) if recent > 2 else (0, 0, 0), (6, 4, 0)], [], [(0, 0, 0), (6, 3, 0)]]
    )
    assert torch.equal(model(older).losses["clicks next event"], found)
    assert "clicks next event" not in model.eval().losses(batch, model(batch))


@pytest.mark.parametrize("options", [{"next_event": 0.0}, {"short": "din"}, {"recent": 0}])
def test_negatives_are_drawn_for_the_auxiliary_loss_alone(options: dict[str, Any]) -> None:
    assert model_of(sim()).needs.negatives == {"clicks"}
    assert not model_of(sim(**options)).needs.negatives


def test_a_category_without_a_value_of_its_own_finds_nothing() -> None:
    """Two unknown categories are not one category."""
    model = model_of(sim(recent=0))
    past = [[(4, OOV, 3), (3, 2, 4)], [], [(7, 0, 3)]]
    batch = batch_of(past)
    ids = batch.candidate.ids.clone()
    ids[:, 1] = torch.tensor([OOV, 2, OOV, 0, 5])
    batch = replace(batch, candidate=replace(batch.candidate, ids=ids))
    assert bool((model.representation(batch).fields_N[:, 2:] == 0).all())


def test_hard_search_embeds_what_it_found_and_no_more() -> None:
    model = model_of(sim(recent=1)).train()
    past: list[list[Event]] = [[(7, 5, 3), (6, 4, 3), (5, 5, 6)], [], []]
    model(batch_of(past)).logits.sum().backward()
    (tables,) = model.embeddings().values()
    taken = tables.take_gradient()
    assert taken is not None
    items = {int(r) - tables.start["item"] for r in taken[0] if tables.start["item"] <= r < tables.start["item"] + 8}
    assert items == {3, 4, 5, 6}  # the candidates', (6, 4) by its category and (5, 5), the newest; 7 was not read


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 0}, "top = 0, heads = 2, recent = 10; accepted"),
        ({"auxiliary": 0.0}, "auxiliary = 0.0; accepted: above 0"),
        ({"next_event": -1.0}, "next_event = -1.0; accepted: 0 \\(off\\) or more"),
        ({"search": "soft", "by": "item"}, "by = 'item' beside search = 'soft'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        registry.parse({"name": "sim", "representation": options})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(UserError, match=r"by = 'shop' is no field of one id that history 'clicks' shares; .*item"):
        model_of(sim(by="shop"))


# ------------------------------------------------------------------------------------------------ searches


def world(lengths: list[int], candidates: list[int], seed: int) -> tuple[Batch, Jagged, Pairs, Tensor]:
    draw = np.random.default_rng(seed)
    made, of = torch.tensor(lengths), torch.repeat_interleave(torch.tensor(candidates))
    segments = torch.repeat_interleave(made)
    positions = torch.arange(len(segments)) - (made.cumsum(0) - made)[segments]
    none = torch.zeros(0)
    ids = torch.from_numpy(draw.integers(0, 6, (len(segments), 1)))
    history = Jagged(Block(ids, none), segments, positions, made, positions)
    wanted = torch.from_numpy(draw.integers(0, 6, (len(of), 1)))
    batch = Batch(Block(made.unsqueeze(1), none), Block(wanted, none), of, {"h": history}, none, none)
    pairs = pair_up(of, made)
    event = torch.arange(len(pairs.candidate)) if pairs.event is None else pairs.event
    return batch, history, pairs, event


WORLDS = [
    ([3, 0, 20, 8, 9, 1], [2, 1, 3, 0, 1, 4]),
    ([0, 0], [1, 2]),
    ([40], [1]),
    ([5, 12, 7], [1, 1, 1]),
]


def listed(pairs: Pairs) -> list[tuple[int, int]]:
    assert pairs.event is not None
    return list(zip(pairs.candidate.tolist(), pairs.event.tolist(), strict=True))


@pytest.mark.parametrize("world_", WORLDS)
@pytest.mark.parametrize("top", [1, 3, 100])
def test_searches_and_their_masks_equal_loops(world_: tuple[list[int], list[int]], top: int) -> None:
    batch, history, pairs, event = world(*world_, seed=top)
    lengths, first = world_[0], np.cumsum([0, *world_[0]])
    value_N, value_T = batch.candidate.ids[:, 0], history.events.ids[:, 0]
    draw = torch.Generator().manual_seed(top)
    q = torch.randn(batch.N, 4, generator=draw).round().double()  # whole numbers, so that many scores are equal
    k = torch.randn(len(value_T), 4, generator=draw).round().double()
    by_value, by_score, by_time = [], [], []
    for n, r in enumerate(batch.request_of.tolist()):
        mine = list(range(first[r], first[r + 1]))
        alike = [t for t in mine if value_T[t] == value_N[n] and value_N[n] >= FIRST]
        by_value += [(n, t) for t in alike[-top:]]
        by_time += [(n, t) for t in mine[-top:]]
        best = sorted(mine, key=lambda t: (-float(q[n] @ k[t]), -t))[:top]  # of equals the newer
        by_score += [(n, t) for t in sorted(best)]
    assert listed(of_value(batch, history, value_N, value_T, top)) == by_value
    assert listed(newest(batch, history, top)) == by_time
    assert listed(nearest(batch, history, q, k, top)) == by_score
    everything = Pairs(pairs.candidate, event)
    masks = [
        (of_value_mask(value_N, value_T, everything, event, top), by_value),
        (newest_mask(batch, history, everything, event, top), by_time),
    ]
    for mask, expected in masks:
        assert [p for p, there in zip(listed(everything), mask.tolist(), strict=True) if there] == expected
    mask = nearest_mask(batch, history, q, k, everything, event, top, max(lengths) + 3)
    assert [p for p, there in zip(listed(everything), mask.tolist(), strict=True) if there] == by_score


def test_sums_of_outer_products_equal_a_loop() -> None:
    _, history, _, _ = world(*WORLDS[0], seed=0)
    draw = torch.Generator().manual_seed(0)
    k, p = (torch.randn(len(history.segments), 3, generator=draw, dtype=torch.float64) for _ in range(2))
    expected = torch.zeros(6, 3, 3, dtype=torch.float64)
    for t, r in enumerate(history.segments.tolist()):
        expected[r] += torch.outer(k[t], p[t])
    assert torch.allclose(outer_sums(k, p, history), expected, rtol=1e-12)


def test_attention_over_nothing_is_nothing() -> None:
    model = model_of(sim())
    found = model.representation(batch_of([[], [], []]))
    assert bool((found.fields_N[:, 2:] == 0).all())
    assert bool(torch.isfinite(model(batch_of([[], [], []])).logits).all())
