"""The Behavior Sequence Transformer against loops, and the jagged transformer against its padded twin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import OF, PAST, SMALL, Hand, batch_of, features_of, fitted, model_of, same, tower
from torch import Tensor, nn
from transformer_by_hand import block

from finerank.data.batch import Pairs
from finerank.errors import UserError
from finerank.layers import transformer
from finerank.layers.transformer import Attention, Block, grids
from finerank.models import registry


def bst(**options: Any) -> dict[str, Any]:
    representation = SMALL | {"heads": 2, "feed": 2} | options
    return {"name": "bst", "representation": representation, "interactions": [tower("relu")]}


def elements(hand: Hand, n: int, position: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """(candidate, events oldest first), each beside its position."""
    past, places = PAST[OF[n]], hand.p["representation.places.0"]
    events = []
    for t, e in enumerate(past):
        place = np.zeros(0) if position == "none" else places[(len(past) - t) % len(places)]
        place = hand.tables()["clicks.age"][e[2]] if position == "time" else place
        events.append(np.concatenate([hand.event(e), place]))
    return np.concatenate([hand.candidate(n), places[0] if position != "none" else np.zeros(0)]), events


@pytest.mark.parametrize("position", ["time", "order", "none"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_one_block_equals_a_loop_and_gives_its_weights(heads: int, position: str) -> None:
    """Of 4 or 6 numbers in 4 heads the heads are rounded up to 1 or 2 each."""
    model = model_of(bst(heads=heads, position=position))
    hand, out, logits, weights = Hand(model), model(batch_of()), [], []
    for n in range(5):
        x, events = elements(hand, n, position)
        y, by_head = block(hand.p, "representation.blocks.0.0", heads, "leaky_relu", x, [*events, x])
        weights += [float(np.mean([w[t] for w in by_head])) for t in range(len(events))]
        logits.append(hand.tower(hand.row(n, [], [y])) + hand.p["head.bias"][0])
    assert same(out.logits[:, 0], logits)
    assert same(out.attention["clicks"], weights)


@pytest.mark.parametrize("sight", ["all", "past"])
def test_three_blocks_equal_a_loop(sight: str) -> None:
    """all: every element attends to all of its candidate's sequence, the candidate included."""
    model = model_of(bst(blocks=3, sight=sight))
    hand, out, logits = Hand(model), model(batch_of()), []
    for n in range(5):
        x, events = elements(hand, n, "time")
        for layer in range(3):
            at = f"representation.blocks.0.{layer}"
            seen = [*events, x] if sight == "all" else events
            after = [block(hand.p, at, 2, "leaky_relu", e, seen)[0] for e in events]
            x, events = block(hand.p, at, 2, "leaky_relu", x, [*events, x])[0], after
        logits.append(hand.tower(hand.row(n, [], [x])) + hand.p["head.bias"][0])
    assert same(out.logits[:, 0], logits)


def test_sight_is_no_matter_with_one_block() -> None:
    assert torch.equal(model_of(bst())(batch_of()).logits, model_of(bst(sight="past"))(batch_of()).logits)


def test_without_positions_the_order_of_the_past_is_irrelevant() -> None:
    turned = [PAST[0][::-1], [], PAST[2]]
    for position in ("none", "order"):
        model = model_of(bst(position=position, blocks=2))
        one, two = model(batch_of()).logits, model(batch_of(turned)).logits
        assert torch.allclose(one, two, rtol=1e-12) == (position == "none")


@pytest.mark.parametrize("sight", ["all", "past"])
def test_a_longer_history_in_the_batch_changes_nothing(sight: str) -> None:
    """Grids of other shapes, the same numbers: 40 events beside 3."""
    model = model_of(bst(blocks=2, sight=sight))
    longer = [PAST[0], [], PAST[2] * 20]
    assert torch.allclose(model(batch_of(longer)).logits[:3], model(batch_of()).logits[:3], rtol=1e-10)


def test_a_candidate_without_past_attends_to_itself_alone() -> None:
    model = model_of(bst())
    found = features_of(model, batch_of())
    assert bool(found.attention["clicks"][:3].sum() < 1)  # the rest is the candidate's own
    hand = Hand(model)
    x, _ = elements(hand, 2, "time")
    assert same(found.fields_N[2, 2:].flatten(), block(hand.p, "representation.blocks.0.0", 2, "leaky_relu", x, [x])[0])


