"""The YouTube recommender: a softmax over all videos, and ranking by watch time. Covington et al., RecSys 2016.

R requests · N candidates · T events · M drawn items · D width of the last layer · V items

`youtube_candidates` (section 3)
    u = ReLU tower over [mean of the watched, of the searched, ..., the request's fields and numbers, example age]
    P(item) = softmax(<u, v_item>), v a table of its own (the softmax's weights, not the tower's input)
    loss over rows that were watched (label 1 of the first task), among M drawn items: logit - log Q(item), which makes a
    sampled softmax unbiased; Q is an item's share of the events known to the request, so nothing of the future is used
    example age: log(1 + days) from the row to the newest training row; 0 in evaluation and serving. It takes up what is new
    because the log ended just then
    The request alone is read: of the candidate, its item. Example ages, draws and their Q exist in training only. To keep
    heavy users from ruling the loss, as section 3.3 does with a fixed number of examples a user, give rows weights.

`youtube_ranking` (section 4)
    the tower over the fields, with x~, x~² and √x~ of numbers (transform = "powers" of a numeric feature), item and past
    sharing a table; heads `watch_time`: weighted logistic regression
        loss = T softplus(-z) of a row watched for T > 0 (unit: the label's), softplus(z) of a row not watched
    whose odds are sum T / (rows not watched), near E[T]; so e^z is served: the head's link is odds. The label is the watch
    time itself, a task of kind "regression" with 0 where nothing was watched; no column of weights is needed. A binary task
    is T = 1, which is plain logistic regression, and keeps its sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch
from finerank.data.drawing import Drawing
from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_count, check_layers
from finerank.layers.mlp import MLP
from finerank.layers.segments import segment_mean
from finerank.models.base import Pooled, Tower
from finerank.models.catalogue import (
    Catalogue,
    CatalogueHeads,
    Match,
    in_batch_softmax,
    item_of,
    of_rows,
    sampled_logits,
    sampled_softmax,
)
from finerank.models.composition import Features, Head, Heads, Needs, Representation, Widths, head_loss, head_target
from finerank.models.pairs import attributes
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, initial_bias
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class UserTower(Representation):
    """A tower over the request's side, against vectors of items."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The tower and its catalogue.

        embedding    width and initial spread of the fields; 256 in the paper
        history      whose items are the catalogue and are drawn; "": the first with the candidate's item
        hidden       1024-512-256 in the paper; the last width is that of items and users
        activation   after every layer, the last included
        negatives    what a watched item is told apart from · drawn: items drawn for each request, as in the paper · batch: the
                     items of the other watched rows of the batch, which cost nothing to draw; give large batches
        drawn        items drawn per request and epoch; thousands in the paper
        correct      logits less log Q; without it popular items are pushed down
        example_age  whether the tower reads it
        """

        kind: ClassVar[str] = "user_tower"
        embedding: EmbeddingOptions = EmbeddingOptions()
        history: str = ""
        hidden: tuple[int, ...] = (1024, 512, 256)
        activation: Activation = "relu"
        negatives: Literal["drawn", "batch"] = "drawn"
        drawn: int = 100
        correct: bool = True
        example_age: bool = True

        def __post_init__(self) -> None:
            check_layers(hidden=self.hidden)
            check_count(drawn=self.drawn)

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        o = self.options = options
        self.item = item_of(fitted, o.history)
        self.task = fitted.schema.tasks[0]
        self.tasks = fitted.schema.tasks
        if self.task.kind != "binary":
            raise UserError(
                f"user_tower learns from rows that were chosen, and task {self.task.name!r} is a {self.task.kind}; accepted: a "
                "binary task as the first"
            )
        drawing = Drawing(count=o.drawn if o.negatives == "drawn" else 0, item=self.item.name, of="candidates")
        self.needs = Needs(drawn={self.item.history: drawing}, example_age=o.example_age)
        self.embed = FieldEmbedding(fitted, o.embedding, ("request", *fitted.histories), ages=False)
        self.histories = {name: attributes(self.embed, name) for name in fitted.histories}
        inputs = self.embed.width_of("request", self.embed.columns("request")) + len(fitted.request.numbers)
        for name, names in self.histories.items():
            inputs += self.embed.width_of(name, names) + len(fitted.histories[name].numbers)
        self.tower = MLP(inputs + o.example_age, o.hidden, act=o.activation)
        width = o.hidden[-1]
        self.catalogue = Catalogue(self.item, width, width**-0.5, biased=False)  # weights of a layer, not of a field
        self.widths = Widths(width, 1, 1, 0, 0)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `losses` holds the sampled softmax's in training."""
        found = self.embed(batch)
        inputs = [found["request"].joined(), batch.request.numbers]
        for name, names in self.histories.items():
            history = batch.histories[name]
            events = torch.cat([found[name].joined(names), history.events.numbers], dim=1)
            inputs.append(segment_mean(events, history.segments, batch.R))
        if self.options.example_age:
            days = batch.example_age if self.training else None
            age = batch.request.numbers.new_zeros(inputs[0].shape[0]) if days is None else torch.log1p(days)
            inputs.append(age.unsqueeze(1))
        u_RD = self.tower(torch.cat(inputs, dim=1))
        items_N = batch.candidate.ids[:, self.item.own]
        drawn = batch.drawn.get(self.item.history) if self.training else None
        losses = {}
        if drawn is None:
            (v_ND,) = self.catalogue(items_N)
        else:
            head = Head(self.task.name, self.task.name)
            labels, weights = head_target(self.tasks, head, batch.labels, batch.weights)
            at = (labels == 1).nonzero().squeeze(1)
            of, true = batch.request_of.index_select(0, at), items_N.index_select(0, at)
            own_q = drawn.true.index_select(0, at)
            if self.options.negatives == "batch":
                (v_ND,) = self.catalogue(items_N)
                logits = u_RD.index_select(0, of) @ v_ND.index_select(0, at).T
                each = in_batch_softmax(logits, true, of, own_q if self.options.correct else None)
            else:
                v_ND, v_RMD = self.catalogue(items_N, drawn.ids)
                among_RM = sampled_logits(u_RD, v_RMD)
                logit = (u_RD.index_select(0, of) * v_ND.index_select(0, at)).sum(1)
                ids, log_q = of_rows(drawn, of)
                if not self.options.correct:
                    own_q, log_q = torch.zeros_like(own_q), torch.zeros_like(log_q)
                each = sampled_softmax(logit, true, among_RM.index_select(0, of), ids, (own_q, log_q))
            losses["catalogue"] = (weights.index_select(0, at) * each).sum() / batch.step_rows
        none = u_RD.new_zeros((u_RD.shape[0], 0)), v_ND.new_zeros((v_ND.shape[0], 0))
        return Features(batch, u_RD.unsqueeze(1), v_ND.unsqueeze(1), *none, losses)


