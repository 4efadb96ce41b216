"""Catalogue models: a vector of the request against vectors of items, learnt by a softmax over the items themselves.

logit(candidate) = <u, v_item> + b_item, the same number that ranks a whole catalogue; here it scores the candidates given.
The representation brings u, v and b (`fields_R` and `fields_N` of one field each, b as the candidate's number) and the loss
over the catalogue; `match` multiplies; the heads `catalogue` only move the score to the base rate and have no loss, so what
is learnt is the catalogue alone. The order of scores is what such a model says; for probabilities fit a line through them
after training (training.sampling.recalibrate), or take the heads `tasks`, which learn the labels beside the catalogue.

R requests · N candidates · V rows of the item's table · M drawn items · D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Drawn
from finerank.errors import UserError
from finerank.layers.embedding import Tables
from finerank.layers.segments import spread
from finerank.models.composition import Features, Head, Heads, Interaction, Widths
from finerank.models.plain import initial_bias
from finerank.models.registry import part
from finerank.schema import FIRST, FittedSchema


@dataclass(frozen=True)
class Item:
    """What the catalogue consists of.

    history, name  whose column `name` holds the items of the past
    past, own      where the item stands among the single ids of an event and of the candidate
    table, rows    of its embedding
    """

    history: str
    name: str
    past: int
    own: int
    table: str
    rows: int


def item_of(fitted: FittedSchema, history: str = "") -> Item:
    """The item: the first field of a history that shares its table with the candidate. history: "" is the first that has one.

    Raises UserError where there is none.
    """
    own = [table for _, table in fitted.candidate.ids]
    for name, columns in fitted.histories.items():
        if history not in ("", name):
            continue
        for past, (field, table) in enumerate(columns.ids):
            if table in own:
                return Item(name, field, past, own.index(table), table, fitted.tables[table].rows)
    names = ", ".join(fitted.histories) or "none"
    if history and history not in fitted.histories:
        raise UserError(f"history = {history!r} is not declared; accepted: {names}")
    raise UserError(
        f"no field of {f'history {history!r}' if history else 'any history'} is a single id that shares its table with the "
        f"candidate, so there is no catalogue to learn; accepted: a history with the candidate's item among its fields "
        f"(histories here: {names})"
    )


class Catalogue(nn.Module):
    """Vectors of items, and with `biased` a number of each.

    width, std  of the vectors
    """

    def __init__(self, item: Item, width: int, std: float, biased: bool) -> None:
        super().__init__()
        self.item = item
        self.vectors = Tables({item.table: item.rows}, width, std)
        self.biases = Tables({item.table: item.rows}, 1, 0.0) if biased else None

    def forward(self, *ids: Tensor) -> list[Tensor]:
        """Vectors [.., D] of ids of any shapes, in one gather."""
        return _looked_up(self.vectors, ids)

    def bias(self, *ids: Tensor) -> list[Tensor]:
        """Numbers [..] of ids of any shapes."""
        if self.biases is None:
            return [self.vectors.weight.new_zeros(i.shape) for i in ids]
        return [found.squeeze(-1) for found in _looked_up(self.biases, ids)]

    def all(self) -> Tensor:
        """int64 [V - FIRST]: every item that is one."""
        return torch.arange(FIRST, self.item.rows, device=self.vectors.weight.device)


def _looked_up(tables: Tables, ids: tuple[Tensor, ...]) -> list[Tensor]:
    found: Tensor = tables(torch.cat([i.flatten() for i in ids]))
    parts = found.split_with_sizes([i.numel() for i in ids])
    return [part.view(*i.shape, tables.width) for part, i in zip(parts, ids, strict=True)]


def full_softmax(logits_nV: Tensor, items_n: Tensor) -> Tensor:
    """[n]: -log of the probability of each item. logits: [n, V - FIRST] of `Catalogue.all`; items without a row of their own
    give 0."""
    known = items_n >= FIRST
    loss = F.cross_entropy(logits_nV, (items_n - FIRST).clamp(min=0), reduction="none")
    return torch.where(known, loss, 0.0)


def sampled_softmax(
    true_n: Tensor, items_n: Tensor, drawn_nM: Tensor, ids_nM: Tensor, log_q: tuple[Tensor, Tensor]
) -> Tensor:
    """[n]: -log of the probability of each item among itself and the drawn, logits corrected by - log Q.

    true, drawn  logits of the items and of those drawn; ids: which were drawn; log_q: (of the items [n], of the drawn [n, M])
    A draw that is the item itself, or no item, does not take part (Covington et al., RecSys 2016, section 3.1).
    """
    out_of_play = (ids_nM == items_n.unsqueeze(1)) | (ids_nM < FIRST)
    others = (drawn_nM - log_q[1]).masked_fill(out_of_play, -torch.inf)
    every = torch.cat([(true_n - log_q[0]).unsqueeze(1), others], dim=1)
    loss = -torch.log_softmax(every, dim=1)[:, 0]
    return torch.where(items_n >= FIRST, loss, 0.0)


def in_batch_softmax(logits_nn: Tensor, items_n: Tensor, requests_n: Tensor, log_q_n: Tensor | None = None) -> Tensor:
    """[n]: -log of the probability of each row's own item among those of the rows, with - log Q of each item.

    logits    of every row's request (first axis) against every row's item
    log_q     of the items' shares, by which they come into a batch; None: no correction, and popular items are pushed down
    Rows of the same request, and rows of the same item, do not stand against each other; nor do items without a row of their
    own. A request that is alone in its step has no negatives and no loss (Yi et al., RecSys 2019, section 3).
    """
    corrected = logits_nn if log_q_n is None else logits_nn - log_q_n
    same = (requests_n.unsqueeze(1) == requests_n) | (items_n.unsqueeze(1) == items_n) | (items_n < FIRST)
    own = torch.eye(len(items_n), dtype=torch.bool, device=items_n.device)
    loss = -torch.log_softmax(corrected.masked_fill(same & ~own, -torch.inf), dim=1).diagonal()
    return torch.where(items_n >= FIRST, loss, 0.0)


@part
class Match(Interaction):
    """<u, v> of the request's and the candidate's one field, and the candidate's number where it has one."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """No options."""

        kind: ClassVar[str] = "match"

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.outputs = outputs
        if (widths.request_fields, widths.candidate_fields) != (1, 1) or widths.candidate_numbers > 1:
            raise UserError(
                f"interaction 'match' multiplies one vector of the request with one of the candidate, and there are "
                f"{widths.request_fields} and {widths.candidate_fields}; accepted: representations such as 'cloze' and "
                "'user_tower'"
            )

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]: several heads read one score."""
        u_ND = spread(features.fields_R[:, 0], features.batch.request_of)
        score = (u_ND * features.fields_N[:, 0]).sum(1, keepdim=True) + features.numbers_N.sum(1, keepdim=True)
        return score.expand(-1, self.outputs)


@part
class CatalogueHeads(Heads):
    """A score per task, moved by the logit of its base rate; not trained on the labels: see the module."""

    bias: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """No options."""

        kind: ClassVar[str] = "catalogue"

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        tasks = fitted.schema.tasks
        self.heads = tuple(
            Head(t.name, t.name, "sigmoid" if t.kind == "binary" else "identity", trained=False) for t in tasks
        )
        self.inputs = len(tasks)
        self.register_buffer("bias", initial_bias(fitted))

    def forward(self, logits_NK: Tensor) -> Tensor:
        """[N, K] -> [N, K]."""
        return logits_NK + self.bias


def sampled_logits(u_nD: Tensor, v_nMD: Tensor) -> Tensor:
    """[n, M]: every vector against those drawn for it."""
    return torch.bmm(v_nMD, u_nD.unsqueeze(2)).squeeze(2)


def of_rows(drawn: Drawn, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(ids [n, M], log Q [n, M]) of the requests `rows`."""
    return drawn.ids.index_select(0, rows), drawn.log_q.index_select(0, rows)