def test_what_only_events_have_is_added_to_them() -> None:
    made = fitted()
    history = replace(made.histories["clicks"], numbers=("price",))
    model = model_of(bst(), replace(made, histories={"clicks": history}))
    batch = batch_of()
    clicks = batch.histories["clicks"]
    events = replace(clicks.events, numbers=torch.arange(5.0, dtype=torch.float64).unsqueeze(1))
    batch = replace(batch, histories={"clicks": replace(clicks, events=events)})
    hand, x, past = Hand(model), *elements(Hand(model), 0, "time")
    past = [e + t * hand.p["representation.context.0.weight"][:, 0] for t, e in enumerate(past)]
    expected = block(hand.p, "representation.blocks.0.0", 2, "leaky_relu", x, [*past, x])[0]
    assert same(features_of(model, batch).fields_N[0, 2:].flatten(), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"blocks": 0}, "blocks = 0, heads = 8, feed = 4; accepted: whole numbers of at least 1"),
        ({"dropout": 1.0}, "dropout = 1.0; accepted: from 0"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        registry.parse({"name": "bst", "representation": options})


def test_positions_by_time_need_times() -> None:
    made = fitted()
    past = replace(made.histories["clicks"], ids=made.histories["clicks"].ids[:-1])
    listed = replace(made, histories={"clicks": past})
    with pytest.raises(UserError, match=r"position = 'time', and events of 'clicks' have no times: list columns"):
        model_of(bst(position="time"), listed)
    assert model_of(bst(), listed).representation.position == {"clicks": "order"}


# ------------------------------------------------------------------------------------------------ the jagged transformer


def jagged(lengths: list[int], width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = torch.tensor(lengths)
    segments = torch.repeat_interleave(made)
    positions = torch.arange(len(segments)) - (made.cumsum(0) - made)[segments]
    x = torch.randn(len(segments), width, generator=draw, dtype=torch.float64)
    return x, segments, positions, made


LENGTHS = [3, 0, 20, 8, 9, 1, 0, 40]


def test_grids_hold_every_element_once_by_classes_of_length() -> None:
    x, segments, positions, lengths = jagged(LENGTHS, 2)
    found = grids(segments, positions, lengths, 50)
    assert [(g.rows, g.length) for g in found] == [(3, 8), (1, 9), (1, 20), (1, 40)]
    assert sorted(torch.cat([g.elements for g in found]).tolist()) == list(range(len(x)))  # type: ignore[misc]
    for g in found:
        assert torch.equal(g.take(g.fill(x)), x[g.elements])
        assert int(g.there().sum()) == len(g.cell)
    one = grids(*jagged([2, 0, 5], 2)[1:], 50)
    assert [(g.rows, g.length, g.elements) for g in one] == [(2, 5, None)]
    assert grids(*jagged([0, 0], 2)[1:], 50) == []


def test_jagged_attention_is_torchs_own_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """In classes of length, and in the one grid that exporters get, in any order of elements."""
    x, segments, positions, lengths = jagged(LENGTHS, 6)
    torch.manual_seed(0)
    ours, theirs = Attention(6, 2).double(), nn.MultiheadAttention(6, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    expected = [theirs(part.unsqueeze(0), part.unsqueeze(0), part.unsqueeze(0))[0][0] for part in x.split(LENGTHS)]
    assert torch.allclose(ours(x, grids(segments, positions, lengths, 50)), torch.cat(expected), rtol=1e-10)
    turn = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    turned = ours(x[turn], grids(segments[turn], positions[turn], lengths, 50))
    assert torch.allclose(turned, torch.cat(expected)[turn], rtol=1e-10)
    monkeypatch.setattr(transformer.torch.compiler, "is_exporting", lambda: True)
    whole = grids(segments, positions, lengths, 50)
    monkeypatch.undo()
    assert [(g.rows, g.length) for g in whole] == [(8, 50)]
    assert torch.allclose(ours(x, whole), torch.cat(expected), rtol=1e-10)


def test_groups_confine_attention() -> None:
    x, segments, positions, lengths = jagged([5], 4)
    groups = torch.tensor([0, 0, 3, 3, 3])
    torch.manual_seed(0)
    layer = Attention(4, 2).double()
    apart = [layer(part, grids(*jagged([len(part)], 4)[1:], 9)) for part in x.split([2, 3])]
    assert torch.allclose(layer(x, grids(segments, positions, lengths, 9), groups), torch.cat(apart), rtol=1e-10)


def test_a_target_row_is_the_last_row_of_the_whole_sequence() -> None:
    """`of_targets` is what the full block gives for the element that comes last."""
    x, segments, positions, lengths = jagged([4], 6)
    torch.manual_seed(0)
    layer = Block(6, 2, 12, "leaky_relu", 0.0).double()
    whole = layer(x, grids(segments, positions, lengths, 9))
    alone, weights = layer.of_targets(x[3:], x[:3], Pairs(torch.zeros(3, dtype=torch.int64), None))
    assert torch.allclose(alone, whole[3:], rtol=1e-10)
    assert weights.shape == (3, 2)
