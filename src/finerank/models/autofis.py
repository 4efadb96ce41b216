"""AutoFIS: Automatic Feature Interaction Selection. Liu et al., KDD 2020, section 3.

    search    sum_{i<j} alpha_ij · BN(<e_i, e_j>)           every product has a gate alpha; BN without scale and shift
    re-train  sum_{(i,j) kept} alpha_ij · <e_i, e_j>        kept: alpha was not 0 at the end of the search

Gates are moved by GRDA (`training.grda`), everything else as usual, on the same batches: one level, no second set of rows.
Products with alpha = 0 do not exist in the re-trained graph: `kept` names the others, no operator and no parameter is left of
those that were dropped. alpha then is an ordinary weight. With order = 3 the products of three fields,
sum_d e_id e_jd e_kd, are gated too. Over FM, DeepFM (alpha's sum adds to a linear part and a tower) and IPNN (products with
their alpha are further inputs of the tower).

Differs from the textbook: numbers take part as x·v; products within the request's side are formed once per request; a product
is kept if any output reads it. R requests · N candidates · F fields and numbers · D width · P products · K outputs
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.errors import UserError, nearest
from finerank.layers.gates import Gates, Proximal
from finerank.layers.mlp import BatchNorm
from finerank.layers.segments import spread
from finerank.models.base import Tower
from finerank.models.composition import Features, Interaction, Weighed, Widths
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part, stage
from finerank.models.stages import Handover, Stage, Workshop
from finerank.models.vectors import FieldVectors, vector_names
from finerank.schema import FittedSchema

ALL = ("*",)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which products there are, and how the search moves their gates.

    order       2: pairs · 3: pairs and triples (F^3 / 6 of them: for some ten fields)
    kept        names of products, such as "user*item"; ["*"]: all. A search writes here what it kept
    search      gates are being searched (set by the stage)
    batch_norm  of each product: search (the paper's equations), always, never
    start       initial value of all gates
    lr, c, mu   of GRDA: the threshold after t steps is c · lr^½ · (t · lr)^mu; a greater c drops more. auto: 5e-4, the
                authors' of DeepFM, for their 16,000 steps and more, and so much greater for a shorter search that its last
                threshold is theirs, 1.15 (ours; 0.012 for 300 steps)
    std         of the initial vectors of numbers
    """

    order: Literal[2, 3] = 2
    kept: tuple[str, ...] = ALL
    search: bool = False
    batch_norm: Literal["search", "always", "never"] = "search"
    start: float = 0.6
    lr: float = 1.0
    c: float | Literal["auto"] = "auto"
    mu: float = 0.8
    std: float = 0.01

    def __post_init__(self) -> None:
        if not (self.lr > 0 and (self.c == "auto" or self.c >= 0) and 0 <= self.mu <= 1):
            raise UserError(
                f"lr = {self.lr}, c = {self.c!r}, mu = {self.mu}; accepted: lr above 0, c of at least 0 (0: nothing is "
                "dropped) or 'auto', mu from 0 to 1"
            )
        if self.start == 0:
            raise UserError(
                "start = 0.0; accepted: another value, since gates at 0 let no gradient through; usually 0.6"
            )

    def without_effect(self, stages: Collection[str]) -> Mapping[str, str]:
        """See `models.effects`."""
        if self.search or "search" in stages:
            return {}
        return dict.fromkeys(("lr", "c", "mu"), "GRDA moves gates in a search alone, and there is no stage 'search'")


