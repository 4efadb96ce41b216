"""What every model is: a representation, interactions whose logits add, and heads.

R requests · N candidates (the rows of the logits) · D width of a field · K outputs before the heads · H heads

    batch ──Representation──► Features ──Interaction, Interaction, ...──► logits [N, K] ──Heads──► logits [N, H]

A paper's model is a named composition of the three (see `registry.named`); any other combination is a line in a recipe.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Batch
from finerank.data.drawing import Drawing
from finerank.data.masking import Masking
from finerank.errors import UserError
from finerank.layers.embedding import Embedding, Tables
from finerank.layers.segments import spread
from finerank.models.narrow import Narrowing
from finerank.runtime.link import Link
from finerank.runtime.noise import Noise
from finerank.schema import FittedSchema, Task


@dataclass(frozen=True)
class Needs:
    """What a model asks of the batch builder beside the columns.

    pairs        histories of which it reads all (candidate, event) pairs
    negatives    histories for which it wants, beside every event, one that did not come there
    masked       histories of which it wants events hidden (`data.masking`)
    drawn        histories of whose items it wants some drawn for each request (`data.drawing`)
    example_age  whether it wants to know how old a training example is
    noise        normals that its scores depend on, in evaluation and in the graph (`runtime.noise`)
    """

    pairs: frozenset[str] = frozenset()
    negatives: frozenset[str] = frozenset()
    masked: Mapping[str, Masking] = field(default_factory=dict)
    drawn: Mapping[str, Drawing] = field(default_factory=dict)
    example_age: bool = False
    noise: Noise | None = None

    def __or__(self, other: Needs) -> Needs:
        if self.noise is not None and other.noise is not None:
            raise UserError("two parts of the model draw noise; accepted: one that does (predict = 'ts')")
        return Needs(
            self.pairs | other.pairs,
            self.negatives | other.negatives,
            {**self.masked, **other.masked},
            {**self.drawn, **other.drawn},
            self.example_age or other.example_age,
            self.noise or other.noise,
        )


@dataclass(frozen=True)
class Widths:
    """The shape of `Features`: fields of equal width D on either side, numbers on either side, further vectors.

    names_R, names_N  of the first fields of either side; those that a representation makes itself come behind them
    """

    dim: int
    request_fields: int
    candidate_fields: int
    request_numbers: int
    candidate_numbers: int
    names_R: tuple[str, ...] = ()
    names_N: tuple[str, ...] = ()

    @property
    def request(self) -> int:
        """Columns of the joined request side."""
        return self.request_fields * self.dim + self.request_numbers

    @property
    def candidate(self) -> int:
        """Columns of the joined candidate side."""
        return self.candidate_fields * self.dim + self.candidate_numbers


@dataclass(frozen=True)
class Features:
    """What a representation makes of a batch.

    fields_R, fields_N    [R, F_u, D], [N, F_i, D]: one vector per field; the request side is never repeated
    numbers_R, numbers_N  [R, C_u], [N, C_i]
    losses                auxiliary losses by name, to be added to the model's
    attention             where the representation attends: the weight of every pair [P] (`Batch.pairs`), by the keys of
                          `Representation.attends`
    """

    batch: Batch
    fields_R: Tensor
    fields_N: Tensor
    numbers_R: Tensor
    numbers_N: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    attention: Mapping[str, Tensor] = field(default_factory=dict)

    def sides(self) -> tuple[Tensor, Tensor]:
        """([R, ...], [N, ...]): fields and numbers of either side joined, as a tower reads them."""
        return _join(self.fields_R, self.numbers_R), _join(self.fields_N, self.numbers_N)

    def fields(self) -> Tensor:
        """[N, F_u + F_i, D]: all fields of every row, for models that need all pairs."""
        _, fields, width = self.fields_R.shape
        repeated = spread(self.fields_R.flatten(1), self.batch.request_of).view(-1, fields, width)
        return torch.cat([repeated, self.fields_N], dim=1)

    def rows(self) -> Tensor:
        """[N, everything]: request side repeated and joined with the candidate side."""
        x_R, x_N = self.sides()
        return torch.cat([spread(x_R, self.batch.request_of), x_N], dim=1)


@dataclass(frozen=True)
class Weighed:
    """How strongly the fields of each row are weighed against each other.

    rows, columns  names of the F and G fields of the two axes: what looks, and what it looks at
    weights        [N, F, G]; NaN where two fields are not weighed: pairs without direction stand above the diagonal alone
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    weights: Tensor


