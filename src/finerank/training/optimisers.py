"""The optimisers of one model: a row optimiser per embedding weight, GRDA for gates, one dense optimiser for the rest.

V rows of a weight · U touched rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.kernels.pages import in_huge_pages
from finerank.layers.embedding import Embedding, Gradient, Tables
from finerank.layers.gates import Gates
from finerank.models.composition import Model
from finerank.schema import FittedSchema, Growing
from finerank.training.dense_optim import DenseAdagrad, DenseAdam, DenseOptimizer, DenseSGD
from finerank.training.grda import GRDA
from finerank.training.options import (
    FTRL,
    L2,
    SGD,
    Adagrad,
    Adam,
    DenseOptions,
    L2InLoss,
    L2PerRow,
    RowOptions,
    TrainingOptions,
)
from finerank.training.options import MiniBatchAware as MiniBatchAwareOptions
from finerank.training.options import Regulariser as RegulariserOptions
from finerank.training.regularise import CaughtUpL2, MiniBatchAware, PerRowL2, Regulariser, WholeTableL2
from finerank.training.row_optim import LazyAdam, RowAdagrad, RowFTRL, RowOptimizer, RowSGD


def row_optimiser(options: RowOptions, weight: Tensor) -> RowOptimizer:
    """The row optimiser that these options describe, for one weight [V, D]."""
    match options:
        case Adam():
            return LazyAdam(weight, options.lr, options.betas, options.eps, options.correction)
        case FTRL():
            return RowFTRL(weight, options.alpha, options.beta, options.l1, options.l2)
        case Adagrad():
            return RowAdagrad(weight, options.lr, options.initial_accumulator)
        case SGD():
            return RowSGD(weight, options.lr)


def dense_optimiser(options: DenseOptions, parameters: Sequence[Tensor]) -> DenseOptimizer:
    """The optimiser of all parameters that are no tables."""
    match options:
        case Adam():
            return DenseAdam(parameters, options.lr, options.betas, options.eps)
        case Adagrad():
            return DenseAdagrad(parameters, options.lr, options.initial_accumulator)
        case SGD():
            return DenseSGD(parameters, options.lr)


def regulariser(
    options: RegulariserOptions | None, tables: Tables, fitted: FittedSchema, first_order: bool, ftrl: bool
) -> Regulariser | None:
    """What these options charge one weight, if anything. first_order, ftrl: whether it is such a weight, moved by it."""
    match options:
        case MiniBatchAwareOptions(strength=strength) if not first_order:
            return MiniBatchAware(strength, row_counts(tables, fitted).to(tables.weight.device))
        case L2(strength=strength) if not first_order:
            return CaughtUpL2(strength, tables.weight)
        case L2InLoss(strength=strength) if strength and not ftrl:
            return WholeTableL2(strength, tables.weight)
        case L2PerRow(strength=strength) if strength and not ftrl:
            return PerRowL2(strength)
        case _:
            return None


class Optimisers:
    """Everything that moves a model's parameters.

    A step: `begin` (tables owe a decay), forward, backward, `step` (gradients are taken and cleared).
    """

    def __init__(self, model: Model, fitted: FittedSchema, options: TrainingOptions) -> None:
        self.options = options
        self.tables: dict[str, Tables] = model.embeddings()
        first_order = model.first_order()
        self.rows: dict[str, RowOptimizer] = {}
        self.regularisers: dict[str, Regulariser] = {}
        for name, tables in self.tables.items():
            first = name in first_order
            chosen = options.first_order if first and options.first_order is not None else options.tables
            self.rows[name] = row_optimiser(chosen, tables.weight.data)
            found = regulariser(options.regularise, tables, fitted, first, isinstance(chosen, FTRL))
            if found is not None:
                self.regularisers[name] = found
            if isinstance(found, CaughtUpL2):
                tables.before_gather = partial(found.catch_up, tables.weight.data)
        if any(isinstance(found, PerRowL2) for found in self.regularisers.values()):
            _count_readers(model)
        self.gates = {
            f"{name}.weight": GRDA(m.weight, m.proximal)
            for name, m in model.named_modules()
            if isinstance(m, Gates) and m.proximal is not None
        }
        apart = self.tables.keys() | self.gates.keys()
        self.dense_parameters = {n: p for n, p in model.named_parameters() if n not in apart}
        self.dense = dense_optimiser(options.dense, list(self.dense_parameters.values()))
        self.rates = {n: row.lr for n, row in self.rows.items() if row.scheduled}
        # which rows changed since the last checkpoint
        self.changed = {
            n: in_huge_pages(torch.empty(len(t.weight), dtype=torch.bool, device=t.weight.device)).zero_()
            for n, t in self.tables.items()
        }

    def slow_down(self, factor: float) -> None:
        """From now on all rates are `factor` times those of the options; FTRL's and the gates' are left alone."""
        for name, rate in self.rates.items():
            self.rows[name].lr = factor * rate
        self.dense.lr = factor * self.options.dense.lr

    def search_for(self, steps: int) -> None:
        """So many steps in all will move the gates."""
        for gates in self.gates.values():
            gates.options = replace(gates.options, steps=steps)

    def begin(self) -> None:
        """An optimiser step begins: before its first forward pass."""
        for name, found in self.regularisers.items():
            found.advance(self.rows[name].lr)

    def step(self, count: int) -> None:
        """Move every parameter by the gradients of the backward passes since the last step, whose loss was a mean of `count`
        rows."""
        for name, tables in self.tables.items():
            taken, charging = tables.take(), self.regularisers.get(name)
            if taken is None and charging is not None and charging.whole:
                taken = _nothing(tables)
            if taken is None:
                continue
            rows, grad = taken.rows, taken.values
            if charging is not None:
                rows, grad = charging.charge(taken, tables.weight.data, count)
            self.rows[name].step(rows, grad.mul_(count) if self.rows[name].summed else grad)
            self.changed[name].index_fill_(0, rows, True)
        for gates in self.gates.values():
            gates.step()
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.dense_parameters.values(), self.options.clip)
        if self.dense.summed:
            for parameter in self.dense_parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(count)
        self.dense.step()

    def settle(self) -> None:
        """Pay all decay that tables owe: before evaluation. A pass over the tables, only with `l2`."""
        for name, found in self.regularisers.items():
            if found.finish(self.tables[name].weight.data):
                self.changed[name][:] = True

    def reset_rows(self, name: str, rows: Tensor) -> None:
        """Rows of a weight that were given to new ids: forget their past."""
        self.rows[name].reset(rows)
        if name in self.regularisers:
            self.regularisers[name].reset(rows)
        self.changed[name][rows] = True

    def restart(self) -> None:
        """Every weight was set from elsewhere: row states begin anew from it, for one may stand for its value (FTRL's z)."""
        for name, tables in self.tables.items():
            self.rows[name].reset(torch.arange(len(tables.weight), device=tables.weight.device))

    def observe_rows(self, name: str, rows: Tensor, times: Tensor) -> None:
        """Rows of a growing table were met so many times more: int64 [U] each, rows distinct, on the CPU."""
        if name in self.regularisers:
            self.regularisers[name].observe(rows, times)
            self.changed[name][rows.to(self.changed[name].device)] = True

    # -------------------------------------------------------------------------------------------- checkpoint

    def state(self) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """(tensors, rows): everything by name; rows are the per-row states with the rows changed since `saved`."""
        tensors: dict[str, Tensor] = {}
        rows: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.tables:
            changed = self.changed[name].nonzero().squeeze(1)
            parts: dict[str, Mapping[str, Tensor]] = {"row": self.rows[name].state_dict()}
            if name in self.regularisers:
                parts[self.regularisers[name].part] = self.regularisers[name].state_dict()
            for part, state in parts.items():
                for key, tensor in state.items():
                    if tensor.dim() and len(tensor) == len(self.tables[name].weight):
                        rows[f"{part}.{name}.{key}"] = (tensor, changed)
                    else:
                        tensors[f"{part}.{name}.{key}"] = tensor
        for name, gates in self.gates.items():
            tensors |= {f"gates.{name}.{key}": value for key, value in gates.state_dict().items()}
        for name, state in zip(self.dense_parameters, self.dense.state, strict=True):
            tensors |= {f"dense.{name}.{key}": value for key, value in state.items()}
        # a parameter that no batch has reached yet (a GRU, where no history was met) has none
        tensors["dense"] = torch.tensor([bool(state) for state in self.dense.state], dtype=torch.bool)
        return tensors, rows

    def saved(self) -> None:
        """A checkpoint holds the present state: nothing has changed since."""
        for changed in self.changed.values():
            changed[:] = False

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors that `state` gave (rows whole). Raises UserError if a key is missing or unexpected."""
        left = dict(tensors)

        def part(prefix: str) -> dict[str, Tensor]:
            return {key[len(prefix) :]: left.pop(key) for key in [k for k in left if k.startswith(prefix)]}

        for name in self.tables:
            self.rows[name].load_state_dict(part(f"row.{name}."))
            if name in self.regularisers:
                self.regularisers[name].load_state_dict(part(f"{self.regularisers[name].part}.{name}."))
        for name, gates in self.gates.items():
            gates.load_state_dict(part(f"gates.{name}."))
        begun = left.pop("dense", torch.empty(0)).tolist()
        dense = {name: part(f"dense.{name}.") for name in self.dense_parameters}
        if left:
            raise UserError(
                f"checkpoint: unexpected optimiser state {sorted(left)[:5]}; was it saved by another recipe?"
            )
        wrong = [name for i, name in enumerate(dense) if begun[i : i + 1] != [bool(dense[name])]]
        if wrong or len(begun) != len(dense):
            raise UserError(
                f"checkpoint: the optimiser state does not fit {wrong[:5]}; was it saved by another recipe?"
            )
        self.dense.load(list(dense.values()))


def row_counts(tables: Tables, fitted: FittedSchema) -> Tensor:
    """int64 [V]: occurrences in the training rows of what each row of a weight stands for; 0 where rows are yet to be given."""
    out = []
    for name, size in tables.sizes.items():
        table = fitted.tables[name]
        if isinstance(table.encoding, Growing):  # counts are per symbol; `growing.admit` brings them to the rows
            out.append(torch.zeros(size, dtype=torch.int64))
        else:
            out.append(torch.from_numpy(table.counts.astype("int64")))
    return torch.cat(out)


def _nothing(tables: Tables) -> Gradient:
    """The gradient of a weight that a step did not read."""
    weight = tables.weight.data
    return Gradient(torch.empty(0, dtype=torch.int64, device=weight.device), weight.new_empty((0, tables.width)))


def _count_readers(model: Model) -> None:
    """Have every embedding count who reads its rows. Raises UserError for a model with tables that are read otherwise."""
    counted: set[Tables] = set()
    for module in model.modules():
        if isinstance(module, Embedding):
            module.counting = True
            counted |= {module.of(int(width)) for width in module.tables}
    if left := sorted(name for name, tables in model.embeddings().items() if tables not in counted):
        raise UserError(
            f"training.regularise = l2_per_row: {left[0]} is compared with sampled or all items, not read by training rows; "
            "accepted for such a model: mini_batch_aware, l2, l2_in_loss"
        )
