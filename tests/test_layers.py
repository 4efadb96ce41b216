"""Layers against numbers worked out by hand and against their plain twins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from finerank.data.batch import Pairs, pair_up
from finerank.errors import UserError
from finerank.layers.activation import Dice, PReLU
from finerank.layers.attention import ActivationUnit, UnitOptions, attend
from finerank.layers.embedding import Tables
from finerank.layers.experts import Experts, GroupedMLP
from finerank.layers.mlp import MLP, BatchNorm, SplitLinear, SplitMLP
from finerank.layers.recurrent import GRU
from finerank.layers.segments import (
    gather,
    segment_max,
    segment_mean,
    segment_softmax,
    segment_sum,
    spread,
    weighted_sum,
)


def test_segments_by_hand() -> None:
    values = torch.tensor([[1.0, -5.0], [3.0, -7.0], [10.0, -1.0]])
    segments = torch.tensor([0, 0, 2])
    assert segment_sum(values, segments, 3).tolist() == [[4.0, -12.0], [0.0, 0.0], [10.0, -1.0]]
    assert segment_mean(values, segments, 3).tolist() == [[2.0, -6.0], [0.0, 0.0], [10.0, -1.0]]
    assert segment_max(values, segments, 3).tolist() == [[3.0, -5.0], [0.0, 0.0], [10.0, -1.0]]
    soft = segment_softmax(torch.tensor([0.0, float(np.log(3.0)), 80.0]), segments, 3)
    assert soft.tolist() == pytest.approx([0.25, 0.75, 1.0])


def test_fast_segment_operators_have_the_gradients_of_the_plain_ones() -> None:
    """The forms that exporters get are the twins: same values, same gradients; segments without values included."""
    draw = torch.Generator().manual_seed(0)
    segments = torch.tensor([0, 0, 0, 2, 5, 5])
    index = torch.tensor([3, 1, 3, 0, 3, 2])
    values, rows = torch.randn(6, 3, generator=draw), torch.randn(7, 3, generator=draw)
    weights, events = torch.randn(6, generator=draw), torch.randn(4, 3, generator=draw)

    def sums(v: Tensor) -> Tensor:
        return v.new_zeros((7, 3)).index_add(0, segments, v)

    cases = [
        (lambda v: segment_sum(v, segments, 7), sums, (values,)),
        (lambda r: spread(r, segments), lambda r: r.index_select(0, segments), (rows,)),
        (lambda e: gather(e, index), lambda e: e.index_select(0, index), (events,)),
        (
            lambda w, e: weighted_sum(w, e, segments, index, 7),
            lambda w, e: sums(w.unsqueeze(1) * e.index_select(0, index)),
            (weights, events),
        ),
        (
            lambda w, v: weighted_sum(w, v, segments, None, 7),
            lambda w, v: sums(w.unsqueeze(1) * v),
            (weights, values),
        ),
    ]
    for fast, plain, inputs in cases:
        results = []
        for fn in (fast, plain):
            given = [x.clone().requires_grad_() for x in inputs]
            out = fn(*given)
            (out * torch.arange(out.numel()).view_as(out)).sum().backward()
            results.append([out.detach(), *(x.grad for x in given)])
        for a, b in zip(*results, strict=True):
            assert a is not None
            assert b is not None
            assert torch.allclose(a, b, atol=1e-5)


def test_segment_operators_without_values() -> None:
    none = torch.empty(0, dtype=torch.int64)
    values = torch.empty(0, 3, requires_grad=True)
    segment_sum(values, none, 2).sum().backward()
    rows = torch.ones(2, 3, requires_grad=True)
    spread(rows, none).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[0.0] * 3] * 2
    assert weighted_sum(torch.empty(0), torch.ones(4, 3), none, none, 2).tolist() == [[0.0] * 3] * 2


def test_segment_softmax_survives_large_logits_and_nothing() -> None:
    soft = segment_softmax(torch.tensor([1e4, 1e4]), torch.tensor([1, 1]), 2)
    assert soft.tolist() == [0.5, 0.5]
    assert segment_softmax(torch.empty(0), torch.empty(0, dtype=torch.int64), 3).shape == (0,)


def test_pairs_by_hand() -> None:
    """Two requests: 2 candidates x 3 events, then 1 candidate x 1 event, then 2 candidates x nothing."""
    pairs = pair_up(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([3, 1, 0]))
    assert pairs.candidate.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert pairs.event is not None
    assert pairs.event.tolist() == [0, 1, 2, 0, 1, 2, 3]
    single = pair_up(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1]))
    assert single.event is None
    assert single.candidate.tolist() == [0, 0, 2]


def test_as_many_candidates_as_requests_but_not_one_each() -> None:
    pairs = pair_up(torch.tensor([0, 0, 2]), torch.tensor([1, 5, 2]))
    assert pairs.event is not None
    assert pairs.candidate.tolist() == [0, 1, 2, 2]
    assert pairs.event.tolist() == [0, 0, 6, 7]


# ------------------------------------------------------------------------------------------------ activations


def numpy_dice(x: np.ndarray, slope: np.ndarray, eps: float = 1e-8) -> np.ndarray:
    p = 1 / (1 + np.exp(-(x - x.mean(0)) / np.sqrt(x.var(0) + eps)))
    return p * x + (1 - p) * slope * x


def test_dice_equals_a_numpy_reference() -> None:
    dice = Dice(3).train()
    slope = torch.tensor([0.0, 0.3, -1.0])
    dice.slope.data = slope
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]) + 2
    expected = numpy_dice(x.numpy().astype(np.float64), slope.numpy())
    assert np.allclose(dice(x).detach().numpy(), expected, atol=1e-5)


def test_dice_of_standardised_input_has_p_sigmoid_and_slope_one_is_identity() -> None:
    x = torch.tensor([[-1.0], [1.0]])
    dice = Dice(1).train()
    assert torch.allclose(dice(x), x * torch.sigmoid(x), atol=1e-6)
    dice.slope.data[:] = 1.0
    assert torch.allclose(dice(x), x)


def test_dice_with_zero_mean_and_vanishing_variance_is_prelu() -> None:
    dice, prelu = Dice(2).eval(), PReLU(2)
    dice.var[:] = 0.0
    dice.slope.data[:] = 0.1
    x = torch.tensor([[2.0, -3.0], [-0.5, 4.0]])
    assert torch.allclose(dice(x), prelu(x), atol=1e-6)
    assert prelu(x).tolist() == [[2.0, pytest.approx(-0.3)], [pytest.approx(-0.05), 4.0]]


def test_dice_in_training_and_evaluation_agree_when_the_statistics_do() -> None:
    dice = Dice(2).train()
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) * 3 + 1
    trained = dice(x)  # the first batch counts fully, so the moving statistics are now the batch's
    assert torch.allclose(dice.eval()(x), trained, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_dice_of_fewer_rows_than_have_a_variance_keeps_its_statistics(rows: int) -> None:
    dice = Dice(2).train()
    dice(torch.randn(10, 2))
    mean, var, steps = dice.mean.clone(), dice.var.clone(), int(dice.steps)
    x = torch.randn(rows, 2)
    trained = dice(x)
    assert trained.shape == (rows, 2)
    assert torch.equal(dice.mean, mean)
    assert torch.equal(dice.var, var)
    assert int(dice.steps) == steps
    assert torch.equal(dice.eval()(x), trained)


def test_batch_norm_lets_one_row_through() -> None:
    norm = BatchNorm(2).train()
    norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    assert torch.isfinite(norm(torch.tensor([[1.0, 2.0]]))).all()
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]


def test_split_linear_equals_one_linear_layer() -> None:
    torch.manual_seed(0)
    split = SplitLinear(3, 2, 4)
    split.bias.data.normal_()
    x_R, x_N, of = torch.randn(2, 3), torch.randn(5, 2), torch.tensor([0, 0, 1, 1, 1])
    joined = torch.cat([x_R[of], x_N], dim=1)
    assert torch.allclose(split(x_R, x_N, of), torch.nn.functional.linear(joined, split.weight, split.bias), atol=1e-6)


def test_mlp_by_hand() -> None:
    mlp = MLP(2, (2,), 1)
    first, last = mlp.layers[0], mlp.layers[2]
    first.weight.data = torch.tensor([[1.0, -1.0], [2.0, 0.5]])  # type: ignore[union-attr]
    last.weight.data = torch.tensor([[3.0, -1.0]])  # type: ignore[union-attr]
    # [1, 2]: hidden relu(1 - 2), relu(2 + 1) = 0, 3 -> -3
    assert mlp(torch.tensor([[1.0, 2.0]])).tolist() == [[-3.0]]


# ------------------------------------------------------------------------------------------------ attention

ALL = ("query", "key", "difference", "product", "inner", "outer")
BLOCKS = [blocks for count in range(1, 7) for blocks in itertools.combinations(ALL, count)] + [ALL[::-1]]


def attention_case(context: int, single: bool = False) -> tuple[Tensor, Tensor, Tensor | None, Pairs]:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([4, 0, 2, 7])
    of = torch.arange(4) if single else torch.tensor([0, 0, 0, 1, 2, 3, 3])
    q = torch.randn(len(of), 6, generator=draw)
    k = torch.randn(int(lengths.sum()), 6, generator=draw)
    c = torch.randn(len(k), context, generator=draw) if context else None
    return q, k, c, pair_up(of, lengths)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("single", [False, True])
def test_factored_first_layer_equals_the_textbook(context: int, single: bool) -> None:
    """For every subset of the blocks, and whatever their order."""
    torch.manual_seed(0)
    wide = {"inner": 1, "outer": 36}
    for inputs in BLOCKS:
        unit = ActivationUnit(6, UnitOptions(inputs=inputs, hidden=(5, 3)), context)  # type: ignore[arg-type]
        unit.first.bias.data.normal_()
        q, k, c, pairs = attention_case(context, single)
        factored, textbook = unit.first_layer(q, k, c, pairs), unit.plain_first_layer(q, k, c, pairs)
        assert factored.shape == (len(pairs.candidate), 5)
        assert torch.allclose(factored, textbook, atol=1e-5), inputs
        assert unit.first.weight.shape == (5, sum(wide.get(block, 6) for block in inputs) + context)


@pytest.mark.parametrize("inputs", [("query", "key"), ("outer",), ("key", "outer", "query")])
def test_factored_first_layer_of_unequal_widths(inputs: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    q, k, c, pairs = attention_case(3)
    unit = ActivationUnit(6, UnitOptions(inputs=inputs), 3, query=4)  # type: ignore[arg-type]
    q = q[:, :4]
    assert torch.allclose(unit.first_layer(q, k, c, pairs), unit.plain_first_layer(q, k, c, pairs), atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "dot", "cosine"])
def test_what_compares_number_by_number_needs_one_width(kind: str) -> None:
    what = {"mlp": "difference"}.get(kind, kind)
    with pytest.raises(UserError) as error:
        ActivationUnit(6, UnitOptions(kind=kind), query=4)  # type: ignore[arg-type]
    assert str(error.value) == (
        f"attention: the query is 4 numbers wide, the key 6, and {what!r} needs one width; give the features one dim, or "
        "set unit.kind = 'bilinear', or unit.inputs = ['query', 'key']"
    )


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize(("softmax", "scale"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("kind", ["mlp", "dot", "bilinear", "cosine"])
def test_unit_equals_a_loop_over_candidates_and_events(kind: str, softmax: bool, scale: bool, prior: bool) -> None:
    """Dot is always divided by sqrt(K), mlp and bilinear under softmax where asked for, cosine never."""
    torch.manual_seed(0)
    options = UnitOptions(kind=kind, softmax=softmax, scale=scale, activation="sigmoid")  # type: ignore[arg-type]
    unit = ActivationUnit(6, options)
    q, k, _, pairs = attention_case(0)
    log_T = -torch.rand(len(k)) if prior else None
    weights = unit(q, k, None, pairs, log_T)
    out = attend(weights, k, pairs, len(q))
    first_event = [0, 4, 4, 6, 13]
    request_of = [0, 0, 0, 1, 2, 3, 3]
    for n, r in enumerate(request_of):
        events = range(first_event[r], first_event[r + 1])
        scores = []
        for t in events:
            if kind == "dot":
                score = float(q[n] @ k[t]) / 6**0.5
            elif kind == "bilinear":
                score = float((k[t] @ unit.form.weight @ q[n]).detach())
            elif kind == "cosine":
                score = float(q[n] @ k[t] / (q[n].norm() * k[t].norm()))
            else:
                x = torch.cat([q[n], k[t], q[n] - k[t], q[n] * k[t]])
                score = float(unit.rest(unit.first(x)[None])[0, 0].detach())
            if softmax and scale and kind in ("mlp", "bilinear"):
                score /= 6**0.5
            before = 0.0 if log_T is None else float(log_T[t])
            scores.append(score + before if softmax else score * float(np.exp(before)))
        if softmax and scores:
            exp = np.exp(np.array(scores) - max(scores))
            scores = list(exp / exp.sum())
        expected = sum((s * k[t] for s, t in zip(scores, events, strict=True)), torch.zeros(6))
        assert torch.allclose(out[n], expected, atol=1e-5)
        assert weights[pairs.candidate == n].tolist() == pytest.approx(scores, abs=1e-5)


def test_cosine_of_a_zero_vector_is_zero_and_its_gradient_is_small() -> None:
    unit = ActivationUnit(2, UnitOptions(kind="cosine"))
    q = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    k = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    weights = unit(q, k, None, pair_up(torch.tensor([0, 0]), torch.tensor([2])))
    assert weights.tolist() == pytest.approx([0.0, 0.0, 11 / 5 / 5**0.5, 0.0])
    weights.sum().backward()
    for x in (q, k):
        assert x.grad is not None
        assert float(x.grad.abs().max()) < 2.0


def test_constant_weight_is_sum_pooling_and_softmax_of_it_the_mean() -> None:
    q, k, _, pairs = attention_case(0)
    for softmax, pool in ((False, segment_sum), (True, segment_mean)):
        unit = ActivationUnit(6, UnitOptions(softmax=softmax))
        unit.rest[-1].weight.data.zero_()  # type: ignore[union-attr]
        unit.rest[-1].bias.data.fill_(1.0)  # type: ignore[union-attr]
        assert pairs.event is not None
        expected = pool(k[pairs.event], pairs.candidate, len(q))
        assert torch.allclose(attend(unit(q, k, None, pairs), k, pairs, len(q)), expected, atol=1e-5)


def test_duplicated_history_doubles_the_interest_only_without_softmax() -> None:
    """The intensity of interest (section 4.3): softmax forgets it."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 6), torch.randn(3, 6)
    once = pair_up(torch.tensor([0]), torch.tensor([3]))
    twice = pair_up(torch.tensor([0]), torch.tensor([6]))
    for softmax, factor in ((False, 2.0), (True, 1.0)):
        unit = ActivationUnit(6, UnitOptions(softmax=softmax, activation="relu"))
        one = attend(unit(q, k, None, once), k, once, 1)
        two = attend(unit(q, torch.cat([k, k]), None, twice), torch.cat([k, k]), twice, 1)
        assert torch.allclose(two, factor * one, atol=1e-5)


