"""What holds for every part over fields and each of its options: sharing by request, several outputs, graphs, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_fields import FAMILY, LATE, of_part, one_sided, table, without_numbers
from by_hand import batch_of, fitted, model_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from finerank.export.graph import example_batch, exported, flatten
from finerank.layers.products import inner_products, products
from finerank.models.composition import Features, Widths
from finerank.models.ffm import met_within
from finerank.models.xdeepfm import CIN, _Bilinear


@pytest.mark.parametrize("kind", FAMILY)
def test_the_request_s_side_once_per_request_is_the_same_as_repeated_in_every_row(kind: str) -> None:
    """The same weights over a schema in which every field is the candidate's: nothing is shared between rows there."""
    split = model_of(table(kind), without_numbers(fitted(history=False)))
    whole = model_of(table(kind), one_sided(fitted(history=False)))
    found = split.state_dict()
    for name, value in whole.state_dict().items():
        if found[name].shape == value.shape:
            value.copy_(found[name])
        elif name.endswith("_N"):  # a parameter in two parts, request's and candidate's
            (axis,) = (i for i, (a, b) in enumerate(zip(value.shape, found[name].shape, strict=True)) if a != b)
            value.copy_(torch.cat([found[f"{name[:-2]}_R"], found[name]], axis))
        else:
            assert not value.numel()
    batch = batch_of(history=False)
    batch = replace(
        batch,
        request=replace(batch.request, numbers=batch.request.numbers[:, :0]),
        candidate=replace(batch.candidate, numbers=batch.candidate.numbers[:, :0]),
    )
    user = batch.request.ids[batch.request_of]
    repeated = replace(
        batch,
        request=replace(batch.request, ids=batch.request.ids[:, :0]),
        candidate=replace(batch.candidate, ids=torch.cat([user, batch.candidate.ids], dim=1)),
    )
    assert torch.allclose(split(batch).logits, whole(repeated).logits, rtol=1e-10)
    assert len(split(batch).logits.unique()) > 2


@pytest.mark.parametrize("kind", [k for k in FAMILY if not k.startswith("ffm")])
def test_a_column_of_several_is_the_model_of_one_output(kind: str) -> None:
    """With the column's own weights, whatever the parameter they lie in; everything else is shared."""
    two, one = model_of(table(kind), fitted(("click", "conversion"))), model_of(table(kind))
    both = of_part(two, 0)
    assert both.shape == (5, 2)
    assert not torch.allclose(both[:, 0], both[:, 1])
    one.representation.load_state_dict(two.representation.state_dict())
    of_two, of_one = (list(m.interactions[0].state_dict().values()) for m in (two, one))
    for column in range(2):
        for wide, narrow in zip(of_two, of_one, strict=True):
            if wide.shape == narrow.shape:
                narrow.copy_(wide)
            else:
                (axis,) = (i for i, (a, b) in enumerate(zip(wide.shape, narrow.shape, strict=True)) if a != b)
                narrow.copy_(wide.chunk(2, axis)[column])
        assert torch.allclose(of_part(one, 0)[:, 0], both[:, column], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILY | LATE)
def test_the_graph_of_every_option_equals_the_model(kind: str) -> None:
    """torch.export's program, at sizes that it did not see; the matrix makes the whole trip with the defaults."""
    schema = fitted()
    model = model_of(table(kind)).float()
    program = exported(model, schema).module()
    for candidates, events in (((1,), (1,)), ((3, 1, 5), (0, 2, 1)), ((1, 1, 1), (0, 0, 0))):
        batch = example_batch(schema, candidates, events, seed=5)
        with torch.no_grad():
            found = program(*flatten(batch, schema).values())[0]
            assert torch.allclose(found, model.eval()(batch).logits, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ memory


class Sizes(TorchDispatchMode):
    """Remembers how many numbers each operator's result holds."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.made += [
                t.numel() for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)
            ]
        return out


def sizes(run: Callable[[], Tensor]) -> list[int]:
    """Of forward and backward pass together, ascending."""
    with Sizes() as seen:
        run().sum().backward()
    return sorted(seen.made)


N, F, D = 16, 12, 4


def features() -> Features:
    v = torch.randn(N, F, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    batch = replace(batch_of(), request_of=torch.arange(N))
    return Features(batch, v[:, :0], v, torch.zeros(N, 0), torch.zeros(N, 0))


def test_a_cin_never_makes_the_tensor_of_all_outer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """[N, H, F, D] would be 16 · 20 · 12 · 4 numbers; a slice of it is made, and maps are 16 · 20 · 4."""
    part = CIN(fitted(), Widths(D, 0, F, 0, 0), 1, CIN.Options(maps=(20, 20)))
    monkeypatch.setattr(_Bilinear, "SLICE", 1000)
    weights = 20 * 20 * F
    assert [n for n in sizes(lambda: part(features())) if n not in (weights, 20 * F * F)][-1] == N * 20 * D
    monkeypatch.setattr(_Bilinear, "SLICE", 1 << 30)
    assert sizes(lambda: part(features()))[-1] == N * D * F * F  # at once; the last layer is folded to one map first


def test_products_of_pairs_are_not_gathered() -> None:
    """Only the products and their gradient are as large as that; neither side of the pairs is."""
    pairs = N * F * (F - 1) // 2 * D
    x = torch.randn(N, F, D).requires_grad_()
    assert [n for n in sizes(lambda: products(x, x)) if n > N * F * D] == [pairs]
    assert sizes(lambda: inner_products(x))[-1] == max(N * F * F, N * F * D)


def test_vectors_by_field_are_copied_once() -> None:
    """The partner of each vector, in the forward pass; the backward pass makes the gradient and nothing else as large."""
    v = torch.randn(N, F, F - 1, D).requires_grad_()
    assert sizes(lambda: met_within(v)).count(v.numel()) == 2