class Products(nn.Module):
    """The kept products of a row's fields and numbers, each with its gate. names: theirs, in order."""

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Selection, who: str) -> None:
        super().__init__()
        self.vectors = FieldVectors(widths, options.std, f"interaction {who!r}")
        fields, request = vector_names(fitted, widths), self.vectors.request
        known = {
            "*".join(fields[i] for i in chosen): chosen
            for size in range(2, options.order + 1)
            for chosen in combinations(range(len(fields)), size)
        }
        if options.kept != ALL:
            for name in options.kept:
                if name not in known:
                    raise UserError(f"interaction {who!r}: kept {name!r} is no product here; {nearest(name, known)}")
            known = {name: known[name] for name in known if name in set(options.kept)}
        # products with as many factors on either side are formed together
        groups: dict[tuple[int, int], list[str]] = {}
        for name, chosen in known.items():
            of_request = sum(i < request for i in chosen)
            groups.setdefault((of_request, len(chosen) - of_request), []).append(name)
        self.names = [name for group in groups.values() for name in group]
        self.groups = list(groups)
        self.fields, self.factors = tuple(fields), [known[name] for name in self.names]
        sides = (request, len(fields) - request)
        # one matrix of inner products gives all pairs of a group, where none of them is dropped
        self.complete = [sum(of) == 2 and len(groups[of]) == math.prod(map(math.comb, sides, of)) for of in groups]
        for g, group in enumerate(groups.values()):
            index = torch.tensor([known[name] for name in group]).T  # [order, P of the group]
            split = self.groups[g][0]
            self.register_buffer(f"request_{g}", index[:split], persistent=False)
            self.register_buffer(f"candidate_{g}", index[split:] - request, persistent=False)
        proximal = (
            Proximal(options.lr, None if options.c == "auto" else options.c, options.mu) if options.search else None
        )
        self.gates = Gates(outputs, len(self.names), options.start, proximal)
        normed = options.batch_norm == "always" or (options.search and options.batch_norm == "search")
        self.norm = BatchNorm(len(self.names), affine=False) if normed and self.names else None

    def forward(self, features: Features) -> Tensor:
        """[N, P], without the gates."""
        x_RFD, x_NFD = self.vectors.sides(features)
        of, out = features.batch.request_of, []
        for g, (of_request, of_candidate) in enumerate(self.groups):
            request, candidate = self.get_buffer(f"request_{g}"), self.get_buffer(f"candidate_{g}")
            if not of_candidate:
                found = _gram(x_RFD, x_RFD, request) if self.complete[g] else _product(x_RFD, request).sum(2)
                out.append(spread(found, of))
            elif not of_request:
                out.append(_gram(x_NFD, x_NFD, candidate) if self.complete[g] else _product(x_NFD, candidate).sum(2))
            elif self.complete[g]:
                repeated = spread(x_RFD.flatten(1), of).view(-1, *x_RFD.shape[1:])
                out.append(_gram(repeated, x_NFD, torch.cat([request, candidate])))
            else:
                u_RPD = _product(x_RFD, request)
                u_NPD = spread(u_RPD.flatten(1), of).view(-1, *u_RPD.shape[1:])
                out.append((u_NPD * _product(x_NFD, candidate)).sum(2))
        products = torch.cat(out, dim=1)
        return products if self.norm is None else self.norm(products)

    def between_fields(self, features: Features) -> dict[str, Weighed]:
        """alpha of the pairs that there are, the same for all rows; of each output where there are several. Triples, and pairs
        that were dropped, are not weighed."""
        found, rows = {}, (features.batch.N, -1, -1)
        for k, alpha_P in enumerate(self.gates.weight, 1):
            square = alpha_P.new_full((len(self.fields), len(self.fields)), torch.nan)
            for (i, *others), alpha in zip(self.factors, alpha_P.unbind(0), strict=True):
                if len(others) == 1:
                    square[i, others[0]] = alpha
            name = "alpha" if len(self.gates.weight) == 1 else f"alpha of output {k}"
            found[name] = Weighed(self.fields, self.fields, square.expand(rows))
        return found

    def kept(self) -> tuple[str, ...]:
        """Names of the products whose gates are not 0."""
        return tuple(name for name, on in zip(self.names, self.gates.open().tolist(), strict=True) if on)


def _product(x_nFD: Tensor, index: Tensor) -> Tensor:
    """[n, F, D], [factors, P] -> [n, P, D]: products of the chosen vectors, element by element."""
    out = x_nFD.index_select(1, index[0])
    for factor in index[1:]:
        out = out * x_nFD.index_select(1, factor)
    return out


def _gram(a_nFD: Tensor, b_nGD: Tensor, index: Tensor) -> Tensor:
    """[n, F, D], [n, G, D], [2, P] -> [n, P]: inner products of the chosen pairs, out of the matrix of all."""
    gram_nFG = a_nFD @ b_nGD.transpose(1, 2)
    return gram_nFG.flatten(1).index_select(1, index[0] * b_nGD.shape[1] + index[1])


