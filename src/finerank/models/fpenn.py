"""Field-aware embeddings that are distributions, after FPENN (Field-aware Probabilistic Embedding; Liu et al., RecSys 2018).

The equations are ours, NOT the paper's: only its abstract was at hand. From it come field-aware embeddings that are
distributions, reparameterised in training, a linear, a quadratic and a deep head, and scores by Thompson sampling or an upper
confidence bound. All else is our own definition, so no number of the paper can be expected from this model. Each value has, for
every other field f, mu_f and s_f = softplus(rho_f); a score is of their mean, of an optimistic bound, or of a draw:

    training v = mu + s∘e, e ~ N(0, I)   served  mean: v = mu   ucb: v = mu + c·s   ts: v = mu + s∘e(seed, request, value)
    logit = linear + sum_{i<j} <v_{i,f(j)}, v_{j,f(i)}> + tower of all v
    loss  = cross-entropy + kl · 1/B · sum over rows and fields of KL(N(mu, s²) ‖ N(0, prior²)) / n_j

n_j is how often value j occurs in training, so over an epoch each value pays its KL about once: with kl = 1 the loss is the
evidence lower bound per row. Where a history shares the table, n_j counts its past events too, and the value pays less. ts is
Thompson sampling: one draw of the vectors per request (`runtime.noise`; offline a request goes by its position in the log, so
that a replay which gives the server another id draws anew), with e of every slot independent, so that the quadratic head's mean
over draws is that of mu. ucb raises scores: calibrate them. Vectors of numbers are no distributions; a multi-valued field's mu
and rho are pooled. R requests · N candidates · F fields and numbers · S = F - 1 slots · D width of a slot
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import TensorBlock
from finerank.errors import UserError
from finerank.layers.embedding import Embedding
from finerank.layers.noise import Gaussian
from finerank.layers.segments import spread
from finerank.models.base import Tower
from finerank.models.composition import Features, Interaction, Needs, Widths
from finerank.models.lr import Linear, NoFields
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.runtime.noise import SIDES, Noise, Side
from finerank.schema import Columns, FittedSchema, Growing


@part
class Distributions(Interaction):
    """The quadratic and the deep head over embeddings that are distributions, by our own equations; one output."""

    single = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How the vectors begin, what holds them, and what is served.

        width    D of a slot: a value has 2 · (F - 1) · D numbers
        std      spread of the initial mu
        spread   initial s
        prior    standard deviation that s is drawn to, and mu to its zero
        kl       how strongly: 1 is Bayes' rule, less trusts the data more; 0: not at all
        predict  mean · ucb: mu + c·s, optimistic · ts: a draw per request
        c        of ucb: .1 to 1
        seed     of ts
        tower    the deep head's own options
        """

        kind: ClassVar[str] = "fpenn"
        width: int = 4
        std: float = 0.01
        spread: float = 0.05
        prior: float = 0.1
        kl: float = 0.01
        predict: Literal["mean", "ucb", "ts"] = "mean"
        c: float = 0.5
        seed: int = 0
        tower: Tower.Options = Tower.Options(hidden=(100, 100), activation="relu")

        def __post_init__(self) -> None:
            if self.width < 1 or self.std < 0 or self.kl < 0 or self.c < 0:
                raise UserError(
                    f"width = {self.width}, std = {self.std}, kl = {self.kl}, c = {self.c}; accepted: width of at least "
                    "1, the others of at least 0"
                )
            if not (self.spread > 0 and self.prior > 0):
                raise UserError(
                    f"spread = {self.spread}, prior = {self.prior}; accepted: numbers above 0, usually .01 to .1"
                )

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.options = options
        blocks = {"request": fitted.request, "candidate": fitted.candidate}
        count = sum(len(c.ids) + len(c.lists) + len(c.numbers) for c in blocks.values())
        if count < 2:
            raise UserError(f"interaction 'fpenn' crosses fields, and the schema has {count}; declare at least two")
        self.slots, self.offset = count - 1, math.log(math.expm1(options.spread))
        size = self.slots * options.width
        self.embedding = Embedding(fitted, 2 * size, options.std, tuple(blocks), forced=True, ages=False)
        self.numbers = nn.ParameterDict(
            {side: torch.randn(len(c.numbers), size) * options.std for side, c in blocks.items()}
        )
        self.gaussian = Gaussian()
        self._count(fitted, blocks)
        sizes = {side: len(self.embedding.order[side]) + len(c.numbers) for side, c in blocks.items()}
        self._pairs(sizes["request"], sizes["candidate"])
        self.tower = Tower(fitted, Widths(size, sizes["request"], sizes["candidate"], 0, 0), 1, options.tower)
        if options.predict == "ts":
            order = self.embedding.order
            noise = Noise(seed=options.seed, width=size, request=order["request"], candidate=order["candidate"])
            self.needs = Needs(noise=noise)
        self._charge: Tensor | None = None

    def forward(self, features: Features) -> Tensor:
        """[N, 1]."""
        batch = features.batch
        found = self.embedding(batch)
        numbers = {"request": batch.request.numbers, "candidate": batch.candidate.numbers}
        blocks = {"request": batch.request, "candidate": batch.candidate}
        v: dict[str, Tensor] = {}
        charge = batch.labels.new_zeros(())
        for side in SIDES:
            vectors = found[side].vectors
            assert isinstance(vectors, Tensor)  # forced: of one width
            mu, rho = vectors.chunk(2, dim=2)  # [n, fields, S D]
            s = F.softplus(rho + self.offset)
            of_numbers = numbers[side].unsqueeze(2) * self.numbers[side]
            v[side] = torch.cat([self._drawn(side, mu, s, features), of_numbers], dim=1)
            if self.training and self.options.kl:
                per_row = (self._divergence(mu, s) / self._occurrences(side, blocks[side])).sum(1)
                charge = charge + (per_row[batch.request_of] if side == "request" else per_row).sum()
        self._charge = charge / batch.step_rows if self.training and self.options.kl else None
        none_R, none_N = batch.request.numbers[:, :0], batch.candidate.numbers[:, :0]
        deep = self.tower(Features(batch, v["request"], v["candidate"], none_R, none_N))
        out: Tensor = self.quadratic(v["request"], v["candidate"], batch.request_of).unsqueeze(1) + deep
        return out

    def penalties(self, features: Features) -> Mapping[str, Tensor]:
        """KL to the prior, of the forward pass that has just been."""
        charge, self._charge = self._charge, None
        return {} if charge is None else {"fpenn_kl": self.options.kl * charge}

    def _drawn(self, side: Side, mu: Tensor, s: Tensor, features: Features) -> Tensor:
        if self.gaussian.training:
            noise: Tensor = self.gaussian(mu)
            return mu + s * noise
        match self.options.predict:
            case "ucb":
                return mu + self.options.c * s
            case "ts" if mu.shape[1]:
                if side not in features.batch.noise:
                    raise UserError(
                        "interaction 'fpenn' with predict = 'ts' reads the noise of the request, and the batch has none; "
                        "build batches for evaluation (epoch = None) with the model's needs"
                    )
                return mu + s * features.batch.noise[side].view(-1, *mu.shape[1:]).to(mu.dtype)
            case _:
                return mu

    def _divergence(self, mu: Tensor, s: Tensor) -> Tensor:
        """KL(N(mu, s²) ‖ N(0, prior²)): [n, fields, S D] -> [n, fields]."""
        t = self.options.prior
        squares = torch.linalg.vecdot(mu, mu) + torch.linalg.vecdot(s, s)
        out: Tensor = squares / (2 * t * t) - s.log().sum(2) + mu.shape[2] * (math.log(t) - 0.5)
        return out

    # -------------------------------------------------------------------------------------------- pairs of fields

    def _pairs(self, request: int, candidate: int) -> None:
        """Where the two vectors of each pair stand among all slots of a side, [fields · S]."""

        def slot(i: int, other: int) -> int:
            return i * self.slots + (other if other < i else other - 1)

        every = range(request + candidate)
        groups = {
            "request": [(i, j) for i in every[:request] for j in every[i + 1 : request]],
            "candidate": [(i, j) for i in every[request:] for j in every[i + 1 :]],
            "across": [(i, j) for i in every[:request] for j in every[request:]],
        }
        first = request * self.slots  # of the candidate's side
        for name, group in groups.items():
            left, right = [slot(i, j) for i, j in group], [slot(j, i) for i, j in group]
            shift = (0 if name != "candidate" else first, 0 if name == "request" else first)
            for end, places, by in (("left", left, shift[0]), ("right", right, shift[1])):
                index = torch.tensor(places, dtype=torch.int64) - by
                self.register_buffer(f"{name}_{end}", index, persistent=False)

    def quadratic(self, v_R: Tensor, v_N: Tensor, of: Tensor) -> Tensor:
        """[N]: sum over i < j of <v_{i,f(j)}, v_{j,f(i)}>; pairs within the request once per request.

        v_R, v_N  [R, F_R, S D], [N, F_N, S D]
        """
        slots_R, slots_N = (v.reshape(v.shape[0], v.shape[1] * self.slots, self.options.width) for v in (v_R, v_N))

        def taken(slots: Tensor, name: str) -> Tensor:
            return slots.index_select(1, self.get_buffer(name)).flatten(1)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(1)

        of_request = dot(taken(slots_R, "request_left"), taken(slots_R, "request_right"))
        of_candidate = dot(taken(slots_N, "candidate_left"), taken(slots_N, "candidate_right"))
        across = dot(spread(taken(slots_R, "across_left"), of), taken(slots_N, "across_right"))
        return spread(of_request.unsqueeze(1), of)[:, 0] + of_candidate + across

    # -------------------------------------------------------------------------------------------- the weight of KL

    def _count(self, fitted: FittedSchema, blocks: Mapping[str, Columns]) -> None:
        """n_j of every row of every table with single ids; of lists and growing tables that of a value on average."""
        self.tables = sorted({table for c in blocks.values() for _, table in c.ids})
        for i, table in enumerate(self.tables):
            found = fitted.tables[table]
            counts = torch.tensor(found.counts, dtype=torch.float32).clamp(min=1.0)
            if isinstance(found.encoding, Growing):  # counts are of symbols, not of rows
                counts = torch.full((found.rows,), _average(fitted, table))
            counts[0] = math.inf  # padding pays nothing
            self.register_buffer(f"counts_{i}", counts, persistent=False)
        self.lists = {c.name: _average(fitted, c.table) for columns in blocks.values() for c in columns.lists}

    def _occurrences(self, side: Side, block: TensorBlock) -> Tensor:
        """n_j of every field of the rows, in the order of the embedding: [n, fields]."""
        ids = {name: (j, self.tables.index(table)) for j, (name, table) in enumerate(self.embedding.columns[side].ids)}
        out = []
        for name in self.embedding.order[side]:
            if name in ids:
                j, i = ids[name]
                out.append(self.get_buffer(f"counts_{i}").index_select(0, block.ids[:, j]))
            else:
                out.append(torch.full((len(block),), self.lists[name], device=block.ids.device))
        return torch.stack(out, dim=1) if out else block.numbers.new_zeros((len(block), 0))


def _average(fitted: FittedSchema, table: str) -> float:
    """How often a value of a table that occurs in training does so, on average."""
    counts = fitted.tables[table].counts
    return float(max(counts.sum(), 1) / max((counts > 0).sum(), 1))


FPENN = named(
    Composition(
        name="fpenn",
        representation=NoFields.Options(),
        interactions=(Linear.Options(), Distributions.Options()),
        heads=TaskHeads.Options(),
        paper="10.1145/3240323.3240396",
    )
)
