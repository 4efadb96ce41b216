"""The training loop: epochs of steps, validation after each, the best weights at the end, resumable at any step.

Everything random is a function of (seed, epoch, step, row): the order of requests, negatives, dropout. So a run that was
killed and resumed gives the same bits as one that was not, on the same machine with the same number of threads. On a GPU
it gives the same but for rounding: there gradients are added up in no fixed order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Step
from finerank.errors import UserError
from finerank.kernels import build as loops
from finerank.layers.precision import computing_in
from finerank.models.composition import Calibration, Model
from finerank.models.registry import Composition, build
from finerank.runtime.hashing import mix
from finerank.runtime.manifest import schema_hash
from finerank.training import calibrate
from finerank.training.ahead import Ahead
from finerank.training.balance import GradNormWeights, balance
from finerank.training.checkpoint import Checkpoints, restore
from finerank.training.evaluate import judged, metrics, monitored, predict
from finerank.training.growing import admit, load_maps, maps_state, row_maps
from finerank.training.memory import keep_freed_memory, settled_objects
from finerank.training.optimisers import Optimisers
from finerank.training.options import TrainingOptions
from finerank.training.sampling import Sampled
from finerank.training.scales import outweighed
from finerank.training.signs import check_signs
from finerank.training.warm_start import Learnt, OldRun, Taken, take_over
from finerank.typed import plain


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. loss: see `MeanLoss`; rows_per_second: of training alone; validation: per head."""

    epoch: int
    loss: float
    rows: int
    seconds: float
    validation: Mapping[str, Mapping[str, float]]
    score: float
    best: bool

    @property
    def rows_per_second(self) -> float:
        """Training rows a second, data included."""
        return self.rows / max(self.seconds, 1e-9)


@dataclass
class MeanLoss:
    """The mean loss of some rows, for people: each head's over the rows that count for it, what is added to them over all.

    Validation leaves rows of weight 0 out, and the two stand side by side. What is minimised is no such mean: it divides
    by all rows of a step, so that a step with few that count moves the weights less.

    sums, weights  by term: sum of weight * loss, and of weights
    """

    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, terms: Mapping[str, float], shares: Mapping[str, float], rows: int) -> None:
        """A step's terms and shares (`Model.losses_and_shares`), both over its rows; without a share: over all rows."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term * rows
            self.weights[name] = self.weights.get(name, 0.0) + shares.get(name, 1.0) * rows

    @staticmethod
    def of(terms: Mapping[str, float], shares: Mapping[str, float]) -> MeanLoss:
        """Of one step."""
        out = MeanLoss()
        out.add(terms, shares, 1)
        return out

    @property
    def value(self) -> float:
        """The sum over the terms; 0 for one of which no row counts."""
        return sum(self.sums[name] / weight for name, weight in self.weights.items() if weight > 0)


class Progress:
    """What a training tells while it runs; this one listens and says nothing."""

    def stage(self, name: str) -> None:
        """A stage of this name begins (`models.stages`); "": the model's own training."""

    def warm(self, taken: Taken) -> None:
        """The training begins with this of an older run."""

    def note(self, text: str) -> None:
        """What the user of the run should know."""

    def epoch(self, epoch: int, rows: int) -> None:
        """An epoch of so many rows begins."""

    def advance(self, rows: int, loss: float) -> None:
        """So many rows more, at this loss (of the last step, see `MeanLoss`)."""

    def validated(self, epoch: Epoch) -> None:
        """An epoch is over."""


