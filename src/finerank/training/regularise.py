"""Regularisers of embedding tables, all but one at the cost of the batch.

V rows of a table · D its width · U distinct rows in a step
MiniBatchAware   the rows of the batch pay, the more the rarer they are           (a gradient: works with any optimiser)
CaughtUpL2       every row decays at every step, as whole-table L2 does, but the decay of an absent row is only written
                 down when the row is next used                                   (decoupled: no optimiser sees it)
PerRowL2         every training row pays for what it reads                        (a gradient)
WholeTableL2     a term of the loss: all rows have a gradient at every step       (at the cost of the whole table)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from finerank.errors import UserError
from finerank.kernels.pages import in_huge_pages
from finerank.layers.embedding import Gradient
from finerank.training.row_optim import load_strictly, put, take


def _strength(place: str, strength: float) -> float:
    if not (strength >= 0 and math.isfinite(strength)):
        raise UserError(f"{place}: strength {strength}; accepted: a number of at least 0 (0 switches it off)")
    return strength


class Regulariser:
    """What the rows of one weight [V, D] pay for their size. Each kind does some of this; by default nothing is done.

    part   how a checkpoint calls its state; "": it has none
    whole  whether rows move in steps that read none of them, too
    """

    part: ClassVar[str] = ""
    whole: ClassVar[bool] = False

    def advance(self, lr: float) -> None:
        """One optimiser step begins, at this learning rate."""

    def charge(self, taken: Gradient, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(rows, gradient) for the optimiser, once per step.

        taken  the gradient of the mean loss over `count` training rows; may be changed in place
        """
        return taken.rows, taken.values

    def finish(self, weight: Tensor) -> bool:
        """Pay in place what rows still owe; whether they did."""
        return False

    def observe(self, rows: Tensor, times: Tensor) -> None:
        """Data stream: row j was seen `times` more often. rows: distinct; both int64 [U]."""

    def reset(self, rows: Tensor) -> None:
        """Rows were given to a new id: forget what was of the old one."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take over saved state, in place. Raises: UserError on any missing, unexpected or misshapen entry."""
        load_strictly(type(self).__name__, self.state_dict(), saved)


