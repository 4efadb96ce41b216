"""How the losses of several tasks are weighed against each other: by hand, by their uncertainty, or by their gradients.

The loss of a step is sum_i w_i L_i over the heads that are trained, L_i as ever: sum of weight · loss / N.

    fixed        w_i is given (`Fixed`); 0 leaves a task out: it is neither trained nor watched. Positives may count more.
                 What a part loses on a task's labels beside the heads (SIM's soft search) is weighed alike
    uncertainty  Kendall et al., CVPR 2018, section 3: with s_i = log sigma_i^2 learnt, a probability's cross-entropy is
                 multiplied by exp(-s_i), a number's squared error by exp(-s_i) / 2, and every row of the task adds s_i / 2,
                 the normaliser of the likelihood (which rows outside the task's space have not)
    gradnorm     Chen et al., ICML 2018: weights whose gradients at the last shared layer W are equally large, but for tasks
                 that learn more slowly: with G_i = |grad_W w_i L_i| and r_i = (L_i / L_i(0)) / mean, descend
                 sum |G_i - mean(G) r_i^alpha|, the target held constant, then bring the weights back to sum H

Since G_i = w_i g_i, the derivative of GradNorm's loss is sign(G_i - target_i) g_i: no second backward pass. W is the last
layer that all outputs share, as the interactions declare it (`Interaction.shared`): the experts' last layer, the bottom's. The
gradients of W alone are taken per task, through the towers; what lies below is passed once, as ever.

What is learnt here lies in the model's state (parameters of the dense optimiser, or buffers), so checkpoints hold it and a
resumed run goes on with it. H heads that are trained
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from finerank.errors import UserError, nearest
from finerank.models.composition import Head, Model
from finerank.training.options import Fixed, GradNorm, TaskWeighting, Uncertainty


class FixedWeights(nn.Module):
    """Weights that are given, per head."""

    def __init__(self, heads: Sequence[Head], options: Fixed) -> None:
        super().__init__()
        self.of_head = {h.name: options.weights.get(h.task, 1.0) for h in heads}
        self.positives = {h.name: options.positives.get(h.task, 1.0) for h in heads}

    def rows(self, head: Head, labels_N: Tensor, weights_N: Tensor) -> Tensor:
        """The weights of a head's rows, [N]."""
        times = self.positives[head.name]
        return weights_N if times == 1.0 else torch.where(labels_N == 1, times * weights_N, weights_N)

    def weighed(self, head: Head, loss: Tensor, share: Tensor) -> Tensor:
        """The head's term of the loss. share: sum of weights / N."""
        return loss * self.of_head[head.name]


class UncertaintyWeights(FixedWeights):
    """A log variance per head, learnt with the rest."""

    def __init__(self, heads: Sequence[Head], options: Uncertainty) -> None:
        super().__init__(heads, Fixed())
        self.at = {h.name: i for i, h in enumerate(heads)}
        self.log_variance = nn.Parameter(torch.full((len(heads),), options.start))

    def weighed(self, head: Head, loss: Tensor, share: Tensor) -> Tensor:
        """See the module."""
        s = self.log_variance[self.at[head.name]]
        precision = (-s).exp() * (1.0 if head.link == "sigmoid" else 0.5)
        return precision * loss + 0.5 * s * share