def _join(fields: Tensor, numbers: Tensor) -> Tensor:
    flat = fields.flatten(1)
    return torch.cat([flat, numbers], dim=1) if numbers.shape[1] else flat


class Part(nn.Module, ABC):
    """A representation, interaction or heads. `Options` is its frozen dataclass; `kind` its name in a recipe.

    stage  the kind of the stage without which it says nothing (`models.stages`); "": none
    """

    Options: ClassVar[type[Any]]
    stage: ClassVar[str] = ""

    def penalties(self, features: Features) -> Mapping[str, Tensor]:
        """Terms that the part adds to the loss in training, by name, weighted as they are to be added.

        Asked for once per batch. What does not follow from sums over rows is multiplied with `Batch.share`, so that a
        request cut into chunks is charged once. A representation may give what it has at hand as `Features.losses`.
        """
        return {}

    def served(self) -> Part:
        """The part as it is exported: the same numbers, without what training has switched off. By default itself."""
        return self


class Representation(Part):
    """Batch -> Features. Sets `widths` when built; tells the batch builder what it `needs`.

    attends  keys of `Features.attention` and the history of each: the history's name where one unit weighs its events,
             `history.field` (or `history.field+field`) where several do
    scores_learnt  whether training learns anything from the scores; `Model` says so
    """

    widths: Widths
    needs: Needs = Needs()
    attends: Mapping[str, str] = MappingProxyType({})
    scores_learnt: bool = True

    @abstractmethod
    def forward(self, batch: Batch) -> Features:
        """The features of a batch."""

    def served(self) -> Representation:
        """See `Part.served`."""
        return self


class Interaction(Part):
    """Features -> logits [N, outputs], without a bias: that is the heads'. Built with (fitted, widths, outputs, options).

    needs   what it asks of the batch builder, beside what the representation does
    single  whether it gives one output alone
    """

    single: ClassVar[bool] = False
    needs: Needs = Needs()

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""

    def served(self) -> Interaction:
        """See `Part.served`."""
        return self

    def shared(self) -> Sequence[Tensor]:
        """The last layer that all outputs share, by which tasks are balanced (`training.balance`); () where there is none."""
        return ()

    def monitor(self, features: Features) -> Mapping[str, Tensor]:
        """What is worth watching of each row, by name: [N, ...]. A run keeps the means over its validation rows."""
        return {}

    def between_fields(self, features: Features) -> Mapping[str, Weighed]:
        """Attention between fields, or strengths of their pairs, by what they are; {} where it has none. For people: it is not
        in the served graph, as the attention of a representation to past events is (`Features.attention`)."""
        return {}


@dataclass(frozen=True)
class Head:
    """One thing a model says about a row.

    task     whose labels it is judged by
    link     from logit to prediction: sigmoid: a probability · identity: a number · exp: a positive number · odds: e^z of a
             weighted logistic regression, which rank by the expected label but are not on its scale
    space    own: over the task's own space (where its weight is not 0) · entire: over the space of the root of its
             chain of `within`, with the product of the chain's labels (a conversion that needs a click: y and z)
    trained  whether it has a term in the loss; a derived head (ESMM's pCVR) has none
    direct   whether its labels have the odds of its logit; False where the heads judge it through something else (a
             position, a delay), so that no constant offset undoes a sampling of rows (`training.sampling`)
    """

    name: str
    task: str
    link: Link = "sigmoid"
    space: Literal["own", "entire"] = "own"
    trained: bool = True
    direct: bool = True

    @property
    def judge(self) -> tuple[str, float]:
        """(metric, 1 if larger is better else -1) that early stopping, searches and tables judge it by."""
        judges = {"sigmoid": ("auc", 1.0), "odds": ("odds_loss", -1.0)}
        return judges.get(self.link, ("rmse", -1.0))