class MiniBatchAware(Regulariser):
    """L2 on the rows of the batch alone, divided by how often a row occurs. Zhou et al. (DIN), KDD 2018, section 5.1.

    The gradient of row j of the batch grows by strength · w_j / max(1, n_j). Over an epoch a row then pays about the
    same whether it is rare or frequent, and rare rows, which overfit, pay most per visit. With an adaptive optimiser
    the term is rescaled with the gradient; it is not a decoupled decay.

    The paper's batches are of single rows. Ours have requests whole, and what the N rows of one share (the user, the past)
    counts N times and pays once: over an epoch 1/N of what the paper charges. Rows that are left out of training
    (`training.sampling`) count too and do not pay.

    strength  .01 in the paper (with 5,000 rows a batch and D = 12); 0 switches it off
    counts    [V] how often each row occurs in all training rows, histories and candidates together
              (`FittedTable.counts`); kept as float32 on the given device
    """

    part = "aware"

    def __init__(self, strength: float, counts: Tensor) -> None:
        self.strength = _strength("MiniBatchAware", strength)
        if counts.dim() != 1:
            raise UserError(
                f"MiniBatchAware: counts {list(counts.shape)}; accepted: one count per row of the table, [V]"
            )
        self.counts = counts.to(torch.float32, copy=True)

    @torch.no_grad()
    def charge(self, taken: Gradient, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See `Regulariser.charge`."""
        if self.strength:
            share = self.strength / take(self.counts, taken.rows).clamp_min_(1)  # [U]
            taken.values.addcmul_(take(weight, taken.rows), share.unsqueeze(1))
        return taken.rows, taken.values

    @torch.no_grad()
    def observe(self, rows: Tensor, times: Tensor) -> None:
        """See `Regulariser.observe`."""
        rows, times = rows.to(self.counts.device), times.to(self.counts.device)
        put(self.counts, rows, take(self.counts, rows).add_(times))

    def reset(self, rows: Tensor) -> None:
        """Start counting anew."""
        self.counts.index_fill_(0, rows, 0)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The counts: only needed again where `observe` changes them."""
        return {"counts": self.counts}


class CaughtUpL2(Regulariser):
    """Whole-table L2 as a decoupled decay, w <- (1 - lr · strength) w for every row at every step, applied lazily.

    Loshchilov & Hutter, ICLR 2019 (decoupled decay). A step is: decay the table, forward, backward, optimiser. What an
    absent row owes is one product; each row remembers how far it has paid, so any schedule of lr comes out right:

        l2.advance(lr)                 # once per optimiser step: all rows now owe one more decay
        l2.catch_up(weight, rows)      # before the forward pass gathers these rows
        ...
        l2.finish(weight)              # before evaluation, export: all rows at once; the only pass over the table

    A checkpoint needs no `finish`: the debt is part of the state. (Finishing changes the last bits, as products are
    rounded at other places: a run that must be repeated bit for bit finishes at the same steps.)

    strength  decay per unit of learning rate. Adam at 1e-3 with strength 1e-2 halves an idle row in 70,000 steps. Added to
              the loss under dense Adam, as elsewhere, a strength of 1e-6 already moves an idle row by about lr at a step,
              for its gradient is divided by its own size: one of .01 is below .001 after 25 steps, and here after 2
              billion. Such numbers are those of `WholeTableL2`
    weight    [V, D], the table: only its length and device are looked at
    """

    part = "decay"

    def __init__(self, strength: float, weight: Tensor) -> None:
        self.strength = _strength("CaughtUpL2", strength)
        self.owed = 0.0  # the sum over the steps of log(1 - lr · strength)
        # float64: small differences of a sum that grows
        self.paid = torch.zeros(
            len(weight), dtype=torch.float64, device=weight.device
        )  # [V], what of it each row has had

    def advance(self, lr: float) -> None:
        """One optimiser step begins, at this learning rate."""
        if not 0 <= lr * self.strength < 1:
            raise UserError(
                f"CaughtUpL2: lr {lr} times strength {self.strength} is {lr * self.strength}; accepted: at least 0 and "
                "below 1. Use a smaller strength"
            )
        self.owed += math.log1p(-lr * self.strength)

    @torch.no_grad()
    def catch_up(self, weight: Tensor, rows: Tensor) -> None:
        """Pay what these rows owe, in place; a second call in the same step does nothing. rows: int64 [U], distinct."""
        if self.strength and len(rows):
            factor = (self.owed - take(self.paid, rows)).exp_().to(weight.dtype)  # [U]
            put(weight, rows, take(weight, rows).mul_(factor.unsqueeze(1)))
            self.paid.index_fill_(0, rows, self.owed)

    @torch.no_grad()
    def finish(self, weight: Tensor) -> bool:
        """Pay what all rows owe, in place, and start the account again at zero."""
        if self.strength:
            weight.mul_((self.owed - self.paid).exp_().to(weight.dtype).unsqueeze(1))
            self.paid.zero_()
            self.owed = 0.0
        return bool(self.strength)

    def reset(self, rows: Tensor) -> None:
        """They owe nothing."""
        self.paid.index_fill_(0, rows, self.owed)

    def state_dict(self) -> dict[str, Tensor]:
        """`paid` (the tensor itself) and `owed` as float64 []."""
        return {"paid": self.paid, "owed": torch.tensor(self.owed, dtype=torch.float64)}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take over a saved account, in place. Raises: UserError on any missing, unexpected or misshapen entry."""
        owed = torch.tensor(0.0, dtype=torch.float64)
        load_strictly("CaughtUpL2", {"paid": self.paid, "owed": owed}, saved)
        self.owed = float(owed)


class PerRowL2(Regulariser):
    """L2 by which every training row pays for what it reads: FFM's lambda. Juan et al., RecSys 2016, equation 3.

    The loss of one training row grows by strength/2 · |w_j|² for each place at which it reads row j of the table. So the
    gradient of the mean loss grows by strength · (n_j / count) · w_j, where n_j counts the reading places of the step.

    strength  2e-5 in the paper; 0 switches it off
    """

    def __init__(self, strength: float) -> None:
        self.strength = _strength("PerRowL2", strength)

    @torch.no_grad()
    def charge(self, taken: Gradient, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See `Regulariser.charge`; needs the readers of the rows."""
        if taken.readers is not None:
            share = taken.readers.mul(self.strength / count)  # [U]
            taken.values.addcmul_(take(weight, taken.rows), share.unsqueeze(1))
        return taken.rows, taken.values


class WholeTableL2(Regulariser):
    """L2 as a term of the mean loss, strength/2 · |w|² over the whole table: the convention of FuxiCTR and BARS.

    Its gradient, strength · w, reaches every row at every step, and an adaptive optimiser rescales it with the rest: Adam
    pulls a row that is never met by up to lr a step, however small the strength. Nothing of that can be caught up later, so
    the row optimiser steps all rows, which makes it the dense one that published settings were tuned with; idle rows move
    on by their momentum, too. Rows of a growing table that are yet to be given decay unread, and start anew when they are.

    The cost is that of the table: a pass to write the gradient and the optimiser's over all rows, and V (4 D + 8) bytes.
    No state: a checkpoint needs nothing of it.

    strength  0 switches it off
    weight    [V, D], the table: only its shape and device are looked at
    """

    whole = True

    def __init__(self, strength: float, weight: Tensor) -> None:
        self.strength = _strength("WholeTableL2", strength)
        self.every = torch.arange(len(weight), device=weight.device)  # [V]
        self.grad = in_huge_pages(torch.empty_like(weight))  # [V, D], written anew at every step

    @torch.no_grad()
    def charge(self, taken: Gradient, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(all rows [V], their gradient [V, D] with the term's)."""
        torch.mul(weight, self.strength, out=self.grad)
        put(self.grad, taken.rows, take(self.grad, taken.rows).add_(taken.values))
        return self.every, self.grad