@part
class SelectedProducts(Interaction):
    """sum of alpha · product over the products that are kept; one alpha per output."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Selection):  # noqa: D106 - below
        __doc__ = Selection.__doc__
        kind: ClassVar[str] = "autofis"

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.products = Products(fitted, widths, outputs, options, "autofis")

    def between_fields(self, features: Features) -> dict[str, Weighed]:
        """See `Products.between_fields`."""
        return self.products.between_fields(features)

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        if not self.products.names:
            return features.fields_N.new_zeros((features.batch.N, self.products.gates.weight.shape[0]))
        out: Tensor = self.products(features) @ self.products.gates.weight.T
        return out


@part
class SelectedInputs(Interaction):
    """A tower over all fields and numbers, and over alpha · product of the products that are kept (IPNN)."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Selection):  # noqa: D106 - below
        __doc__ = f"{Selection.__doc__}tower       the tower's own options"
        kind: ClassVar[str] = "autofis_inner"
        tower: Tower.Options = Tower.Options(hidden=(400, 400, 400), activation="relu", dropout=0.5)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.products = Products(fitted, widths, 1, options, "autofis_inner")
        wider = replace(widths, candidate_numbers=widths.candidate_numbers + len(self.products.names))
        self.tower = Tower(fitted, wider, outputs, options.tower)

    def between_fields(self, features: Features) -> dict[str, Weighed]:
        """See `Products.between_fields`."""
        return self.products.between_fields(features)

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        if self.products.names:
            inputs = self.products(features) * self.products.gates.weight
            features = replace(features, numbers_N=torch.cat([features.numbers_N, inputs], dim=1))
        out: Tensor = self.tower(features)
        return out


@stage
class Search(Stage):
    """Train the model with gates on all its products; those whose gates are 0 at the end are dropped."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """training: keys of [training] that differ for the search.

        It runs all its epochs, for gates close late: 2 if training says nothing else. The authors' search is one pass over many
        millions of rows; short logs need more, and after many passes a pair is kept for what it has learnt by heart. Fields
        of many values learn slowly: if what matters is dropped, give more epochs or a smaller c.
        """

        kind: ClassVar[str] = "search"
        training: Mapping[str, Any] = field(default_factory=dict)

        def __post_init__(self) -> None:
            object.__setattr__(self, "training", {"epochs": 2} | dict(self.training))

    def check(self, model: Composition) -> None:
        """See `Stage.check`."""
        if not any(isinstance(o, Selection) for o in model.interactions):
            kinds = ", ".join(o.kind for o in model.interactions)
            raise UserError(
                f"stage 'search' chooses products of an interaction 'autofis', the model has {kinds}; drop it"
            )

    def run(self, model: Composition, shop: Workshop) -> Handover:
        """See `Stage.run`."""

        def searching(o: Any) -> Any:
            return replace(o, search=True) if isinstance(o, Selection) else o

        trained = shop.train(replace(model, interactions=tuple(map(searching, model.interactions))), best=False)
        found, of, interactions, used = 0, 0, [], 0.0
        for o, made in zip(model.interactions, trained.interactions, strict=True):
            if isinstance(made, SelectedProducts | SelectedInputs):
                kept = made.products.kept()
                found, of = found + len(kept), of + len(made.products.names)
                assert made.products.gates.proximal is not None
                used = replace(made.products.gates.proximal, steps=shop.steps).strength
                o = replace(o, kept=kept)
            interactions.append(o)
        left = tuple(o for o in model.stages if o.kind != self.options.kind)
        decided = replace(model, interactions=tuple(interactions), stages=left)
        told: dict[str, Any] = {"products_kept": found, "products_of": of, "c": used}
        if of and found in (0, of):
            how = f"c = {used:.2g} over {shop.steps:,} steps"
            other = (
                f"c = {used / 4:.2g} or more epochs" if not found else f"c = {4 * used:.2g}" if used else "c above 0"
            )
            told["note"] = (
                f"{'all' if found else 'none'} of the {of} products kept with {how}; to {'drop' if found else 'keep'} some, "
                f"give the interaction {other} (model.stages.search.training.epochs sets how long it searches)"
            )
        return Handover(decided, told=told)


def _named(name: str, *interactions: Any) -> Composition:
    return named(
        Composition(
            name=name,
            representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
            interactions=interactions,
            heads=TaskHeads.Options(),
            paper="2003.11235",
            stages=(Search.Options(),),
        )
    )


AUTOFIS_FM = _named("autofis_fm", Linear.Options(), SelectedProducts.Options())
AUTOFIS_DEEPFM = _named(
    "autofis_deepfm",
    Linear.Options(),
    SelectedProducts.Options(),
    Tower.Options(hidden=(400, 400, 400), activation="relu", dropout=0.5),
)
AUTOFIS_IPNN = _named("autofis_ipnn", SelectedInputs.Options())
