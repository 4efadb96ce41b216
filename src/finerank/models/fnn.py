"""Factorisation-machine supported Neural Network. Zhang, Du, Wang, ECIR 2016, section 3.1.

z = [w0, (w_1, v_1), ..., (w_F, v_F)]     l1 = tanh(W1 z + b1)     l2 = tanh(W2 l1 + b2)     logit = w3·l2 + b3

Two stages: a factorization machine is trained first, and its w0, w and v are the initial values of z, which goes on learning.
Differs from the textbook: the hidden layers start with Xavier's values instead of an RBM's; a number x enters as (x·w, x·v); a
multi-valued field is pooled first, as in our FM. `stages = []` is the same network from random values.
R requests · N candidates · F fields and numbers · D width · K outputs · Z width of one side of z
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.embedding import BlockVectors
from finerank.layers.mlp import SplitMLP
from finerank.models.composition import Features, FirstOrder, Heads, Interaction, Model, Widths
from finerank.models.fm import FM
from finerank.models.lr import Linear
from finerank.models.narrow import Narrowing
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part, part_class, stage
from finerank.models.stages import Handover, Stage, Workshop
from finerank.models.vectors import FieldVectors
from finerank.schema import FittedSchema


@part
class FactorisedTower(Interaction):
    """A multilayer perceptron over z: weights and vectors as a factorization machine has them.

    With several outputs each has a tower of its own, and its own weights w. The last layer has no bias: the heads hold it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The network over z.

        hidden      widths of the layers; the paper's best were diamonds, such as 200-300-100
        activation  of the hidden layers; tanh in the paper
        dropout     share of neurons left out in training; .2 keeps 80 % as in the paper
        std         of the initial vectors of numbers
        """

        kind: ClassVar[str] = "fnn"
        hidden: tuple[int, ...] = (200, 300, 100)
        activation: Activation = "tanh"
        dropout: float = 0.2
        std: float = 0.01

        def __post_init__(self) -> None:
            check_layers(0, hidden=self.hidden)
            check_dropout(dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.vectors = FieldVectors(widths, options.std, "interaction 'fnn'")
        self.weights = FirstOrder(fitted, outputs, ("request", "candidate"))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.numbers_R = nn.Parameter(torch.zeros(widths.request_numbers, outputs))
        self.numbers_N = nn.Parameter(torch.zeros(widths.candidate_numbers, outputs))
        of_request = len(self.weights.order["request"]) + widths.request_numbers
        of_candidate = len(self.weights.order["candidate"]) + widths.candidate_numbers
        request = 1 + of_request + self.vectors.request * widths.dim
        candidate = of_candidate + self.vectors.candidate * widths.dim
        o = options
        self.towers = nn.ModuleList(
            SplitMLP(request, candidate, o.hidden, 1, o.activation, o.dropout) for _ in range(outputs)
        )

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        found = self.weights(features.batch)
        v_R, v_N = (v.flatten(1) for v in self.vectors.sides(features))
        w_RFK = _weights(found["request"], features.numbers_R, self.numbers_R)
        w_NFK = _weights(found["candidate"], features.numbers_N, self.numbers_N)
        of = features.batch.request_of
        out = []
        for k, tower in enumerate(self.towers):
            w0_R1 = self.bias[k].expand(v_R.shape[0], 1)
            z_RZ, z_NZ = torch.cat([w0_R1, w_RFK[..., k], v_R], dim=1), torch.cat([w_NFK[..., k], v_N], dim=1)
            out.append(tower(z_RZ, z_NZ, of))
        return torch.cat(out, dim=1)


def _weights(found: BlockVectors, numbers: Tensor, of_numbers: Tensor) -> Tensor:
    """[n, fields + numbers, K]: w_i of every field, x·w of every number."""
    assert isinstance(found.vectors, Tensor)  # first-order tables are all of one width
    return torch.cat([found.vectors, numbers.unsqueeze(2) * of_numbers], dim=1)


@stage
class PretrainedFM(Stage):
    """Train a factorization machine over the same representation; its values become those of z."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """training: keys of [training] that differ for the factorization machine, e.g. {epochs = 3}."""

        kind: ClassVar[str] = "fm"
        training: Mapping[str, Any] = field(default_factory=dict)

    def check(self, model: Composition) -> None:
        """See `Stage.check`."""
        if not any(isinstance(o, FactorisedTower.Options) for o in model.interactions):
            kinds = ", ".join(o.kind for o in model.interactions)
            raise UserError(f"stage 'fm' gives values to an interaction 'fnn', and the model has {kinds}; drop it")

    def fits(self, model: Composition, fitted: FittedSchema) -> None:
        """See `Stage.fits`."""
        seen = Narrowing(fitted, model.without).fitted if model.without else fitted
        make: Any = part_class(Heads, model.heads)
        outputs = make(seen, model.heads).inputs
        if outputs != 1:
            raise UserError(
                f"stage 'fm': interaction 'fm' gives one output and the heads need {outputs}; drop it (stages = []) to train "
                "from random values, or take a schema of one task"
            )

    def run(self, model: Composition, shop: Workshop) -> Handover:
        """See `Stage.run`."""
        at = [i for i, o in enumerate(model.interactions) if isinstance(o, FactorisedTower.Options)]
        std = model.interactions[at[0]].std
        trained = shop.train(replace(model, name="fm", interactions=(Linear.Options(), FM.Options(std=std))))
        return Handover(model, lambda fresh: _take_over(fresh, trained, at))


def _take_over(fresh: Model, fm: Model, towers: list[int]) -> None:
    """Set embeddings and z to the values of the factorization machine."""
    linear, second = fm.interactions
    assert isinstance(linear, Linear)
    assert isinstance(second, FM)
    fresh.representation.load_state_dict(fm.representation.state_dict())
    for i in towers:
        tower = fresh.interactions[i]
        assert isinstance(tower, FactorisedTower)
        tower.weights.load_state_dict(linear.weights.state_dict())
        pairs = (
            (tower.bias, fm.head.bias),
            (tower.numbers_R, linear.numbers_R),
            (tower.numbers_N, linear.numbers_N),
            (tower.vectors.numbers_R, second.numbers_R),
            (tower.vectors.numbers_N, second.numbers_N),
        )
        for mine, learnt in pairs:
            assert isinstance(learnt, Tensor)
            mine.copy_(learnt)


FNN = named(
    Composition(
        name="fnn",
        representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
        interactions=(FactorisedTower.Options(),),
        heads=TaskHeads.Options(),
        paper="1601.02376",
        stages=(PretrainedFM.Options(),),
    )
)
