"""Boosted trees as features of a logistic regression. He et al., ADKDD 2014, section 3.

Each of K trees sends a row to one of its leaves; the row is K ones out of K·L, and the logit is the sum of their weights.

Two stages: LightGBM grows the trees on the first part of the training requests, in time; the regression is trained on the
rest, which the trees did not see (their leaves would tell it their labels). The trees are kept as arrays and evaluated in the
graph. What they read: all numbers; ids that are in order (buckets) as the number of their bucket; of other single ids one
indicator per value, for fields of at most `max_ids` values or named in `also`. Lists, histories and wide fields are left to
other interactions beside this (`interactions = ["leaves", "linear"]`); growing tables change their rows and are no input.
Differs from the textbook: no negatives are dropped for the trees; the regression's optimiser is `training.first_order`.
R requests · N candidates · C inputs · K trees · L leaves of a tree
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.layers.segments import spread
from finerank.layers.trees import Trees, packed
from finerank.models.composition import Features, FirstOrder, Interaction, Model, Needs, Widths
from finerank.models.lr import NoFields
from finerank.models.narrow import Narrowing
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part, stage
from finerank.models.stages import Handover, Stage, Workshop
from finerank.runtime.blocks import Block
from finerank.schema import FIRST, Columns, FittedSchema, FittedTable, Growing, Schema, Task, Vocabulary
from finerank.typed import plain


@part
class Leaves(Interaction):
    """The sum of the weights of the leaves that a row falls into, one per tree."""

    stage = "trees"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The trees' shape, and what they read.

        trees    how many; hundreds in the paper
        leaves   of a tree at most; 12 in the paper
        depth    of a tree at most
        max_ids  an id field of at most so many values is an input, an indicator a value
        also     names of further id fields that are
        task     whose labels the trees are grown for; "": the first
        """

        kind: ClassVar[str] = "leaves"
        trees: int = 100
        leaves: int = 12
        depth: int = 6
        max_ids: int = 32
        also: tuple[str, ...] = ()
        task: str = ""

        def __post_init__(self) -> None:
            if self.trees < 1 or self.depth < 1 or self.leaves < 2 or self.max_ids < 0:
                raise UserError(
                    f"trees = {self.trees}, leaves = {self.leaves}, depth = {self.depth}, max_ids = {self.max_ids}; "
                    "accepted: at least one tree of two leaves and depth 1, max_ids of at least 0"
                )

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        task_of(fitted.schema, options.task)
        self.inputs = TreeInputs(fitted, options)
        self.trees = Trees(options.trees, options.leaves, options.depth)
        self.weights = FirstOrder(_leaf_schema(fitted, options), outputs, ("candidate",))

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        batch = features.batch
        leaf_NK = self.trees(self.inputs(batch))
        first_K = torch.arange(self.trees.count, device=leaf_NK.device) * self.trees.leaves
        leaves = Block(leaf_NK + first_K + FIRST, batch.candidate.numbers[:, :0])
        found = self.weights(replace(batch, candidate=leaves))["candidate"].vectors
        assert isinstance(found, Tensor)
        return found.sum(1)


def _leaf_schema(fitted: FittedSchema, options: Leaves.Options) -> FittedSchema:
    """A schema whose K columns share one table, a row for every leaf of every tree."""
    rows = FIRST + options.trees * options.leaves
    table = FittedTable(rows, np.zeros(rows, np.int64), Vocabulary())
    columns = Columns(ids=tuple((f"tree {k}", "leaves") for k in range(options.trees)))
    return replace(fitted, tables={"leaves": table}, request=Columns(), candidate=columns, histories={})


def task_of(schema: Schema, name: str) -> Task:
    """The task that trees are grown for. Raises UserError for a name that is none."""
    names = [t.name for t in schema.tasks]
    if name and name not in names:
        raise UserError(f"interaction 'leaves': task = {name!r} is no task; {nearest(name, names)}")
    return schema.tasks[names.index(name) if name else 0]