@part
class WatchTime(Heads):
    """One head per task: of a number of at least 0 its expectation by weighted logistic regression, else a probability."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """cap: the most that a row counts in the loss (3600 for seconds, say): a few long ones make steps wild; 0: no cap."""

        kind: ClassVar[str] = "watch_time"
        cap: float = 0.0

        def __post_init__(self) -> None:
            if not 0 <= self.cap < float("inf"):
                raise UserError(f"cap = {self.cap}; accepted: above 0, or 0 for no cap")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        self.cap = options.cap
        tasks = fitted.schema.tasks
        self.heads = tuple(Head(t.name, t.name, "sigmoid" if t.kind == "binary" else "odds") for t in tasks)
        self.inputs = len(tasks)
        start = initial_bias(fitted)
        for i, task in enumerate(tasks):
            if task.kind == "regression":
                if not start[i] > 0:
                    raise UserError(
                        f"heads 'watch_time': the mean of task {task.name!r} is {float(start[i]):.3g}; accepted: numbers of at "
                        "least 0, of which some are above"
                    )
                start[i] = start[i].log()
        self.bias = nn.Parameter(start)

    def forward(self, logits_NK: Tensor) -> Tensor:
        """[N, K] -> [N, K]."""
        return logits_NK + self.bias

    def loss(self, index: int, logits_NH: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        """[N]: see the module."""
        capped = labels_N.clamp(min=0.0, max=self.cap or None)
        return head_loss(self.heads[index], logits_NH[:, index], capped)


YOUTUBE_CANDIDATES = named(
    Composition(
        name="youtube_candidates",
        representation=UserTower.Options(),
        interactions=(Match.Options(),),
        heads=CatalogueHeads.Options(),
        paper="10.1145/2959100.2959190",
        requires=("history",),
    )
)

YOUTUBE_RANKING = named(
    Composition(
        name="youtube_ranking",
        representation=Pooled.Options(pooling="mean"),
        interactions=(Tower.Options(hidden=(1024, 512, 256), activation="relu"),),
        heads=WatchTime.Options(),
        paper="10.1145/2959100.2959190",
        requires=("history",),
    )
)