def test_dot_kind_has_no_parameters() -> None:
    assert list(ActivationUnit(4, UnitOptions(kind="dot")).parameters()) == []


# ------------------------------------------------------------------------------------------------ recurrence


def sequences() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    lengths = torch.tensor([3, 0, 5, 1, 3])
    segments = torch.repeat_interleave(lengths)
    positions = torch.arange(12) - (lengths.cumsum(0) - lengths)[segments]
    return torch.randn(12, 4, generator=draw), torch.rand(12, generator=draw), segments, positions, lengths


def loop(gru: GRU, x: Tensor, a: Tensor | None, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Element by element, as the equations stand in the papers."""
    H = gru.hidden
    W, b, U = gru.input.weight, gru.input.bias, gru.state.weight
    states, last, at = [], [], 0
    for n in lengths.tolist():
        h = torch.zeros(H)
        for t in range(at, at + n):
            i = a[t] * x[t] if gru.cell == "aigru" and a is not None else x[t]
            u = torch.sigmoid(W[:H] @ i + U[:H] @ h + b[:H])
            r = torch.sigmoid(W[H : 2 * H] @ i + U[H : 2 * H] @ h + b[H : 2 * H])
            c = torch.tanh(W[2 * H :] @ i + r * (U[2 * H :] @ h) + b[2 * H :])
            if a is not None and gru.cell == "agru":
                u = a[t]
            elif a is not None and gru.cell == "augru":
                u = a[t] * u
            elif a is not None and gru.cell == "augru_official":
                u = a[t] + (1 - a[t]) * u
            h = (1 - u) * h + u * c
            states.append(h)
        last.append(h)
        at += n
    return torch.stack(states), torch.stack(last)


@pytest.mark.parametrize("cell", ["gru", "aigru", "agru", "augru", "augru_official"])
def test_packed_and_masked_walks_equal_the_equations(cell: str) -> None:
    torch.manual_seed(0)
    gru = GRU(4, 3, cell)  # type: ignore[arg-type]
    gru.input.bias.data.normal_()
    x, a, segments, positions, lengths = sequences()
    attention = None if cell == "gru" else a
    expected = loop(gru, x, attention, lengths)
    for walk in (gru._packed, gru._masked):
        states, last = walk(gru.project(x), attention, segments, positions, lengths, 6)
        assert torch.allclose(states, expected[0], atol=1e-6)
        assert torch.allclose(last, expected[1], atol=1e-6)


def test_attention_limits_of_the_cells() -> None:
    """a = 1: AUGRU is the GRU; a = 0: AUGRU keeps the state, the official form is a plain GRU; AGRU with a = 1 is c."""
    torch.manual_seed(0)
    x, _, segments, positions, lengths = sequences()
    ones, zeros = torch.ones(12), torch.zeros(12)
    gru = GRU(4, 3)

    def last(cell: str, a: Tensor | None) -> Tensor:
        gru.cell = cell  # type: ignore[assignment]
        out: Tensor = gru(gru.project(x), a, segments, positions, lengths, 6)[1]
        return out

    plain = last("gru", None)
    assert torch.allclose(last("augru", ones), plain, atol=1e-6)
    assert torch.allclose(last("augru", zeros), torch.zeros_like(plain))
    assert torch.allclose(last("augru_official", zeros), plain, atol=1e-6)
    gru.cell = "agru"
    h = torch.randn(1, 3)
    x_r, h_r = (gru.project(x[:1]) + gru.input.bias)[:, 3:6], gru.state(h)[:, 3:6]
    c = torch.tanh((gru.project(x[:1]) + gru.input.bias)[:, 6:] + torch.sigmoid(x_r + h_r) * gru.state(h)[:, 6:])
    assert torch.allclose(gru.step(gru.project(x[:1]), torch.ones(1), h), c, atol=1e-6)


def test_recurrence_without_any_element() -> None:
    gru = GRU(4, 3)
    none = torch.empty(0, dtype=torch.int64)
    states, last = gru(gru.project(torch.empty(0, 4)), None, none, none, torch.zeros(2, dtype=torch.int64), 5)
    assert states.shape == (0, 3)
    assert last.tolist() == [[0.0] * 3] * 2


# ------------------------------------------------------------------------------------------------ embedding


def test_tables_gather_touches_distinct_rows_only() -> None:
    torch.manual_seed(0)
    tables = Tables({"a": 5, "b": 4}, 2, 0.1).train()
    ids = torch.tensor([3, 5 + 3, 3, 1, 5 + 3])
    out = tables(ids)
    assert torch.equal(out, tables.weight[ids])
    (out * torch.arange(5.0).unsqueeze(1)).sum().backward()
    taken = tables.take_gradient()
    assert taken is not None
    grads = {int(r): g.tolist() for r, g in zip(*taken, strict=True)}
    assert grads == {3: [2.0, 2.0], 8: [5.0, 5.0], 1: [3.0, 3.0]}
    assert tables.weight.grad is None
    assert tables.take_gradient() is None


def test_gradients_of_two_forward_passes_are_summed_per_row() -> None:
    tables = Tables({"a": 6}, 1, 0.1).train()
    tables(torch.tensor([3, 4])).sum().backward()
    tables(torch.tensor([4, 5])).sum().backward()
    taken = tables.take_gradient()
    assert taken is not None
    assert {int(r): float(g) for r, g in zip(*taken, strict=True)} == {3: 1.0, 4: 2.0, 5: 1.0}


def test_padding_rows_are_zero() -> None:
    tables = Tables({"a": 5, "b": 4}, 3, 1.0)
    assert tables.weight[0].tolist() == tables.weight[5].tolist() == [0.0] * 3
    assert bool((tables.table("b")[1:] != 0).all())


def test_layers_around_a_batch_norm_begin_smaller() -> None:
    """Uniform within 1 / sqrt(inputs) before it, a tenth of that where logits are made behind it, whoever makes them."""
    torch.manual_seed(0)
    mlp = MLP(100, (200,), 50, batch_norm=True)
    split = SplitMLP(40, 60, (200,), 50, batch_norm=True)
    experts = Experts(3, 40, 60, (200,), batch_norm=True)
    towers = GroupedMLP(3, 100, (200,), 50, batch_norm=True)
    first = (mlp.layers[0], split.first, experts.first, towers.layers[0])
    last = (mlp.layers[2], split.rest[1].layers[0], towers.layers[2])  # type: ignore[index,union-attr]
    for bound, layers in ((1 / 100**0.5, first), (0.1 / 200**0.5, last)):
        for layer in layers:
            weight = layer.weight.detach()  # type: ignore[union-attr,operator]
            assert isinstance(weight, Tensor)
            assert 0.98 * bound < float(weight.abs().max()) <= bound
            assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    other = MLP(100, (200,), 50).layers[2].weight
    assert isinstance(other, Tensor)
    assert float(other.detach().std()) == pytest.approx((2 / 250) ** 0.5, rel=0.03)
    plain = SplitMLP(40, 60, (200,)).first.weight
    assert float(plain.detach().std()) == pytest.approx((2 / 300) ** 0.5, rel=0.03)
