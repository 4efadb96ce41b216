"""Every model against the equations of its paper, written out in loops (`by_hand`), and the cheap tests of its card."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import (
    AGES,
    CATEGORIES,
    ITEMS,
    OF,
    PAST,
    PRICES,
    SMALL,
    UNIT,
    USERS,
    D,
    Event,
    Hand,
    batch_of,
    bce,
    features_of,
    fitted,
    model_of,
    same,
    sigmoid,
    single,
    softmax,
    tower,
)
from torch import Tensor

from finerank.data.batch import pair_up
from finerank.data.builder import BatchBuilder
from finerank.layers.activation import Dice
from finerank.layers.embedding import Gradient
from finerank.layers.evolution import next_event_loss
from finerank.models import registry
from finerank.models.composition import Model
from finerank.models.esmm import product_logit
from finerank.training.evaluate import metrics, predict
from finerank.training.regularise import MiniBatchAware
from finerank.training.row_optim import RowSGD

# ------------------------------------------------------------------------------------------------ LR and FM


def linear_by_hand(hand: Hand, n: int) -> float:
    w = hand.rows_of("interactions.0.weights.tables.1.weight")
    total = w["user"][USERS[OF[n]]] + w["item"][ITEMS[n]] + w["category"][CATEGORIES[n]]
    total = (
        total + AGES[OF[n]] * hand.p["interactions.0.numbers_R"][0] + PRICES[n] * hand.p["interactions.0.numbers_N"][0]
    )
    return float((total + hand.p["head.bias"])[0])


def test_lr_is_the_sum_of_its_weights() -> None:
    model = model_of({"name": "lr"})
    hand = Hand(model)
    assert same(model(batch_of()).logits[:, 0], [linear_by_hand(hand, n) for n in range(5)])


def test_lr_with_histories_adds_the_weight_of_every_past_value() -> None:
    model = model_of({"name": "lr", "interactions": [{"kind": "linear", "histories": True}]})
    hand = Hand(model)
    w = hand.rows_of("interactions.0.weights.tables.1.weight")
    past = [sum(float((w["item"][i] + w["category"][c])[0]) for i, c, _ in p) for p in PAST]
    assert same(model(batch_of()).logits[:, 0], [linear_by_hand(hand, n) + past[OF[n]] for n in range(5)])


FM: dict[str, Any] = {"name": "fm", "representation": SMALL}


def test_fm_is_brute_force_over_all_pairs_of_fields_and_numbers() -> None:
    model = model_of(FM)
    hand = Hand(model)
    # the plain representation leaves histories, and so the table of ages, out
    v = hand.rows_of(f"representation.embed.embedding.tables.{D}.weight")
    expected = []
    for n in range(5):
        vectors = [v["user"][USERS[OF[n]]], v["item"][ITEMS[n]], v["category"][CATEGORIES[n]]]
        vectors += [AGES[OF[n]] * hand.p["interactions.1.numbers_R"][0]]
        vectors += [PRICES[n] * hand.p["interactions.1.numbers_N"][0]]
        pairs = sum(float(a @ b) for i, a in enumerate(vectors) for b in vectors[i + 1 :])
        expected.append(linear_by_hand(hand, n) + pairs)
    assert same(model(batch_of()).logits[:, 0], expected)


def test_fm_does_not_know_which_field_is_which() -> None:
    """Exchanging the vectors of two fields changes nothing, also across the line between request and candidate."""
    model = model_of(FM)
    found = features_of(model, batch_of())
    second = model.interactions[1]
    swapped = replace(found, fields_N=found.fields_N.flip(1))
    assert torch.allclose(second(swapped), second(found))
    of = found.batch.request_of[:3].unique()
    assert len(of) == 2
    single = replace(found, batch=replace(found.batch, request_of=torch.tensor([0, 1, 2])), fields_N=found.fields_N[:3])
    single = replace(single, numbers_N=found.numbers_N[:3])
    across = replace(
        single,
        fields_R=single.fields_N[:, :1],
        fields_N=torch.cat([single.fields_R, single.fields_N[:, 1:]], dim=1),
    )
    assert not torch.allclose(single.fields_R, across.fields_R)
    assert torch.allclose(second(across), second(single))


def test_fm_without_vectors_is_lr() -> None:
    model, lr = model_of(FM | {"representation": {"embedding": {"width": 1}}}), model_of({"name": "lr"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("representation", "interactions.1")):
                parameter.zero_()
        lr.load_state_dict(
            {k: v for k, v in model.state_dict().items() if not k.startswith(("representation", "interactions.1"))}
        )
    assert torch.equal(model(batch_of()).logits, lr(batch_of()).logits)
    assert bool((lr(batch_of()).logits != 0).all())


# ------------------------------------------------------------------------------------------------ the base model

BASE: dict[str, Any] = {"name": "base", "representation": SMALL, "interactions": [tower()]}


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_base_pools_each_attribute_and_feeds_one_tower(pooling: str) -> None:
    model = model_of(BASE | {"representation": SMALL | {"pooling": pooling}})
    hand = Hand(model)
    expected = [hand.tower(hand.row(n, [hand.pooled(n, pooling == "mean")])) + hand.p["head.bias"][0] for n in range(5)]
    assert same(model(batch_of()).logits[:, 0], expected)


@pytest.mark.parametrize("table", [BASE, {"name": "din", "representation": SMALL}], ids=["base", "din"])
def test_order_of_the_past_is_irrelevant(table: dict[str, Any]) -> None:
    model = model_of(table)
    for order in itertools.permutations(range(3)):
        turned = [[PAST[0][t] for t in order], [], PAST[2][::-1]]
        assert torch.allclose(model(batch_of(turned)).logits, model(batch_of()).logits, rtol=1e-12)


def test_candidate_and_past_share_one_parameter() -> None:
    """Both uses of an item land in one table: with a linear tower the gradient is seen with the naked eye."""
    model = model_of(BASE | {"interactions": [tower(hidden=())]})
    assert len(model.embeddings()) == 1
    model.train()
    model(batch_of()).logits[:, 0].sum().backward()
    (tables,) = model.embeddings().values()
    taken = tables.take_gradient()
    assert taken is not None
    rows, grads = taken
    assert len(rows.unique()) == len(rows)
    start = 6  # after category (6 rows): the base model does not read the age of events
    w = model.interactions[0].towers[0].first.weight.detach()[0].numpy()  # type: ignore[union-attr,index]
    of_past, of_candidate = (
        w[D : 2 * D],
        w[3 * D + 1 : 4 * D + 1],
    )  # user, pooled item, pooled category, age | item, ...
    seen = {int(r) - start: g.numpy() for r, g in zip(rows, grads, strict=True)}
    for item in (3, 4, 5, 6, 7):
        past = sum(e[0] == item for n in range(5) for e in PAST[OF[n]])
        assert np.allclose(seen[item], past * of_past + ITEMS.count(item) * of_candidate, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ DIN

DIN: dict[str, Any] = {"name": "din", "representation": SMALL | {"unit": UNIT}, "interactions": [tower()]}


def din(**unit: Any) -> dict[str, Any]:
    return DIN | {"representation": SMALL | {"unit": UNIT | unit}}


@pytest.mark.parametrize("activation", ["prelu", "dice"])
@pytest.mark.parametrize("normalised", [False, True])
def test_din_equals_a_loop_and_gives_its_weights(normalised: bool, activation: str) -> None:
    """One weight per event from item and category together; with softmax scaled by sqrt(K), K = 4 (authors' code)."""
    model = model_of(din(softmax=normalised, activation=activation) | {"interactions": [tower(activation)]})
    hand = Hand(model)
    out, logits, weights = model(batch_of()), [], []
    for n in range(5):
        w = hand.scores(n)
        w = softmax([v / 2 for v in w]) if normalised else w
        weights += w
        logits.append(hand.tower(hand.row(n, [], [hand.interest(n, w)])) + hand.p["head.bias"][0])
    assert same(out.logits[:, 0], logits)
    assert set(out.attention) == {"clicks"}
    assert same(out.attention["clicks"], weights)  # one a pair: candidate after candidate, oldest event first
    assert len(weights) == 3 + 3 + 0 + 2 + 2
    assert normalised or min(weights) < 0  # negative interest is allowed


def test_din_dot_unit_and_the_extra_fields_of_the_authors_code() -> None:
    table = {"unit": {"kind": "dot"}, "also": ["sum", "product"], "age": False}
    model = model_of(DIN | {"representation": SMALL | table})
    hand, expected = Hand(model), []
    for n in range(5):
        q = hand.candidate(n)
        v = hand.interest(n, [float(q @ hand.event(e)) / 2 for e in PAST[OF[n]]])
        expected.append(hand.tower(hand.row(n, [hand.pooled(n)], [v, q * v])) + hand.p["head.bias"][0])
    assert same(model(batch_of()).logits[:, 0], expected)


def test_din_can_leave_the_age_out() -> None:
    model = model_of(DIN | {"representation": SMALL | {"unit": UNIT, "age": False}})
    older = [[(i, c, 6) for i, c, _ in p] for p in PAST]
    assert torch.equal(model(batch_of(older)).logits, model(batch_of()).logits)
    aware = model_of(DIN)
    assert not torch.allclose(aware(batch_of(older)).logits, aware(batch_of()).logits)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_din_with_a_constant_weight_is_the_base_model(pooling: str) -> None:
    """Last attention layer W = 0, b = 1: the sum without softmax, the mean with it; then the same tower as `base`."""
    model, base = (
        model_of(din(softmax=pooling == "mean")),
        model_of(BASE | {"representation": SMALL | {"pooling": pooling}}),
    )
    last = model.representation.units[0].rest[-1]  # type: ignore[index,union-attr]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(1.0)
        for name, parameter in base.named_parameters():
            other = model.state_dict()[name]
            if name.startswith("representation.embed.embedding.tables."):
                other = torch.cat([other[:6], other[6 + 7 :]])  # DIN alone has a table of ages, after category's 6 rows
            if name != "interactions.0.towers.0.first.weight":
                parameter.copy_(other)
        # base: user, item-, category-past, age | item, category, price; din: user, age | item, category, interests, price
        columns = [0, 1, 7, 8, 9, 10, 2, 3, 4, 5, 6, 11]
        moved = base.interactions[0].towers[0].first.weight  # type: ignore[union-attr,index]
        moved.copy_(model.interactions[0].towers[0].first.weight[:, columns])  # type: ignore[union-attr,index]
    assert torch.allclose(model(batch_of()).logits, base(batch_of()).logits, rtol=1e-12)


@pytest.mark.parametrize(("normalised", "factor"), [(False, 2.0), (True, 1.0)])
def test_repeating_the_past_doubles_the_interest_only_without_softmax(normalised: bool, factor: float) -> None:
    model = model_of(din(softmax=normalised))
    once = features_of(model, batch_of()).fields_N[:, 2:]
    twice = features_of(model, batch_of([p + p for p in PAST])).fields_N[:, 2:]
    assert torch.allclose(twice, factor * once, rtol=1e-12)
    assert once[2].tolist() == [[0.0] * D] * 2  # no history: no interest, not 1/T
    assert bool((once[[0, 1, 3, 4]] != 0).all())


def test_item_and_category_attend_jointly() -> None:
    """Another category of one event changes what the *items* of the past give, through the one weight of the event."""
    model = model_of(DIN)
    other = [[(4, 5, 3), *PAST[0][1:]], [], PAST[2]]
    before, after = features_of(model, batch_of()), features_of(model, batch_of(other))
    item_before, item_after = before.fields_N[0, 2], after.fields_N[0, 2]
    change = (after.attention["clicks"] - before.attention["clicks"])[:3].detach()
    assert change[0] != 0
    assert change[1:].tolist() == [0.0, 0.0]
    assert same(item_after - item_before, float(change[0]) * Hand(model).tables()["item"][4])


def test_batch_mates_with_longer_histories_change_nothing() -> None:
    """What padding to the longest history would do elsewhere: 48 more events of another request, also in training."""
    model = model_of(DIN)
    longer = [PAST[0], [], PAST[2] * 25]
    for training in (False, True):
        model.train(training)
        assert torch.equal(model(batch_of(longer)).logits[:3], model(batch_of()).logits[:3])


def test_dice_takes_its_statistics_from_real_pairs_only() -> None:
    """Mean and variance over the ten (candidate, event) pairs there are, although one request has no event at all."""
    model = model_of(din(activation="dice")).train()
    dice = model.representation.units[0].rest[0].act  # type: ignore[index,union-attr]
    assert isinstance(dice, Dice)
    hand, firsts = Hand(model), []
    for n in range(5):
        q = hand.candidate(n)
        for e in PAST[OF[n]]:
            k = hand.event(e)
            x = np.concatenate([q, k, q - k, q * k, hand.tables()["clicks.age"][e[2]]])
            firsts.append(hand.dense("representation.units.0.first", x))
    assert len(firsts) == 10
    model(batch_of())
    assert same(dice.mean, np.mean(firsts, axis=0))
    assert same(dice.var, np.var(firsts, axis=0))


def test_dice_is_not_silu() -> None:
    """p is standardised and the slope is learnt; a Dice with neither would be x·sigmoid(x)."""
    dice = Dice(1).double().train()
    x = torch.tensor([[1.0], [3.0], [8.0]], dtype=torch.float64)
    out = dice(x)
    assert same(out, [[v * sigmoid((v - 4) / math.sqrt(26 / 3 + 1e-8))] for v in (1.0, 3.0, 8.0)])
    assert not torch.allclose(out, torch.nn.functional.silu(x))
    out.sum().backward()
    assert float(dice.slope.grad) == pytest.approx(
        sum(v * sigmoid((4 - v) / math.sqrt(26 / 3)) for v in (1.0, 3.0, 8.0))
    )


def test_mini_batch_aware_step_of_din_by_hand() -> None:
    """w_j <- w_j - lr (g_j + strength / n_j w_j) for the ids of the batch, candidates and past alike; others keep every bit."""
    model = model_of(DIN).float().train()
    batch = single(batch_of())
    sum(model.losses(batch, model(batch)).values(), torch.zeros(())).backward()
    (tables,) = model.embeddings().values()
    taken = tables.take_gradient()
    assert taken is not None
    rows, grad = taken
    present = {("item", i) for i in (3, 4, 5, 6, 7)} | {("category", c) for c in (3, 4, 5)}
    present |= {("user", u) for u in USERS} | {("clicks.age", a) for a in (3, 4, 5, 6)}
    assert set(rows.tolist()) == {tables.start[table] + i for table, i in present}
    before = tables.weight.detach().clone()
    counts = torch.arange(1, len(before) + 1)
    expected = before.clone()
    for row, g in zip(rows.tolist(), grad, strict=True):
        expected[row] -= 0.1 * (g + 0.01 / (row + 1) * before[row])
    MiniBatchAware(0.01, counts).charge(Gradient(rows, grad), before, 1)
    RowSGD(tables.weight.data, 0.1).step(rows, grad)
    assert torch.allclose(tables.weight, expected, atol=1e-7)
    absent = [row for row in range(len(before)) if row not in rows.tolist()]
    assert torch.equal(tables.weight[absent], before[absent])


# ------------------------------------------------------------------------------------------------ DIEN

DIEN: dict[str, Any] = {"name": "dien", "representation": SMALL, "interactions": [tower("dice")]}
NEGATIVES: list[list[Event]] = [[(7, 3, 0), (5, 5, 0), (6, 4, 0)], [], [(4, 4, 0), (6, 3, 0)]]


def test_dien_equals_a_loop_and_gives_its_weights() -> None:
    model = model_of(DIEN)
    hand = Hand(model)
    match, out, logits, weights = hand.p["representation.match.0.weight"], model(batch_of()), [], []
    for n in range(5):
        states = hand.states(OF[n])
        a = softmax([float(h @ match @ hand.candidate(n)) for h in states])  # equation 8
        weights += a
        last = hand.gru("representation.evolve.0", states, a)[-1] if states else np.zeros(2 * D)
        logits.append(hand.tower(hand.row(n, [], [last])) + hand.p["head.bias"][0])
    assert same(out.logits[:, 0], logits)
    assert same(out.attention["clicks"], weights)


def test_dien_knows_the_order_of_the_past() -> None:
    model = model_of(DIEN, seed=3)
    turned = model(batch_of([PAST[0][::-1], [], PAST[2]])).logits
    straight = model(batch_of()).logits
    assert bool(((turned - straight).abs()[:2] > 1e-3).all())
    assert torch.equal(turned[2:], straight[2:])


def test_dien_ends_with_the_last_valid_state() -> None:
    """Also beside a history that runs on for longer, and it is moved by the last event."""
    model = model_of(DIEN)
    longer = [PAST[0], [], PAST[2] * 25]
    assert torch.allclose(model(batch_of(longer)).logits[:3], model(batch_of()).logits[:3], rtol=1e-12)
    other = [[*PAST[0][:2], (6, 5, 3)], [], PAST[2]]
    assert bool((model(batch_of(other)).logits[:2] != model(batch_of()).logits[:2]).all())


def auxiliary_by_hand(model: Model, past: list[list[Event]], negatives: list[list[Event]]) -> float:
    """Equation 6, the mean over all events that have one before them."""
    hand, terms = Hand(model, past), []
    for r, events in enumerate(past):
        states = hand.states(r)
        for t in range(len(events) - 1):
            true, false = hand.event(events[t + 1]), hand.event(negatives[r][t + 1])
            terms.append(-math.log(sigmoid(states[t] @ true)) - math.log(1 - sigmoid(states[t] @ false)))
    return sum(terms) / len(terms)


def test_dien_auxiliary_loss_by_hand() -> None:
    model = model_of(DIEN)
    expected = auxiliary_by_hand(model, PAST, NEGATIVES)
    assert expected > 0.5
    batch = batch_of(negatives=NEGATIVES)
    losses = model.train().losses(batch, model(batch))
    assert set(losses) == {"click", "clicks next event"}
    assert float(losses["clicks next event"].detach()) == pytest.approx(expected, rel=1e-10)
    half = model_of(DIEN | {"representation": SMALL | {"auxiliary": 0.5}}).train()
    assert float(half(batch).losses["clicks next event"].detach()) == pytest.approx(expected / 2, rel=1e-10)
    # one of two chunks of a request of ten candidates: half of the step's loss
    chunk = replace(batch, rows_in_step=10)
    assert float(model(chunk).losses["clicks next event"].detach()) == pytest.approx(expected / 2, rel=1e-10)


def test_dien_auxiliary_loss_needs_two_events() -> None:
    model = model_of(DIEN).train()
    single = [[PAST[0][0]], [], [PAST[2][0]]]
    batch = batch_of(single, negatives=[[NEGATIVES[0][0]], [], [NEGATIVES[2][0]]])
    assert float(model(batch).losses["clicks next event"].detach()) == 0.0


def test_dien_auxiliary_loss_never_looks_at_the_first_negative() -> None:
    model = model_of(DIEN).train()
    found = []
    for first in (NEGATIVES[0][0], (3, 5, 0)):
        negatives = [[first, *NEGATIVES[0][1:]], [], [(first[0], 3, 0), NEGATIVES[2][1]]]
        found.append(float(model(batch_of(negatives=negatives)).losses["clicks next event"].detach()))
    assert found[0] == found[1]
    history = batch_of().histories["clicks"]
    draw = torch.Generator().manual_seed(0)
    states, events, sampled = (torch.randn(5, 4, generator=draw, requires_grad=True) for _ in range(3))
    next_event_loss(states, events, sampled, history.positions).backward()
    oldest, newest = [0, 3], [2, 4]
    for grad, untouched in ((sampled.grad, oldest), (events.grad, oldest), (states.grad, newest)):
        assert grad is not None
        assert [bool((row == 0).all()) for row in grad] == [t in untouched for t in range(5)]


def test_dien_evaluates_and_trains_without_negatives() -> None:
    model = model_of(DIEN)
    assert model.needs.negatives == {"clicks"}
    assert set(model.losses(batch_of(negatives=NEGATIVES), model(batch_of(negatives=NEGATIVES)))) == {"click"}  # eval
    quiet = model_of(DIEN | {"representation": SMALL | {"auxiliary": 0.0}}).train()
    assert quiet.needs.negatives == frozenset()
    assert set(quiet.losses(batch_of(), quiet(batch_of()))) == {"click"}


# ------------------------------------------------------------------------------------------------ ESMM

CHAIN = ("click", "conversion")
ESMM: dict[str, Any] = {"name": "esmm", "representation": SMALL, "interactions": [tower("relu")]}
ESMM_DIN: dict[str, Any] = {
    "name": "esmm_din",
    "representation": SMALL | {"unit": UNIT},
    "interactions": [tower("relu")],
}
# conversions are only known within clicks: elsewhere the weight is 0 and the label may be anything
LABELS = [[1.0, 1.0], [0.0, math.nan], [0.0, 0.0], [1.0, 0.0], [0.0, math.nan]]
WEIGHTS = [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]


def esmm_rows(model: Model) -> tuple[list[float], list[float]]:
    """(a, b): logits of the click and of the conversion tower."""
    hand, bias = Hand(model), model.state_dict()["head.bias"].tolist()
    with_unit = any(name.startswith("representation.units") for name in hand.p)
    rows = [
        hand.row(n, [], [hand.interest(n, hand.scores(n))]) if with_unit else hand.row(n, [hand.pooled(n)])
        for n in range(5)
    ]
    return [hand.tower(x, output=0) + bias[0] for x in rows], [hand.tower(x, output=1) + bias[1] for x in rows]


@pytest.mark.parametrize("table", [ESMM, ESMM_DIN], ids=["esmm", "esmm_din"])
def test_esmm_two_towers_one_product_and_two_losses(table: dict[str, Any]) -> None:
    model = model_of(table, fitted(CHAIN))
    a, b = esmm_rows(model)
    p, q = [sigmoid(v) for v in a], [sigmoid(v) for v in b]
    batch = batch_of(labels=LABELS, weights=WEIGHTS)
    out = model(batch)
    assert [h.name for h in model.heads] == ["click", "conversion", "click&conversion"]
    assert same(out.logits, [[a[n], b[n], math.log(p[n] * q[n] / (1 - p[n] * q[n]))] for n in range(5)])
    losses = model.losses(batch, out)
    assert set(losses) == {"click", "click&conversion"}  # none on pCVR
    both = [1, 0, 0, 0, 0]  # y and z
    assert float(losses["click"].detach()) == pytest.approx(sum(bce(LABELS[n][0], p[n]) for n in range(5)) / 5)
    assert float(losses["click&conversion"].detach()) == pytest.approx(
        sum(bce(both[n], p[n] * q[n]) for n in range(5)) / 5
    )
    assert all(loss.shape == () for loss in losses.values())


def test_esmm_conversion_tower_learns_from_unclicked_rows_by_the_chain_rule() -> None:
    """d/db of -log(1 - pq) is pq(1 - q)/(1 - pq); of -log(pq) it is -(1 - q); d/da alike, plus the click's own p - y."""
    model = model_of(ESMM, fitted(CHAIN))
    seen: list[Tensor] = []

    def keep(_module: object, _given: object, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    model.interactions[0].register_forward_hook(keep)
    batch = batch_of(labels=LABELS, weights=WEIGHTS)
    sum(model.losses(batch, model(batch)).values(), torch.zeros(())).backward()
    a, b = esmm_rows(model)
    expected = []
    for n in range(5):
        p, q, y = sigmoid(a[n]), sigmoid(b[n]), LABELS[n][0]
        if n == 0:  # clicked and bought
            expected.append([(p - y - (1 - p)) / 5, -(1 - q) / 5])
        else:
            inner = p * q / (1 - p * q)
            expected.append([(p - y + inner * (1 - p)) / 5, inner * (1 - q) / 5])
    assert same(seen[0].grad, expected)  # type: ignore[arg-type]
    assert all(expected[n][1] > 0 for n in (1, 2, 4))  # the unclicked rows reach the conversion tower


def test_esmm_where_every_click_converts_is_two_click_losses() -> None:
    model = model_of(ESMM, fitted(CHAIN))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".towers.1." in name:
                parameter.zero_()
        model.head.bias[1] = 800.0  # pCVR is 1 to the last bit
    labels = [[y, y] for y, _ in LABELS]
    batch = batch_of(labels=labels, weights=WEIGHTS)
    losses = model.losses(batch, model(batch))
    assert float(losses["click&conversion"].detach()) == pytest.approx(float(losses["click"].detach()), rel=1e-12)


def exact_product_logit(logits: Sequence[float]) -> float:
    """log(P / (1 - P)) for P the product of the sigmoids, in a hundred digits."""
    with localcontext() as context:
        context.prec = 100
        product = Decimal(1)
        for logit in logits:
            product /= 1 + (-Decimal(logit)).exp()
        return float((product / (1 - product)).ln())


EXTREME = [-50.0, -20.5, -3.0, -1e-3, 0.0, 0.7, 19.5, 50.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_product_logit_is_exact_where_probabilities_are_not(count: int, dtype: torch.dtype) -> None:
    columns = list(itertools.product(EXTREME, repeat=count))
    given = torch.tensor(columns, dtype=dtype, requires_grad=True)
    got = product_logit(list(given.unbind(1)))
    expected = np.array([exact_product_logit([float(v) for v in row]) for row in given.detach()])
    # torch's softplus is linear from 20 on, which leaves out log1p(exp(-20)) = 2e-9
    assert np.allclose(
        got.detach().numpy(),
        expected,
        rtol=1e-6 if dtype == torch.float32 else 1e-8,
        atol=3e-6 if dtype == torch.float32 else 1e-8,
    )
    assert bool((got <= given.min(1).values + 1e-5).all())  # P is below each of its factors
    got.sum().backward()
    assert given.grad is not None
    # d logit P / d a = (1 - p) / (1 - P)
    slopes = [
        [sigmoid(-v) / (sigmoid(-x) if x > -700 else 1.0) for v in row]
        for row, x in zip(columns, expected, strict=True)
    ]
    assert np.allclose(given.grad.numpy(), slopes, rtol=2e-4 if dtype == torch.float32 else 1e-7)


@pytest.mark.parametrize("bias", list(itertools.product([-50.0, 0.0, 50.0], repeat=2)))
def test_esmm_stays_finite_and_below_both_factors(bias: tuple[float, float]) -> None:
    model = model_of(ESMM, fitted(CHAIN)).float()
    batch = single(batch_of(labels=LABELS, weights=WEIGHTS))
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor(bias))
    out = model(batch)
    ctr, cvr, ctcvr = out.logits.unbind(1)
    assert bool((ctcvr <= torch.minimum(ctr, cvr) + 1e-5).all())
    loss = sum(model.losses(batch, out).values(), torch.zeros(()))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_esmm_over_a_chain_of_three_stages() -> None:
    """click -> cart -> buy: each stage conditional, each product over the entire space; unknown stages leave the loss."""
    model = model_of(ESMM, fitted(("click", "cart", "buy")))
    labels = [
        [1.0, 1.0, 1.0],
        [1.0, 1.0, 0.0],
        [1.0, 0.0, math.nan],
        [0.0, math.nan, math.nan],
        [1.0, math.nan, math.nan],
    ]
    # the last row was clicked, and whether it came into the cart is not known: only its click counts
    weights = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    batch = batch_of(labels=labels, weights=weights)
    hand, bias = Hand(model), model.state_dict()["head.bias"].tolist()
    rows = [hand.row(n, [hand.pooled(n)]) for n in range(5)]
    p = [[sigmoid(hand.tower(x, output=k) + bias[k]) for k in range(3)] for x in rows]
    out = model(batch)
    assert [h.name for h in model.heads] == ["click", "cart", "click&cart", "buy", "click&cart&buy"]
    expected = [[v[0], v[1], v[0] * v[1], v[2], v[0] * v[1] * v[2]] for v in p]
    assert same(torch.sigmoid(out.logits), expected)
    losses = {name: float(loss.detach()) for name, loss in model.losses(batch, out).items()}
    assert losses == {
        "click": pytest.approx(sum(bce(y, p[n][0]) for n, y in enumerate([1, 1, 1, 0, 1])) / 5),
        "click&cart": pytest.approx(sum(bce(y, p[n][0] * p[n][1]) for n, y in enumerate([1, 1, 0, 0])) / 5),
        "click&cart&buy": pytest.approx(sum(bce(y, math.prod(p[n])) for n, y in enumerate([1, 0, 0, 0])) / 5),
    }


# ------------------------------------------------------------------------------------------------ DCN


def dcn(layers: int) -> dict[str, Any]:
    return {
        "name": "dcn",
        "representation": SMALL,
        "interactions": [{"kind": "cross", "layers": layers}, tower("relu")],
    }


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_dcn_is_the_explicit_formula_beside_a_tower(layers: int) -> None:
    """x_{l+1}[i] = x_0[i] sum_j x_l[j] w_l[j] + b_l[i] + x_l[i]; no layer: the linear end alone."""
    model = model_of(dcn(layers))
    hand, expected = Hand(model), []
    for n in range(5):
        x0 = x = [float(v) for v in hand.row(n)]
        for w, b in zip(hand.p["interactions.0.weights"], hand.p["interactions.0.biases"], strict=True):
            inner = sum(x[j] * w[j] for j in range(len(x)))
            x = [x0[i] * inner + b[i] + x[i] for i in range(len(x))]
        cross = sum(w * v for w, v in zip(hand.p["interactions.0.last.weight"][0], x, strict=True))
        expected.append(cross + hand.tower(hand.row(n), interaction=1) + hand.p["head.bias"][0])
    assert same(model(batch_of()).logits[:, 0], expected)
    assert model.interactions[0].weights.numel() + model.interactions[0].biases.numel() == 2 * layers * len(x)  # type: ignore[union-attr,operator]


def test_cross_without_biases_only_stretches_its_input() -> None:
    """x_L is a multiple of x_0: what xDeepFM holds against it."""
    model = model_of(dcn(3))
    cross = model.interactions[0]
    width = cross.weights.shape[1]  # type: ignore[union-attr,index]
    with torch.no_grad():
        cross.biases.zero_()  # type: ignore[union-attr,operator]
    cross.last = torch.nn.Linear(width, width, bias=False)  # type: ignore[union-attr]
    cross.last.weight = torch.nn.Parameter(torch.eye(width, dtype=torch.float64))  # shows x_L itself
    found = features_of(model, batch_of())
    x0, xL = found.rows(), cross(found)
    assert xL.shape == (5, width)
    cosine = torch.nn.functional.cosine_similarity(x0, xL, dim=1)
    assert torch.allclose(cosine.abs(), torch.ones(5, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------ all of them

ALL = {
    "lr": {"name": "lr"},
    "fm": FM,
    "base": BASE,
    "din": DIN,
    "din, softmax": din(softmax=True),
    "din, key alone": din(inputs=["key"]),
    "dien": DIEN,
    "dcn": dcn(2),
}


@pytest.mark.parametrize("table", ALL.values(), ids=ALL.keys())
def test_one_candidate_a_request_takes_the_short_way_to_the_same_logits(table: dict[str, Any]) -> None:
    """Then a pair is simply an event and nothing is gathered; a request of several takes the long way."""
    model, batch = model_of(table), batch_of()
    chosen = torch.tensor([1, 2, 4])
    lengths = batch.histories["clicks"].lengths
    alone = replace(
        batch,
        candidate=batch.candidate.map(lambda t: t[chosen]),
        request_of=torch.arange(3),
        labels=batch.labels[chosen],
        weights=batch.weights[chosen],
        pairs={"clicks": pair_up(torch.arange(3), lengths)},
    )
    assert alone.pairs["clicks"].event is None
    assert torch.allclose(model(alone).logits, model(batch).logits[chosen], rtol=1e-12)


# ------------------------------------------------------------------------------------------------ errors of other systems


def test_metrics_are_of_all_rows_at_once_and_the_splits_share_no_row(tmp_path: Path) -> None:
    """Not the mean over batches, which would change with their size (and fail on a batch of one class)."""
    data = tiny.dataset(tmp_path, tasks=1, rich=False)
    model = registry.build(registry.composition("lr"), data.fitted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    splits = {name: data.requests_of(name) for name in ("train", "validation", "test")}
    assert len(np.unique(np.concatenate(list(splits.values())))) == data.requests == sum(map(len, splits.values()))
    measured = []
    for size in (1, 7, 10_000):
        found = predict(model, BatchBuilder(data, model.needs), splits["train"], rows_per_batch=size)
        measured.append(metrics(found)["click"])
    assert measured[0] == measured[1] == measured[2]
    clicked, passed = (found.logits[found.labels[:, 0] == y, 0] for y in (1, 0))
    won = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(clicked, passed)]
    assert measured[0]["auc"] == pytest.approx(np.mean(won))