class Heads(Part):
    """Logits [N, K] of the interactions -> logits [N, H] of the heads; holds the global bias."""

    heads: tuple[Head, ...]
    inputs: int

    @abstractmethod
    def forward(self, logits_NK: Tensor) -> Tensor:
        """[N, K] -> [N, H]: what is evaluated and served."""

    def monitor(self, logits_NH: Tensor) -> Mapping[str, Tensor]:
        """What is worth watching of each row, by name: [N, ...]. A run keeps the means over its validation rows."""
        return {}

    def logged(self, logits_NH: Tensor, batch: Batch) -> Tensor:
        """[N, H] -> [N, H]: the logits of what the log holds, where that is not what is predicted.

        A click at its position, a conversion as far as it is known. It is what training and early stopping judge. What only
        they know (`Batch.train_only`) enters here and in `loss`, and so never the graph.
        """
        return logits_NH

    def loss(self, index: int, logits_NH: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        """[N]: the loss of each row for head `index`, before weights."""
        return head_loss(self.heads[index], self.logged(logits_NH, batch)[:, index], labels_N)


@dataclass(frozen=True)
class Output:
    """logits [N, H], one column a head; auxiliary losses; attention weights [P], by the keys of `Model.attends`."""

    logits: Tensor
    losses: Mapping[str, Tensor]
    attention: Mapping[str, Tensor]


class Calibration(nn.Module):
    """A line through the logits of each head, fitted after training (`training.calibrate`); the identity until then."""

    slope: Tensor
    intercept: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(heads))
        self.register_buffer("intercept", torch.zeros(heads))

    def forward(self, logits_NH: Tensor) -> Tensor:
        """[N, H] -> [N, H]."""
        return logits_NH * self.slope + self.intercept