class TreeInputs(nn.Module):
    """What the trees read of a batch: [N, C]. names: of the inputs, in order."""

    def __init__(self, fitted: FittedSchema, options: Leaves.Options) -> None:
        super().__init__()
        sides = {"request": fitted.request, "candidate": fitted.candidate}
        known = [name for columns in sides.values() for name, _ in columns.ids]
        for name in options.also:
            if name not in known:
                raise UserError(
                    f"interaction 'leaves': also = {name!r} is no field with one id; {nearest(name, known)}"
                )
        self.names: list[str] = []
        for side, columns in sides.items():
            of_ordered, of_value = list[str](), list[str]()
            ordered, column, value = list[int](), list[int](), list[int]()
            for j, (name, of) in enumerate(columns.ids):
                table = fitted.tables[of]
                if isinstance(table.encoding, Growing):
                    if name in options.also:
                        raise UserError(
                            f"interaction 'leaves': also = {name!r} has a growing table, whose rows change their meaning; "
                            "give the field another encoding or leave it out"
                        )
                elif table.encoding == "cuts":
                    ordered.append(j)
                    of_ordered.append(name)
                elif table.rows - FIRST <= options.max_ids or name in options.also:
                    column += [j] * (table.rows - 1)  # every row but padding
                    value += range(1, table.rows)
                    of_value += [f"{name} = {v}" for v in range(1, table.rows)]
            self.names += [*columns.numbers, *of_ordered, *of_value]
            for key, index in (("ordered", ordered), ("column", column), ("value", value)):
                self.register_buffer(f"{side}_{key}", torch.tensor(index, dtype=torch.int64), persistent=False)
        if not self.names:
            raise UserError(
                f"interaction 'leaves': there is no number and no id field of at most max_ids = {options.max_ids} values; "
                "raise max_ids or name fields in also"
            )

    def forward(self, batch: Batch) -> Tensor:
        """[N, C]."""
        request, candidate = self._side("request", batch.request), self._side("candidate", batch.candidate)
        return torch.cat([spread(request, batch.request_of), candidate], dim=1)

    def _side(self, side: str, block: Block[Tensor]) -> Tensor:
        ordered, column, value = (self.get_buffer(f"{side}_{key}") for key in ("ordered", "column", "value"))
        numbers = block.numbers
        ids = block.ids.index_select(1, ordered).to(numbers.dtype)
        indicators = (block.ids.index_select(1, column) == value).to(numbers.dtype)
        return torch.cat([numbers, ids, indicators], dim=1)