class Trainer:
    """One training of one model on one data set. For a model that trains in stages: its last (`stages.after_stages`).

    folder    where checkpoints go: `checkpoints/` to go on from, `best/` the best weights. None: nothing is written
    at        called with the name of a point ("epoch", "step", and those of `Checkpoints`): for tests that kill there
    old       the run of `options.warm_start`; not asked for when a checkpoint is gone on with
    requests  int64, the training requests that are used; None: all
    """

    def __init__(
        self,
        composition: Composition,
        dataset: Dataset,
        options: TrainingOptions = TrainingOptions(),
        folder: Path | None = None,
        progress: Progress | None = None,
        at: Callable[[str], None] = lambda point: None,
        old: OldRun | None = None,
        requests: np.ndarray | None = None,
    ) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        loops.switch(options.loops == "auto")
        if options.keep_memory:
            keep_freed_memory()
        self.options, self.dataset, self.composition = options, dataset, composition
        self.device = choose_device(options.device)
        torch.manual_seed(options.seed)
        self.model: Model = build(composition, dataset.fitted)
        sampling = options.sampling
        if sampling is not None and (sampling.recalibrate or sampling.hot_items is not None):
            self.model.calibration = Calibration(len(self.model.heads))
        balance(self.model, options.tasks)
        self.model.to(self.device)
        self.row_maps = row_maps(dataset.fitted)
        self.builder = BatchBuilder(dataset, self.model.needs, self.row_maps, options.seed)
        self.progress = progress or Progress()
        self.at = at
        self.folder, self.old = folder, old
        self.origin = old.identity if old else None
        self.checkpoints = Checkpoints(folder / "checkpoints", at=at) if folder else None
        self.best_checkpoints = Checkpoints(folder / "best", keep=1, at=at) if folder else None
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[Epoch] = []
        self.requests = dataset.requests_of("train") if requests is None else requests
        if len(dataset.first) < 2**31:  # the only thing that is held for each
            self.requests = self.requests.astype(np.int32)
        self.stages: Mapping[str, Any] | None = None  # what each stage before gave, once they are done
        self.gifts: Sequence[Callable[[Model], None]] = ()  # the initial values that they hand over
        self.epoch = self.step = self.total_steps = 0
        self.losses = MeanLoss()  # of the epoch so far
        self.told: tuple[dict[str, float], dict[str, float]] = {}, {}  # terms and shares of the last step
        self.seconds = 0.0
        self.rows_done = 0

    @cached_property
    def optimisers(self) -> Optimisers:
        """Made when training begins: scoring needs none, and their state is larger than the tables."""
        return Optimisers(self.model, self.dataset.fitted, self.options)

    @cached_property
    def sampled(self) -> Sampled | None:
        """Which rows training leaves out; found out when training begins, for scoring needs none of it."""
        sampling = self.options.sampling
        return None if sampling is None else Sampled(self.dataset, self.model.heads, sampling)

    @cached_property
    def feed(self) -> BatchBuilder:
        """The batches that training sees."""
        keep = None if self.sampled is None else self.sampled.keep
        return BatchBuilder(self.dataset, self.model.needs, self.row_maps, self.options.seed, keep)

    @cached_property
    def ahead(self) -> Ahead:
        """The feed's batches on the device."""
        return Ahead(self.feed, self.device, threaded=self.device.type != "cpu")

    # ------------------------------------------------------------------------------------------------ the loop

    def fit(self, resume: bool = False, best: bool = True) -> list[Epoch]:
        """Train until the epochs are over or patience runs out; the model then holds the best weights.

        resume  go on from the newest checkpoint, if there is one
        best    False: the model holds the weights of the last step (and is not calibrated)
        """
        validation = self.dataset.requests_of("validation")
        self._check(validation)
        if not (resume and self._resume()):
            self.begin()
            if told := outweighed(self.model, self.dataset, self.requests):
                self.progress.note(told)
        with settled_objects():
            self._epochs(validation)
        if not best:
            return self.history
        self._restore_best()
        if self.model.calibration is not None:
            self._recalibrate(self.model.calibration, validation)
        return self.history

    def _check(self, validation: np.ndarray) -> None:
        """Raise UserError for what would fail, or tell nothing, only after hours."""
        if self.composition.stages and self.stages is None:
            raise UserError(
                f"model {self.composition.name!r} trains in stages ({', '.join(o.kind for o in self.composition.stages)}) "
                "before this training: make the trainer with training.stages.after_stages, or give stages = []"
            )
        if self.options.precision == "bf16" and not loops.has_bf16(self.device):
            raise UserError(
                "training.precision = 'bf16', and this machine has no instructions for it (avx512_bf16 or amx_bf16 of a "
                "processor, or a GPU that computes in bf16); accepted here: 'float32'"
            )
        check_signs(self.dataset, self.model.heads)
        if not len(validation):
            raise UserError(
                "no validation requests, and early stopping needs some; set data.split.validation above 0, or larger; of few "
                'distinct times none may begin within the share: give finer times, or data.split.by = "user"'
            )
        whole = judged(self.model.heads, self.dataset, validation)
        measured = metrics(whole)
        if math.isnan(monitored(self.model, measured, self.options.monitor)):
            if empty := [head.name for head in self.model.heads if not measured[head.name]["rows"]]:
                raise UserError(
                    f"no validation row counts for {', '.join(map(repr, empty))}, and early stopping judges every task: they "
                    "have no label (a window still open at the snapshot, perhaps), or none lies within the task; set "
                    "data.split.validation larger, or leave rows whose window is open out of the samples"
                )
            raise UserError(
                f"training.monitor = {self.options.monitor!r} is not defined on the validation rows: for some task they "
                "are of one class only (gauc: those of every user); give more validation rows or monitor logloss"
            )
        if self.model.calibration is not None:
            if not all(head.direct for head in self.model.heads):
                raise UserError(
                    f"training.sampling: scores cannot be recalibrated on labels that heads {self.composition.heads.kind!r} "
                    "see through a position or a delay; accepted: negatives with a correction, without hot_items"
                )
            for i, head in enumerate(whole.heads):
                calibrate.check(head, whole.labels[whole.weights[:, i] != 0, i])

    def begin(self) -> None:
        """The state before the first step: growing tables get their rows, and an older run's learning goes over."""
        source = self.options.warm_start
        if source is None:
            admit(self.row_maps, self.dataset.fitted, self.model, self.optimisers, 0, self.options.seed)
            if self.row_maps:
                self.give()  # once more: rows that have just been admitted begin as the stage had learnt them
            return
        if self.old is None:
            raise UserError(
                f"warm start from {source}: no run is there, and there is no checkpoint to go on with either"
            )
        try:
            mine = Learnt(self.model, self.dataset, self.row_maps)
            taken = take_over(self.old, mine, self.optimisers, self.options.seed)
        except UserError as error:
            raise UserError(f"warm start from {source}: {error}") from error
        if self.folder:
            taken.write(self.folder / "warm_start.json")
        self.progress.warm(taken)

    @torch.no_grad()
    def give(self) -> None:
        """Set the initial values that the stages before hand over."""
        for gift in self.gifts:
            gift(self.model)
        if self.gifts:
            self.optimisers.restart()

    def _epochs(self, validation: np.ndarray) -> None:
        if self.optimisers.gates:  # how fast they close depends on how long there is
            first = sum(1 for _ in self.feed.steps(self.requests, self.options.batch, 0))
            self.optimisers.search_for(self.options.epochs * first)
        while self.epoch < self.options.epochs and not self._patience_is_over():
            self.optimisers.slow_down(self.options.plateau ** sum(not e.best for e in self.history))
            steps = self.feed.steps(self.requests, self.options.batch, self.epoch)
            self.progress.epoch(self.epoch, self.feed.rows(self.requests))
            self.progress.advance(self.rows_done, math.nan)
            step = next(islice(steps, self.step, None), None)  # a resumed epoch goes on where it was
            while step is not None:
                started = time.perf_counter()
                coming = next(steps, None)
                self.train_step(step, coming)
                self.seconds += time.perf_counter() - started
                self.losses.add(*self.told, step.rows)
                self.rows_done += step.rows
                self.step += 1
                self.total_steps += 1
                self.progress.advance(step.rows, MeanLoss.of(*self.told).value)
                self.at("step")
                step = coming
                if self.options.save_every and self.step % self.options.save_every == 0 and step is not None:
                    self._save()
            self._end_of_epoch(validation)
            self.at("epoch")

    def train_step(self, step: Step, coming: Step | None = None) -> float:
        """One optimiser step; the loss that it minimised. coming: the next one, whose batches may be made meanwhile."""
        if not self.model.training:
            self.model.train()
        self._seed_noise(mix(self.options.seed, self.epoch, self.step) >> 1)
        self.optimisers.begin()
        total, rows = 0.0, 1
        terms_of: dict[str, float] = {}
        shares_of: dict[str, float] = {}
        for batch in self.ahead.batches(step, self.epoch, coming):
            with computing_in(self.options.precision):
                out, factors = self.model(batch), None
            if self.sampled is not None:
                out, factors = self.sampled.seen(batch, out)
            terms, shares = self.model.losses_and_shares(batch, out, factors)
            if isinstance(self.model.balance, GradNormWeights):
                self.model.balance.observe(terms)
            loss = sum(terms.values(), torch.zeros((), device=self.device))
            loss.backward()  # type: ignore[no-untyped-call]
            # read at once: a GPU is waited for once
            found = torch.stack([t.detach() for t in (loss, *terms.values(), *shares.values())]).tolist()
            total, rows = total + found[0], batch.step_rows
            _add(terms_of, zip(terms, found[1 : 1 + len(terms)], strict=True))
            _add(shares_of, zip(shares, found[1 + len(terms) :], strict=True))
        if not math.isfinite(total):
            raise UserError(
                f"the loss became {total} in epoch {self.epoch + 1}, step {self.step + 1}; "
                "try a smaller learning rate, or training.clip = 5"
            )
        self.optimisers.step(rows)
        if isinstance(self.model.balance, GradNormWeights):
            self.model.balance.update()
        self.told = terms_of, shares_of
        return total

    def _seed_noise(self, seed: int) -> None:
        """Seed dropout and other noise. Not by `torch.manual_seed`: it notes a stack trace for each absent accelerator."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def _end_of_epoch(self, validation: np.ndarray) -> None:
        self.optimisers.settle()
        rows = self.options.evaluate_rows
        measured = metrics(predict(self.model, self.builder, validation, rows, self.device, logged=True))
        score = monitored(self.model, measured, self.options.monitor)
        best = all(score > e.score for e in self.history)
        done = Epoch(self.epoch, self.losses.value, self.rows_done, self.seconds, measured, score, best)
        self.history.append(done)
        self.epoch, self.step, self.rows_done = self.epoch + 1, 0, 0
        self.losses, self.seconds = MeanLoss(), 0.0
        if best:
            self.best_weights = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
            self._save_best(done)
        self._save()
        self.progress.validated(done)

    def _save_best(self, epoch: Epoch) -> None:
        if self.best_checkpoints:
            tensors = {f"model.{name}": t for name, t in self.best_weights.items()}
            tensors |= {f"map.{name}": t for name, t in maps_state(self.row_maps).items()}
            state = {"epoch": epoch.epoch, "score": epoch.score, "identity": self._identity()}
            self.best_checkpoints.save(tensors, state, self.total_steps)

    def _recalibrate(self, calibration: Calibration, validation: np.ndarray) -> None:
        """Fit the lines through the best model's logits, and keep them with its weights."""
        calibration.load_state_dict(Calibration(len(self.model.heads)).state_dict())
        found = predict(self.model, self.builder, validation, self.options.evaluate_rows, self.device)
        for i, head in enumerate(found.heads):
            fit = calibrate.line(head, found.labels[:, i], found.logits[:, i], found.weights[:, i])
            calibration.intercept[i], calibration.slope[i] = fit.a, fit.b
            if not fit.slope > 0:
                self.progress.note(
                    f"recalibration: the scores of head {head.name!r} do not rise with the label on the validation rows "
                    f"(slope {fit.slope:.3g}), so their mean alone was put right; this head has learnt nothing of use"
                )
        self.best_weights = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self._save_best(next(e for e in reversed(self.history) if e.best))

    def _patience_is_over(self) -> bool:
        since = 0
        for epoch in self.history:
            since = 0 if epoch.best else since + 1
        return since > self.options.patience

    def load_best(self) -> None:
        """Take over the best weights (and row maps) of a run from its folder, to score with. Raises UserError if none."""
        found = self.best_checkpoints.load() if self.best_checkpoints else None
        if found is None:
            where = f"{self.folder}: " if self.folder else ""
            raise UserError(f"{where}no best weights here: the run has not finished its first epoch; train it first")
        parts = found.parts("model", "map")
        restore(self.model, parts["model"], str(found.path))
        load_maps(self.row_maps, parts["map"])

    def _restore_best(self) -> None:
        restore(self.model, self.best_weights, "best weights")

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        tensors, rows = self.optimisers.state()
        model = self.model.state_dict()
        for name in self.optimisers.tables:
            rows[f"model.{name}"] = (model.pop(name), self.optimisers.changed[name].nonzero().squeeze(1))
        tensors |= {f"model.{name}": t for name, t in model.items()}
        tensors |= {f"map.{name}": t for name, t in maps_state(self.row_maps).items()}
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "total_steps": self.total_steps,
            "losses": vars(self.losses),
            "rows_done": self.rows_done,
            "seconds": self.seconds,
            "identity": self._identity(),
            "history": [vars(e) for e in self.history],
        }
        self.checkpoints.save(tensors, state, self.total_steps, rows)
        self.optimisers.saved()

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a resumed run to be the same run. More epochs may be asked for."""
        free = ("epochs", "patience", "threads", "device", "warm_start")
        options = {k: v for k, v in plain(self.options).items() if k not in free}
        manifest = self.dataset.manifest
        return {
            "schema": schema_hash(self.dataset.fitted.schema),
            "data": {key: manifest[key] for key in ("requests", "rows", "split", "events", "content")},
            "model": {key: part for key, part in self.composition.table().items() if key != "name"},
            "options": options,
            "warm_start": self.origin,
        }

    def _resume(self) -> bool:
        """Take over the newest checkpoint; False when there is none."""
        found = self.checkpoints.load() if self.checkpoints else None
        if found is None:
            return False
        saved = found.state["identity"]
        if (
            self.options.warm_start is not None and self.old is None
        ):  # gone since: all that it gave is in the checkpoint
            self.origin = saved.get("warm_start")
        mine = self._identity()
        if differing := [key for key in mine if saved.get(key) != mine[key]]:
            raise UserError(
                f"{found.path}: belongs to another run: {', '.join(differing)} differ; resume with the recipe and the data "
                "it was started with, or start a new run"
            )
        parts = found.parts("model", "map")
        restore(self.model, parts["model"], str(found.path))
        load_maps(self.row_maps, parts["map"])
        self.optimisers.load(parts[""])
        self.optimisers.saved()
        for name in ("epoch", "step", "total_steps", "rows_done", "seconds"):
            setattr(self, name, found.state[name])
        self.losses = MeanLoss(**found.state.get("losses", {}))  # of an older checkpoint: of what is left of the epoch
        self.history = [Epoch(**e) for e in found.state["history"]]
        if self.history and self.best_checkpoints:
            best = self.best_checkpoints.load()
            if best is None:
                raise UserError(f"{self.best_checkpoints.folder}: the best weights are gone; start the run anew")
            self.best_weights = best.parts("model", "map")["model"]
        return True


def _add(to: dict[str, float], more: Iterable[tuple[str, float]]) -> None:
    for name, value in more:
        to[name] = to.get(name, 0.0) + value


def choose_device(name: str) -> torch.device:
    """The device of this name; auto: CUDA where there is one. Raises UserError where CUDA is asked for and missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError('training.device = "cuda", but PyTorch sees no CUDA device; accepted here: "cpu", "auto"')
    if name == "cuda":
        # else convolutions of float32 keep 10 bits of it (TF32)
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)