class Balance(Protocol):
    """How the losses of the heads are weighed against each other; see `training.balance`."""

    def rows(self, head: Head, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        """The weights of a head's rows, [N]."""

    def weighed(self, head: Head, loss: Tensor, share: Tensor) -> Tensor:
        """The head's term of the loss. share: sum of weights / N."""


class Model(nn.Module):
    """A composition: see the module's docstring. Built by `registry.build`.

    calibration  applied to the logits in evaluation mode, and so wherever scores are given: served graphs included
    table        the [model] table that it was built from, so that a bundle can say what it is
    balance      weighs the terms of the loss; None: all 1
    task_weights  given weights of the tasks, by which losses that parts take of their labels count too; None: all 1
    """

    calibration: Calibration | None
    table: Mapping[str, Any]
    balance: Balance | None
    task_weights: tuple[float, ...] | None

    def __init__(
        self,
        name: str,
        fitted: FittedSchema,
        representation: Representation,
        interactions: Sequence[Interaction],
        heads: Heads,
        narrow: Narrowing | None = None,
    ) -> None:
        super().__init__()
        self.name, self.narrow = name, narrow
        self.tasks = fitted.schema.tasks
        self.representation = representation
        self.interactions = nn.ModuleList(interactions)
        self.head = heads
        self.heads = heads.heads
        self.needs, self.attends = representation.needs, dict(representation.attends)
        for interaction in interactions:
            self.needs = self.needs | interaction.needs
        # heads without a loss (`models.catalogue`) and interactions that charge nothing read no score in training
        charges = any(type(interaction).penalties is not Part.penalties for interaction in interactions)
        representation.scores_learnt = charges or any(head.trained for head in heads.heads)
        self.table = {}
        self.calibration = self.balance = self.task_weights = None

    def forward(self, batch: Batch) -> Output:
        """Logits of every row and head."""
        seen = batch
        if self.training and self.task_weights is not None:
            seen = replace(batch, weights=batch.weights * batch.weights.new_tensor(self.task_weights))
        features = self._features(seen)
        logits = self.interactions[0](features)
        for interaction in self.interactions[1:]:
            logits = logits + interaction(features)
        logits = self.head(logits)
        if self.calibration is not None and not self.training:
            logits = self.calibration(logits)
        losses = dict(features.losses)
        if self.training:
            for part in (self.representation, *self.interactions, self.head):
                losses |= part.penalties(features)
        return Output(logits, losses, features.attention)

    def served(self) -> Model:
        """The model as it is exported: the same numbers in evaluation mode, of parts without what training switched off."""
        parts = [self.representation, *self.interactions, self.head]
        served = [part.served() for part in parts]
        if self.balance is None and all(part is before for part, before in zip(served, parts, strict=True)):
            return self
        out = copy.copy(self)
        changed = {"representation": served[0], "interactions": nn.ModuleList(served[1:-1]), "head": served[-1]}
        out._modules = self._modules | changed | {"balance": None}
        return out.eval()

    def losses(self, batch: Batch, out: Output, factors: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of the loss by name; their sum is minimised. Each head's is sum of weight * loss / N of the step.

        factors  [N, H], multiplied with the weights: what a row of a sample stands for
        """
        return self.losses_and_shares(batch, out, factors)[0]

    def losses_and_shares(
        self, batch: Batch, out: Output, factors: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`losses`, and of the heads among them the sum of weights / N of the step: a term over it is a mean over rows that
        count."""
        terms: dict[str, Tensor] = {}
        shares: dict[str, Tensor] = {}
        for i, head in enumerate(self.heads):
            if head.trained:
                labels, weights = self.target(batch, head)
                if factors is not None:
                    weights = weights * factors[:, i]
                if self.balance is not None:
                    weights = self.balance.rows(head, labels, weights)
                rows = batch.step_rows
                term = (weights * self.head.loss(i, out.logits, labels, batch)).sum() / rows
                shares[head.name] = weights.sum() / rows
                if self.balance is not None:
                    term = self.balance.weighed(head, term, shares[head.name])
                terms[head.name] = term
        return terms | dict(out.losses), shares

    def monitor(self, batch: Batch) -> dict[str, Tensor]:
        """What the parts watch of each row, by name: [N, ...]."""
        features = self._features(batch)
        logits = torch.stack([interaction(features) for interaction in self.interactions]).sum(0)
        found: dict[str, Tensor] = {}
        for branch in self.branches:
            found |= branch.monitor(features)
        return found | dict(self.head.monitor(self.head(logits)))

    def between_fields(self, batch: Batch) -> dict[str, Weighed]:
        """How the interactions weigh fields against each other, by what it is (`Interaction.between_fields`)."""
        features = self._features(batch)
        found: dict[str, Weighed] = {}
        for branch in self.branches:
            found |= branch.between_fields(features)
        return found

    @property
    def branches(self) -> list[Interaction]:
        """The interactions, typed: a `ModuleList` knows them as modules only."""
        return [cast(Interaction, interaction) for interaction in self.interactions]

    def _features(self, batch: Batch) -> Features:
        found: Features = self.representation(batch if self.narrow is None else self.narrow(batch))
        return found

    def target(self, batch: Batch, head: Head) -> tuple[Tensor, Tensor]:
        """(labels [N], weights [N]) a head is judged by; labels under weight 0 are 0, never NaN."""
        return head_target(self.tasks, head, batch.labels, batch.weights)

    def embeddings(self) -> dict[str, Tables]:
        """Every embedding weight by its parameter's name: what row optimisers update."""
        return {f"{name}.weight": m for name, m in self.named_modules() if isinstance(m, Tables)}

    def first_order(self) -> set[str]:
        """Names of the first-order weights among `embeddings()`: a parameter group of their own."""
        found = set()
        for name, module in self.named_modules():
            if isinstance(module, FirstOrder):
                found |= {f"{name}.tables.{w}.weight" for w in module.tables}
        return found


class FirstOrder(Embedding):
    """The first-order weights of a linear part: one number (per output) for each value, 0 at the start."""

    def __init__(self, fitted: FittedSchema, outputs: int, blocks: Sequence[str]) -> None:
        super().__init__(fitted, width=outputs, std=0.0, blocks=blocks, forced=True, ages=False)


def head_loss(head: Head, logits: Tensor, labels: Tensor) -> Tensor:
    """[N]: cross-entropy for a probability, squared error for a number, Poisson-style for an exponential link,
    weighted logistic regression for odds (a label of y > 0 is a positive that weighs y).
    """
    match head.link:
        case "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        case "identity":
            return (logits - labels).square()
        case "exp":
            return logits.exp() - labels * logits
        case "odds":
            return labels * F.softplus(-logits) + (labels == 0) * F.softplus(logits)


def head_target(tasks: Sequence[Task], head: Head, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(labels [N], weights [N]) of one head from the tasks' [N, K]; see `Head.space`."""
    names = [t.name for t in tasks]
    i = names.index(head.task)
    if head.space == "own":
        weight = weights[:, i]
        return torch.where(weight != 0, labels[:, i], 0.0), weight
    chain = [i]
    while tasks[chain[-1]].within is not None:
        chain.append(names.index(tasks[chain[-1]].within or ""))
    label = torch.ones_like(weights[:, i])
    weight = weights[:, chain[-1]]
    for j in reversed(chain[:-1]):
        above = chain[chain.index(j) + 1]
        label = label * torch.where(weights[:, above] != 0, labels[:, above], 0.0)
        # within the space so far (label still 1) the next task's own weight counts; 0 is unknown: the row leaves the space
        weight = torch.where(label != 0, weight * weights[:, j], weight)
    label = label * torch.where(weights[:, i] != 0, labels[:, i], 0.0)
    return torch.where(weight != 0, label, 0.0), weight