class GradNormWeights(FixedWeights):
    """Weights moved after every step by what the tasks' gradients were."""

    weights: Tensor
    first: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, heads: Sequence[Head], options: GradNorm, shared: Sequence[Tensor]) -> None:
        super().__init__(heads, Fixed())
        self.options, self.at = options, {h.name: i for i, h in enumerate(heads)}
        self._shared = list(shared)  # registered where they belong
        count = len(heads)
        self.register_buffer("weights", torch.ones(count))
        self.register_buffer("first", torch.full((count,), torch.nan))  # L_i(0)
        self.register_buffer("mean", torch.zeros(count))  # Adam's
        self.register_buffer("square", torch.zeros(count))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._losses = torch.zeros(count)
        self._gradients: list[list[Tensor]] = []

    def weighed(self, head: Head, loss: Tensor, share: Tensor) -> Tensor:
        """See the module."""
        return loss * self.weights[self.at[head.name]]

    def observe(self, terms: Mapping[str, Tensor]) -> None:
        """Before the backward pass of a batch of the step: each head's own gradient at the shared layer."""
        if not self._gradients:
            self._gradients = [[torch.zeros_like(p) for p in self._shared] for _ in self.at]
            self._losses = torch.zeros_like(self.weights)
        for name, i in self.at.items():
            w = self.weights[i]
            self._losses[i] += terms[name].detach() / w
            found = torch.autograd.grad(terms[name], self._shared, retain_graph=True, allow_unused=True)
            for total, grad in zip(self._gradients[i], found, strict=True):
                if grad is not None:
                    total += grad / w

    def update(self) -> None:
        """After the step: move the weights. A task without rows in the step has no say and is not moved."""
        g = torch.stack([torch.stack([t.norm() for t in grads]).norm() for grads in self._gradients])
        losses, self._gradients = self._losses, []
        seen = (g > 0) & (losses > 0)
        self.first = torch.where(self.first.isnan() & seen, losses, self.first)
        if int(seen.sum()) < 2:
            return
        norms = self.weights * g
        rate = (losses / self.first)[seen]
        target = norms[seen].mean() * (rate / rate.mean()) ** self.options.alpha
        slope = torch.zeros_like(g)
        slope[seen] = torch.sign(norms[seen] - target) * g[seen]
        self._adam(slope, seen)
        self.weights *= len(self.weights) / self.weights.sum()

    def _adam(self, slope: Tensor, seen: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.steps += 1
        self.mean.lerp_(slope, 1 - betas[0])
        self.square.lerp_(slope.square(), 1 - betas[1])
        t = float(self.steps)
        step = (self.mean / (1 - betas[0] ** t)) / ((self.square / (1 - betas[1] ** t)).sqrt() + 1e-12)
        # weights stay above 0: at 0 a task would be lost for good
        self.weights.copy_(torch.where(seen, (self.weights - self.options.lr * step).clamp(min=1e-3), self.weights))


def balance(model: Model, options: TaskWeighting | None) -> None:
    """Give the model the weighting of its heads. Raises UserError for tasks that are unknown, or nothing to balance by."""
    if options is None:
        return
    tasks = [t.name for t in model.tasks]
    if isinstance(options, Fixed):
        for name in (*options.weights, *options.positives):
            if name not in tasks:
                raise UserError(f"training.tasks: {name!r} is no task; {nearest(name, tasks)}")
        for name in options.positives:
            if next(t for t in model.tasks if t.name == name).kind != "binary":
                raise UserError(f"training.tasks.positives: {name!r} is a regression, which has no positives")
        off = {name for name, weight in options.weights.items() if weight == 0}
        model.heads = tuple(replace(h, trained=h.trained and h.task not in off) for h in model.heads)
        if not any(h.trained for h in model.heads):
            raise UserError("training.tasks.weights: every task has the weight 0; leave one above 0")
        model.task_weights = tuple(options.weights.get(name, 1.0) for name in tasks) if options.weights else None
    trained = [h for h in model.heads if h.trained]
    match options:
        case Fixed():
            model.balance = FixedWeights(trained, options)
        case Uncertainty():
            model.balance = UncertaintyWeights(trained, options)
        case GradNorm():
            shared = [weight for branch in model.branches for weight in branch.shared()]
            if len(trained) < 2 or not shared:
                why = "there is one head" if len(trained) < 2 else "no interaction shares a layer between the tasks"
                raise UserError(
                    f"training.tasks.kind = 'gradnorm': {why}, so there are no gradients to compare; accepted: several "
                    "tasks over a shared bottom or experts, or kind = 'uncertainty'"
                )
            model.balance = GradNormWeights(trained, options, shared)