@stage
class GrowTrees(Stage):
    """Grow the trees of 'leaves' with LightGBM on the first training requests; the rest is left to what follows."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How trees are grown.

        share     of the training requests, the first in time
        lr        shrinkage
        min_rows  of a leaf
        l2        on the values of leaves
        """

        kind: ClassVar[str] = "trees"
        share: float = 0.5
        lr: float = 0.1
        min_rows: int = 20
        l2: float = 0.0

        def __post_init__(self) -> None:
            if not 0 < self.share < 1:
                raise UserError(
                    f"share = {self.share}; accepted: above 0 and below 1, for the regression needs rows that the trees "
                    "did not see"
                )
            if not (self.lr > 0 and self.min_rows >= 1 and self.l2 >= 0):
                raise UserError(
                    f"lr = {self.lr}, min_rows = {self.min_rows}, l2 = {self.l2}; accepted: lr above 0, at least one row, "
                    "l2 of at least 0"
                )

    def check(self, model: Composition) -> None:
        """See `Stage.check`."""
        if sum(isinstance(o, Leaves.Options) for o in model.interactions) != 1:
            kinds = ", ".join(o.kind for o in model.interactions)
            raise UserError(
                f"stage 'trees' grows those of one interaction 'leaves', and the model has {kinds}; drop it"
            )

    def run(self, model: Composition, shop: Workshop) -> Handover:
        """See `Stage.run`."""
        (at,) = (i for i, o in enumerate(model.interactions) if isinstance(o, Leaves.Options))
        options: Leaves.Options = model.interactions[at]
        count = int(self.options.share * len(shop.requests))
        seen, rest = shop.requests[:count], shop.requests[count:]
        if not count or not len(rest):
            raise UserError(
                f"stage 'trees': share = {self.options.share} of {len(shop.requests)} training requests leaves none for "
                "the trees or none for the regression; give more rows or another share"
            )
        identity = {
            "part": plain(options),
            "stage": plain(self.options),
            "without": list(model.without),
            "data": shop.dataset.manifest["content"],
            "requests": len(shop.requests),
            "seed": shop.seed,
        }
        arrays = shop.once(identity, lambda: self._grow(model, options, shop, seen))

        def give(fresh: Model) -> None:
            leaves = fresh.interactions[at]
            assert isinstance(leaves, Leaves)
            leaves.trees.load(arrays)

        inner = arrays["left"][:, : options.leaves - 1] != arrays["right"][:, : options.leaves - 1]
        splits = inner.sum(dim=1)
        told = {"trees": int((splits > 0).sum()), "leaves": int((splits + 1).sum()), "training_requests": count}
        return Handover(model, give, rest, told)

    def _grow(
        self, model: Composition, options: Leaves.Options, shop: Workshop, requests: np.ndarray
    ) -> dict[str, Tensor]:
        data = shop.dataset
        narrow = Narrowing(data.fitted, model.without) if model.without else None
        fitted = narrow.fitted if narrow else data.fitted
        k = data.fitted.schema.tasks.index(task_of(data.fitted.schema, options.task))
        x, labels, weights = table_of(data, requests, TreeInputs(fitted, options), narrow, k)
        booster = grown(x, labels, weights, fitted.schema.tasks[k].kind, options, self.options, shop.seed)
        return packed([t["tree_structure"] for t in booster.dump_model()["tree_info"]], options.trees, options.leaves)


def table_of(
    data: Dataset, requests: np.ndarray, inputs: TreeInputs, narrow: Callable[[Batch], Batch] | None, task: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs float32 [n, C], labels [n], weights [n]) of the rows of these requests that have a weight."""
    parts = []
    for batch in BatchBuilder(data, Needs()).in_order(requests, 65_536):
        inside = batch.weights[:, task] != 0
        x = inputs(batch if narrow is None else narrow(batch))
        parts.append([t[inside].numpy() for t in (x, batch.labels[:, task], batch.weights[:, task])])
    x, labels, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x, labels, weights


def grown(
    x: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    kind: str,
    options: Leaves.Options,
    how: GrowTrees.Options,
    seed: int,
) -> Any:
    """LightGBM's booster: the same bits for the same rows, seed and number of threads."""
    try:
        import lightgbm
    except ImportError as error:
        raise UserError("stage 'trees' needs LightGBM, which is not here; install finerank[gbdt]") from error
    parameters = {
        "objective": "binary" if kind == "binary" else "regression",
        "num_leaves": options.leaves,
        "max_depth": options.depth,
        "learning_rate": how.lr,
        "min_data_in_leaf": how.min_rows,
        "lambda_l2": how.l2,
        "num_threads": torch.get_num_threads(),
        "seed": seed % 2**31,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    return lightgbm.train(parameters, lightgbm.Dataset(x, labels, weight=weights), options.trees)


GBDT_LR = named(
    Composition(
        name="gbdt_lr",
        representation=NoFields.Options(),
        interactions=(Leaves.Options(),),
        heads=TaskHeads.Options(),
        paper="10.1145/2648584.2648589",
        exemptions={
            "fits_a_tiny_set": (
                "half of so few rows grow trees of two leaves, which tell hardly any rows apart",
                "test_gbdt_lr_fits_a_tiny_set_with_leaves_of_one_row",
            ),
            "a_warm_start_takes_over_all_of_it": (
                "trees are grown from the new data, and their leaves are others",
                "test_gbdt_lr_warms_up_with_trees_of_its_own",
            ),
        },
        stages=(GrowTrees.Options(),),
    )
)
