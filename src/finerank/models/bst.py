"""Behavior Sequence Transformer. Chen et al., DLP-KDD 2019, section 2.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined attributes and its position

The candidate is the last element of the past; every element is an item beside its position, which is the time from the
event to the request (section 2.1), in buckets. The transformer's output at the candidate joins the other fields.

Differs from the textbook: of the last block only the candidate's own row is computed, since nothing else of it is read. So
one block (the paper's best) costs keys and values once per event and one row of attention per candidate: events never see
the candidate, and no sequence is repeated. With more blocks the paper's events see it; `sight = "past"` leaves that out.
What only the event has (fields that the candidate lacks, numbers) is added to it through a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged, Pairs
from finerank.errors import UserError
from finerank.layers.embedding import BlockVectors
from finerank.layers.mlp import linear
from finerank.layers.segments import gather
from finerank.layers.transformer import Block, check_sizes, grids
from finerank.models.base import Tower
from finerank.models.composition import Features, Needs, Representation
from finerank.models.pairs import Paired, pair_up
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class BehaviourTransformer(Representation):
    """The candidate as the last element of the past, after self-attention, as further fields of the candidate."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The transformer.

        embedding  width and initial spread of the fields
        blocks     1 in the paper, whose 2 and 3 were worse
        heads      8 in the paper
        feed       hidden width of the blocks' networks, as a multiple of K
        dropout    after attention and network; 0.2 in the paper
        position   time: buckets of the time to the request · order: places counted from the newest · none · auto: time
                   where events have times, else order
        sight      all: from the second block on, events see the candidate (the paper) · past: they see each other alone,
                   so all blocks but the candidate's rows are computed once per request
        """

        kind: ClassVar[str] = "behaviour_transformer"
        embedding: EmbeddingOptions = EmbeddingOptions()
        blocks: int = 1
        heads: int = 8
        feed: int = 4
        dropout: float = 0.2
        position: Literal["auto", "time", "order", "none"] = "auto"
        sight: Literal["all", "past"] = "all"

        def __post_init__(self) -> None:
            check_sizes(self.dropout, blocks=self.blocks, heads=self.heads, feed=self.feed)

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        o = self.options = options
        self.embed = FieldEmbedding(fitted, o.embedding, ages=o.position in ("auto", "time"))
        self.pairs = pair_up(fitted, self.embed, age=False)
        names = [p.history for p in self.pairs]
        self.needs = Needs(pairs=frozenset(names))
        self.attends = {name: name for name in names}
        self.steps = {name: fitted.schema.history(name).max_length for name in names}
        self.position = {name: _position(o.position, name, "age" in self.embed.columns(name)) for name in names}
        self.blocks, self.context, self.places = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        fields = 0
        for pair in self.pairs:
            place, items = self.position[pair.history], self.embed.width_of(pair.history, pair.names)
            width = 0 if place == "none" else o.embedding.width
            if place == "time":
                width = self.embed.width_of(pair.history, ("age",))
            # of order: a row a place, the candidate's first; of time: the candidate's alone, which is now
            rows = self.steps[pair.history] + 1 if place == "order" else 1
            self.places.append(nn.Parameter(torch.randn(rows, width) * o.embedding.std))
            beside = self.embed.width_of(pair.history, pair.context) + len(fitted.histories[pair.history].numbers)
            self.context.append(linear(beside, items + width, bias=False) if beside else nn.Identity())
            k = items + width
            self.blocks.append(nn.ModuleList(_block(k, o) for _ in range(o.blocks)))
            fields += len(pair.names) + (place != "none")
        widths = plain_widths(fitted, self.embed)
        self.widths = replace(widths, candidate_fields=widths.candidate_fields + fields)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `attention` holds the last block's weight of every pair, the mean over its heads."""
        found = self.embed(batch)
        features = plain_features(batch, self.embed, found)
        fields_N, attention = [features.fields_N], {}
        for i, pair in enumerate(self.pairs):
            name = pair.history
            x_NK, x_TK = self._elements(i, pair, found, batch.histories[name], batch.N)
            x_NK, weights_PH = self._transform(i, x_NK, x_TK, batch, name)
            attention[name] = weights_PH.mean(1)
            fields_N.append(self._fields(pair, x_NK))
        return replace(features, fields_N=torch.cat(fields_N, dim=1), attention=attention)

    def _elements(
        self, i: int, pair: Paired, found: dict[str, BlockVectors], history: Jagged, count: int
    ) -> tuple[Tensor, Tensor]:
        """(candidates [N, K], events [T, K]), each an item beside its position."""
        q_N, k_T = pair.queries(found["candidate"]), pair.keys(found[pair.history])
        place, table = self.position[pair.history], self.places[i]
        if place == "time":
            k_T = torch.cat([k_T, found[pair.history].column("age")], dim=1)
        elif place == "order":
            from_newest = history.lengths.index_select(0, history.segments) - history.positions  # 1 is the newest
            k_T = torch.cat([k_T, gather(table, from_newest.clamp(max=table.shape[0] - 1))], dim=1)
        context_TC = pair.context_of(found[pair.history], history)
        if context_TC is not None:
            k_T = k_T + self.context[i](context_TC)
        return torch.cat([q_N, table[:1].expand(count, -1)], dim=1), k_T

    def _transform(self, i: int, x_NK: Tensor, x_EK: Tensor, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """(candidates after the blocks [N, K], weights of the last one [P, H])."""
        history, pairs, blocks = batch.histories[name], batch.pairs[name], self.blocks[i]
        assert isinstance(blocks, nn.ModuleList)
        whole = self.options.sight == "all" and len(blocks) > 1
        if whole:  # events as each candidate sees them: a sequence per candidate, which ends with it
            event = pairs.events()
            own = torch.arange(batch.N, device=x_EK.device)
            length = history.lengths.index_select(0, batch.request_of)
            segments, positions = torch.cat([pairs.candidate, own]), torch.cat([history.positions[event], length])
            at = grids(segments, positions, length + 1, self.steps[name] + 1)
            x_EK, pairs = gather(x_EK, event), Pairs(pairs.candidate, None)
        elif len(blocks) > 1:
            at = grids(history.segments, history.positions, history.lengths, self.steps[name])
        for j, block in enumerate(blocks):
            assert isinstance(block, Block)
            after_NK, weights_PH = block.of_targets(x_NK, x_EK, pairs)
            if j + 1 < len(blocks):
                x_EK = block(torch.cat([x_EK, x_NK]), at)[: x_EK.shape[0]] if whole else block(x_EK, at)
            x_NK = after_NK
        return x_NK, weights_PH

    def _fields(self, pair: Paired, x_NK: Tensor) -> Tensor:
        """[N, F, D]: the parts of an element as fields again."""
        if self.position[pair.history] == "time":
            return self.embed.as_fields(pair.history, (*pair.names, "age"), x_NK)
        items = self.embed.width_of(pair.history, pair.names)
        fields = self.embed.as_fields(pair.history, pair.names, x_NK[:, :items])
        return torch.cat([fields, x_NK[:, items:].unsqueeze(1)], dim=1) if x_NK.shape[1] > items else fields


def _position(wanted: str, history: str, ages: bool) -> str:
    if wanted == "time" and not ages:
        raise UserError(
            f"position = 'time', and events of {history!r} have no times: list columns do not say when; accepted: 'order', "
            "or an event log"
        )
    return ("time" if ages else "order") if wanted == "auto" else wanted


def _block(width: int, options: BehaviourTransformer.Options) -> Block:
    return Block(width, options.heads, options.feed * width, "leaky_relu", options.dropout)


BST = named(
    Composition(
        name="bst",
        representation=BehaviourTransformer.Options(),
        interactions=(Tower.Options(hidden=(1024, 512, 256), activation="relu"),),
        heads=TaskHeads.Options(),
        paper="1905.06874",
        requires=("history",),
    )
)
