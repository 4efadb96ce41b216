"""Optimisers for embedding tables that touch only the rows a batch touched.

V rows of a table · D its width · U distinct rows in a step
The embedding layer gathers the distinct rows of a batch into a leaf; its gradient [U, D] is exact and summed per row. A
row optimiser keeps its state beside the table, per row, and `step(rows, grad)` reads and writes those U rows alone: the
cost follows the batch, never the vocabulary, and a row that is absent stays bit for bit as it was.

    optimiser = LazyAdam(table, lr=1e-3)
    rows, inverse = ids.unique(return_inverse=True)
    leaf = table.detach().index_select(0, rows).requires_grad_()
    loss(leaf.index_select(0, inverse)).backward()
    optimiser.step(rows, leaf.grad)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finerank.errors import UserError, nearest
from finerank.kernels import rows as loops
from finerank.kernels.pages import in_huge_pages


def take(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows] as a copy: [U, ...]."""
    if table.numel() == len(table):  # one number a row: as a vector it takes half the time
        return table.view(-1).index_select(0, rows).view(-1, *table.shape[1:])
    return table.index_select(0, rows)


def put(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """table[rows] = values, in place; `rows` must be distinct.

    Read, change and write back through this, never `index_add_` with a factor: that one runs on a single thread and
    takes longer than all the rest of a step.
    """
    if table.numel() == len(table):
        table.view(-1).scatter_(0, rows, values.view(-1))
    else:
        table.index_copy_(0, rows, values)


def load_strictly(place: str, target: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into `target` in place.

    Raises: UserError if a key is missing or unexpected, or a shape or dtype differs; nothing is copied then.
    """
    missing, unexpected = sorted(target.keys() - saved.keys()), sorted(saved.keys() - target.keys())
    if missing or unexpected:
        raise UserError(
            f"{place}: the saved state does not fit: missing {missing}, unexpected {unexpected}; accepted: exactly "
            f"{sorted(target)}. Load it into the kind of optimiser that saved it, with the same options"
        )
    for key, tensor in target.items():
        other = saved[key]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise UserError(
                f"{place}: saved {key!r} is {other.dtype} {list(other.shape)}, this table needs {tensor.dtype} "
                f"{list(tensor.shape)}; was it saved for another table or vocabulary?"
            )
    for key, tensor in target.items():
        tensor.copy_(saved[key])


class RowOptimizer(ABC):
    """One embedding table and, beside it, the state of each of its rows.

    weight      [V, D], contiguous; changed in place. Move it to its device first: the state is made beside it
    lr          learning rate; assign to it for a schedule where `scheduled` is true
    state       by name, tensors [V] or [V, D] on the weight's device
    steps       calls of `step` so far
    scheduled   whether the learning rate may change during training
    summed      whether its settings are meant for the gradient of the rows' summed loss; else for that of their mean
    """

    scheduled: ClassVar[bool] = True
    summed: ClassVar[bool] = False

    def __init__(self, weight: Tensor, lr: float) -> None:
        if weight.dim() != 2 or not weight.is_contiguous() or not weight.is_floating_point():
            raise UserError(
                f"{type(self).__name__}: the weight is {weight.dtype} {list(weight.shape)}, "
                f"{'' if weight.is_contiguous() else 'not '}contiguous; accepted: a contiguous float table [V, D]"
            )
        self._require(lr > 0 and math.isfinite(lr), f"learning rate {lr}", "a positive number, for example 0.001")
        self.weight, self.lr, self.steps = weight, lr, 0
        self.state = self._fresh(weight.detach())

    @torch.no_grad()
    def step(self, rows: Tensor, grad: Tensor) -> None:
        """Move the given rows by one step; no other row of the weight or the state is read or written.

        rows  int64 [U], each row once; may be empty (a step in which the table had no part still counts)
        grad  [U, D], the summed gradient of each row; left as it is
        """
        if grad.shape != (len(rows), self.weight.shape[1]) or rows.dtype != torch.int64:
            raise UserError(
                f"{type(self).__name__}.step: got rows {rows.dtype} {list(rows.shape)} and grad {list(grad.shape)}; "
                f"accepted: rows int64 [U] and grad [U, {self.weight.shape[1]}]"
            )
        self.steps += 1
        if len(rows):
            self._step(rows, grad)

    @torch.no_grad()
    def reset(self, rows: Tensor) -> None:
        """Forget the past of rows that were given to a new id. Give their weights the new value first."""
        for key, values in self._fresh(take(self.weight, rows)).items():
            put(self.state[key], rows, values)

    def state_dict(self) -> dict[str, Tensor]:
        """The state (the tensors themselves, not copies) and `steps` as int64 []."""
        return {**self.state, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take over a saved state, in place. Raises: UserError on any missing, unexpected or misshapen entry."""
        steps = torch.tensor(0)
        load_strictly(type(self).__name__, {**self.state, "steps": steps}, saved)
        self.steps = int(steps)

    def _require(self, true: bool, got: str, accepted: str) -> None:
        if not true:
            raise UserError(f"{type(self).__name__}: {got}; accepted: {accepted}")

    @abstractmethod
    def _fresh(self, weight: Tensor) -> dict[str, Tensor]:
        """The state of rows [n, D] that were never touched."""

    @abstractmethod
    def _step(self, rows: Tensor, grad: Tensor) -> None: ...


class LazyAdam(RowOptimizer):
    """Adam whose moments advance only for the rows of the batch. Kingma & Ba, ICLR 2015, algorithm 1, row by row.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g²,  w <- w - lr m/(1 - b1^t) / (√(v/(1 - b2^t)) + eps)

    lr          default 1e-3, Adam's own
    betas       (b1, b2), each in [0, 1)
    eps         added to the root
    correction  what t counts.
                "global": all steps of this optimiser, as other lazy Adams do; equals dense Adam when every row is
                touched at every step. A row first met late gets little correction though its moments are young: at
                its k-th visit it moves by up to (1 - b1^k)/√(1 - b2^k) lr, 3.2 lr at the first, 6.6 lr at the 12th.
                "row": the row's own visits, so that a row moves by about lr from its first visit on, whenever it comes;
                one int32 per row and about a fifth more time. Choose it when ids keep arriving (rolling training,
                growing vocabularies) and their scores must not jump.
                Default "global": it is what published settings were tuned with, and the larger first steps let rare
                ids learn within few passes. With the learning rate tuned for each, both reached the same AUC on
                Amazon Grocery; at equal rates "global" was there a pass earlier.
    """

    def __init__(
        self,
        weight: Tensor,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        correction: Literal["global", "row"] = "global",
    ) -> None:
        if correction not in ("global", "row"):
            raise UserError(f"LazyAdam: correction {correction!r}; {nearest(correction, ('global', 'row'))}")
        self._require(0 <= betas[0] < 1 and 0 <= betas[1] < 1, f"betas {betas}", "two numbers in [0, 1)")
        self._require(eps >= 0, f"eps {eps}", "a number of at least 0")
        self.betas, self.eps, self.correction = betas, eps, correction
        super().__init__(weight, lr)

    def _fresh(self, weight: Tensor) -> dict[str, Tensor]:
        state = {key: in_huge_pages(torch.empty_like(weight)).zero_() for key in ("m", "v")}
        if self.correction == "row":
            state["visits"] = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return state

    def _step(self, rows: Tensor, grad: Tensor) -> None:
        if loops.fits(self.weight, grad):
            self._compiled_step(rows, grad)
        else:
            self._plain_step(rows, grad)

    def _compiled_step(self, rows: Tensor, grad: Tensor) -> None:
        """All of `_plain_step` in one pass over the rows."""
        b1, b2 = self.betas
        size, root, mine = self.lr, 1.0, None
        if self.correction == "row":
            visits = take(self.state["visits"], rows).add_(1)
            put(self.state["visits"], rows, visits)
            t = visits.to(grad.dtype)
            corrections = (1 / -torch.expm1(t * _log(b1)), (-torch.expm1(t * _log(b2))).rsqrt())
            mine = torch.stack(corrections, dim=1)
        else:
            size, root = self.lr / (1 - b1**self.steps), 1 / math.sqrt(1 - b2**self.steps)
        loops.adam(rows, grad, self.weight, self.state["m"], self.state["v"], self.betas, self.eps, size, root, mine)

    def _plain_step(self, rows: Tensor, grad: Tensor) -> None:
        b1, b2 = self.betas
        m = take(self.state["m"], rows).lerp_(grad, 1 - b1)
        v = take(self.state["v"], rows).mul_(b2).addcmul_(grad, grad, value=1 - b2)
        put(self.state["m"], rows, m)
        put(self.state["v"], rows, v)
        root = v.sqrt_()
        if self.correction == "row":
            visits = take(self.state["visits"], rows).add_(1)
            put(self.state["visits"], rows, visits)
            t = visits.to(m.dtype).unsqueeze(1)  # [U, 1]
            # 1 - b^t as -expm1(t log b): the difference itself would lose four of seven digits at t = 1
            m.div_(-torch.expm1(t * _log(b1)))
            root.div_((-torch.expm1(t * _log(b2))).sqrt_())
            size = self.lr
        else:
            root.div_(math.sqrt(1 - b2**self.steps))
            size = self.lr / (1 - b1**self.steps)
        put(self.weight, rows, take(self.weight, rows).addcdiv_(m, root.add_(self.eps), value=-size))


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf


class RowFTRL(RowOptimizer):
    """FTRL-Proximal per coordinate: logistic regression that is sparse. McMahan et al., KDD 2013, algorithm 1.

    s = (√(n + g²) - √n)/alpha,  z <- z + g - s w,  n <- n + g²,
    w = 0 where |z| <= l1, else -(z - sgn(z) l1) / ((beta + √n)/alpha + l2)

    alpha  the learning rate's scale; tune it, .05 to .1 is a good start. Not scheduled: rates already fall with n
    beta   smooths the first steps; 1 does nearly always
    l1     sparsity: larger sets more weights to exactly 0. Use 0 for a bias, which is a weight [1, 1] with rows [0]
    l2     shrinks all weights; 0 to 1

    Weights that are not 0 at the start are kept: z starts where it stands for them.

    The paper updates after every row. A step of many takes the gradient of their sum: of the mean, √n would stay far below
    beta, so that all coordinates had the rate alpha/beta, and l1 would outweigh whatever occurs in fewer than l1 batches.
    """

    scheduled: ClassVar[bool] = False
    summed: ClassVar[bool] = True

    def __init__(
        self, weight: Tensor, alpha: float = 0.05, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0
    ) -> None:
        self._require(beta > 0, f"beta {beta}", "a positive number, usually 1")
        self._require(l1 >= 0 and l2 >= 0, f"l1 {l1}, l2 {l2}", "numbers of at least 0")
        self.alpha, self.beta, self.l1, self.l2 = alpha, beta, l1, l2
        super().__init__(weight, alpha)

    def _fresh(self, weight: Tensor) -> dict[str, Tensor]:
        z = -(weight * (self.beta / self.alpha + self.l2) + weight.sign() * self.l1)
        return {"z": in_huge_pages(torch.empty_like(z)).copy_(z), "n": in_huge_pages(torch.empty_like(z)).zero_()}

    def _step(self, rows: Tensor, grad: Tensor) -> None:
        z, n, w = take(self.state["z"], rows), take(self.state["n"], rows), take(self.weight, rows)
        before = n.sqrt()
        n.addcmul_(grad, grad)
        after = n.sqrt()
        # A plain difference of roots: its sum over the steps is √n/alpha again, however coarse float32 is there, so z
        # and the rate stay in step. A "more exact" quotient g²/(sum of roots) would drift once n no longer grows.
        z.add_(grad).addcmul_(after - before, w, value=-1 / self.alpha)
        put(self.state["z"], rows, z)
        put(self.state["n"], rows, n)
        put(self.weight, rows, F.softshrink(z, self.l1).div_(after.add_(self.beta).div_(-self.alpha).sub_(self.l2)))


class RowAdagrad(RowOptimizer):
    """Adagrad: n <- n + g², w <- w - lr g/(√n + eps). Duchi et al., JMLR 2011. Equals the dense rule on every batch.

    lr                   default .01; tables often like .05
    initial_accumulator  n at the start: above 0 it tames the first steps. It is on the scale of the sum of a step's rows, as
                         papers and other systems give it, some for one row a step; 0 makes n blind to the scale
    """

    summed: ClassVar[bool] = True

    def __init__(self, weight: Tensor, lr: float = 0.01, initial_accumulator: float = 0.0, eps: float = 1e-10) -> None:
        self._require(initial_accumulator >= 0, f"initial_accumulator {initial_accumulator}", "a number of at least 0")
        self._require(eps >= 0, f"eps {eps}", "a number of at least 0")
        self.initial_accumulator, self.eps = initial_accumulator, eps
        super().__init__(weight, lr)

    def _fresh(self, weight: Tensor) -> dict[str, Tensor]:
        return {"n": in_huge_pages(torch.empty_like(weight)).fill_(self.initial_accumulator)}

    def _step(self, rows: Tensor, grad: Tensor) -> None:
        n = take(self.state["n"], rows).addcmul_(grad, grad)
        put(self.state["n"], rows, n)
        put(self.weight, rows, take(self.weight, rows).addcdiv_(grad, n.sqrt_().add_(self.eps), value=-self.lr))


class RowSGD(RowOptimizer):
    """Plain gradient descent, w <- w - lr g, without momentum. Equals the dense rule on every batch. No state."""

    def __init__(self, weight: Tensor, lr: float = 0.1) -> None:
        super().__init__(weight, lr)

    def _fresh(self, weight: Tensor) -> dict[str, Tensor]:
        return {}

    def _step(self, rows: Tensor, grad: Tensor) -> None:
        put(self.weight, rows, take(self.weight, rows).add_(grad, alpha=-self.lr))
