"""DIEN's switches between paper and code, and recurrent pooling: by hand, and the limits that tie them together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import (
    OF,
    PAST,
    SMALL,
    D,
    Event,
    Hand,
    batch_of,
    features_of,
    model_of,
    same,
    sigmoid,
    softmax,
    tower,
)

from finerank.layers.recurrent import GRU, LSTM

DIEN: dict[str, Any] = {"name": "dien", "representation": SMALL, "interactions": [tower("dice")]}
NEGATIVES: list[list[Event]] = [[(7, 3, 0), (5, 5, 0), (6, 4, 0)], [], [(4, 4, 0), (6, 3, 0)]]
UNIT = {"attention": "unit", "unit": {"hidden": [3, 2], "activation": "prelu"}}


def dien(**options: Any) -> dict[str, Any]:
    return DIEN | {"representation": SMALL | options}


def unit_scores(hand: Hand, n: int, states: list[np.ndarray]) -> list[float]:
    """DIN's network over [q, h, q - h, q∘h] with q = PReLU(W e + b): the authors' code."""
    q = hand.act("representation.match.0.1", hand.dense("representation.match.0.0", hand.candidate(n)))
    out = []
    for h in states:
        x = hand.act(
            "representation.units.0.rest.0.act",
            hand.dense("representation.units.0.first", np.concatenate([q, h, q - h, q * h])),
        )
        x = hand.act("representation.units.0.rest.2.act", hand.dense("representation.units.0.rest.1", x))
        out.append(float(hand.dense("representation.units.0.rest.3", x)[0]))
    return out


@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
@pytest.mark.parametrize("attention", ["bilinear", "unit"])
def test_dien_attention_and_extra_fields_by_hand(attention: str, normalise: str) -> None:
    both = UNIT if attention == "unit" else {}
    model = model_of(dien(**both, normalise=normalise, also=["sum", "sum_product"]))
    hand, out, weights, logits = Hand(model), model(batch_of()), [], []
    for n in range(5):
        states = hand.states(OF[n])
        if attention == "unit":
            a = unit_scores(hand, n, states)
        else:
            a = [float(h @ hand.p["representation.match.0.weight"] @ hand.candidate(n)) for h in states]
        a = [sigmoid(v) for v in a] if normalise == "sigmoid" else softmax(a)
        last = hand.gru("representation.evolve.0", states, a)[-1] if states else np.zeros(2 * D)
        total = hand.pooled(n)
        weights += a
        logits.append(hand.tower(hand.row(n, [total], [last, hand.candidate(n) * total])) + hand.p["head.bias"][0])
    assert same(out.attention["clicks"], weights)
    assert same(out.logits[:, 0], logits)


def test_dien_discriminator_of_the_code_by_hand() -> None:
    model = model_of(dien(discriminator="mlp")).train()
    hand, terms = Hand(model), []

    def logit(h: np.ndarray, e: np.ndarray) -> float:
        x = np.concatenate([h, e])
        for layer in (0, 2):
            x = np.array([sigmoid(v) for v in hand.dense(f"representation.tell.0.layers.{layer}", x)])
        return float(hand.dense("representation.tell.0.layers.4", x)[0])

    for r, events in enumerate(PAST):
        states = hand.states(r)
        for t in range(len(events) - 1):
            true, false = hand.event(events[t + 1]), hand.event(NEGATIVES[r][t + 1])
            terms += [-math.log(sigmoid(logit(states[t], true))) - math.log(1 - sigmoid(logit(states[t], false)))]
    batch = batch_of(negatives=NEGATIVES)
    losses = model.losses(batch, model(batch))
    assert float(losses["clicks next event"].detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_dien_without_the_auxiliary_loss_has_no_discriminator() -> None:
    model = model_of(dien(discriminator="mlp", auxiliary=0.0))
    assert not [name for name, _ in model.named_parameters() if ".tell." in name]
    assert model.needs.negatives == frozenset()


@pytest.mark.parametrize("cell", ["gru", "aigru", "agru", "augru", "augru_official"])
def test_every_cell_of_dien_ignores_who_else_is_in_the_batch(cell: str) -> None:
    """And steers by the candidate, but for the plain GRU: its two candidates of one request end in one state."""
    model = model_of(dien(cell=cell))
    longer = [PAST[0], [], PAST[2] * 25]
    one, two = features_of(model, batch_of()).fields_N, features_of(model, batch_of(longer)).fields_N
    assert torch.allclose(two[:3], one[:3], rtol=1e-12)
    assert torch.equal(one[0, 2:], one[1, 2:]) == (cell == "gru")


# ------------------------------------------------------------------------------------------------ recurrent pooling


def rnn(**options: Any) -> dict[str, Any]:
    return {"name": "rnn", "representation": SMALL | options, "interactions": [tower()]}


def lstm_by_hand(hand: Hand, inputs: list[np.ndarray]) -> list[np.ndarray]:
    W, b, U = (hand.p[f"representation.cells.0.{name}"] for name in ("input.weight", "input.bias", "state.weight"))
    H = len(U) // 4
    h, c, out = np.zeros(H), np.zeros(H), []
    for x in inputs:
        z = W @ x + U @ h + b
        i, f, o = (1 / (1 + np.exp(-z[k * H : (k + 1) * H])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(z[2 * H : 3 * H])
        h = o * np.tanh(c)
        out.append(h)
    return out


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent_pooling_equals_a_loop(cell: str, pooling: str) -> None:
    model = model_of(rnn(cell=cell, pooling=pooling))
    hand, expected = Hand(model), []
    for n in range(5):
        events = [hand.event(e) for e in PAST[OF[n]]]
        states = lstm_by_hand(hand, events) if cell == "lstm" else hand.gru("representation.cells.0", events)
        past = np.zeros(2 * D)
        if states:
            past = states[-1] if pooling == "last" else np.mean(states, axis=0)
        expected.append(hand.tower(hand.row(n, [past])) + hand.p["head.bias"][0])
    assert same(model(batch_of()).logits[:, 0], expected)


def test_recurrent_pooling_may_read_ages() -> None:
    older = [[(i, c, 6) for i, c, _ in p] for p in PAST]
    for age in (False, True):
        model = model_of(rnn(age=age))
        assert torch.equal(model(batch_of(older)).logits, model(batch_of()).logits) == (not age)


def test_recurrent_pooling_ignores_who_else_is_in_the_batch() -> None:
    for cell in ("gru", "lstm"):
        model = model_of(rnn(cell=cell))
        longer = [PAST[0], [], PAST[2] * 25]
        assert torch.allclose(model(batch_of(longer)).logits[:3], model(batch_of()).logits[:3], rtol=1e-12)
        turned = model(batch_of([PAST[0][::-1], [], PAST[2]])).logits
        assert bool((turned[:2] != model(batch_of()).logits[:2]).all())


def test_both_walks_of_the_lstm_are_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = LSTM(4, 3), torch.nn.LSTM(4, 3)
    assert ours.input.bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6  # memory lasts at first
    ours.input.bias.data.normal_()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.input.weight)
        theirs.weight_hh_l0.copy_(ours.state.weight)
        theirs.bias_ih_l0.copy_(ours.input.bias)
        theirs.bias_hh_l0.zero_()
    lengths = torch.tensor([3, 0, 5, 1])
    segments = torch.repeat_interleave(lengths)
    positions = torch.arange(9) - (lengths.cumsum(0) - lengths)[segments]
    x = torch.randn(9, 4)
    expected = [theirs(part)[0] for part in x.split(lengths.tolist()) if len(part)]
    for walk in (ours._packed, ours._masked):
        states, last = walk(ours.project(x), None, segments, positions, lengths, 6)
        assert torch.allclose(states[:, :3], torch.cat(expected), atol=1e-6)
        assert torch.allclose(last[[0, 2, 3], :3], torch.stack([e[-1] for e in expected]), atol=1e-6)
        assert last[1].tolist() == [0.0] * 6


@pytest.mark.parametrize("cell", [GRU, LSTM])
def test_positions_that_count_down_walk_backwards(cell: Any) -> None:
    torch.manual_seed(0)
    made, x = cell(4, 3), torch.randn(5, 4)
    lengths, segments = torch.tensor([2, 3]), torch.tensor([0, 0, 1, 1, 1])
    down, up = torch.tensor([1, 0, 2, 1, 0]), torch.tensor([0, 1, 0, 1, 2])
    turned = x[[1, 0, 4, 3, 2]]
    for walk in (made._packed, made._masked):
        states, last = walk(made.project(x), None, segments, down, lengths, 4)
        there, end = walk(made.project(turned), None, segments, up, lengths, 4)
        assert torch.allclose(states, there[[1, 0, 4, 3, 2]], atol=1e-6)
        assert torch.allclose(last, end, atol=1e-6)
