"""Runs what comes before a model's own training (`models.stages`), each stage in a folder of its own: stages/<kind>/.

A stage that trains uses the usual loop, so it stops early by the validation rows, keeps checkpoints and resumes; one that makes
arrays keeps them as a checkpoint. After a kill all stages are gone through again: one that was over finds its end at once,
and what is handed over is a function of it. So nothing else need be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from finerank import typed
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.models.composition import Interaction, Model
from finerank.models.registry import Composition, part_class, stage_of
from finerank.training.checkpoint import Checkpoints
from finerank.training.curve import write_curve
from finerank.training.loop import Epoch, Progress, Trainer
from finerank.training.options import TrainingOptions
from finerank.training.warm_start import OldRun

FOLDER = "stages"


def after_stages(
    composition: Composition,
    dataset: Dataset,
    options: TrainingOptions = TrainingOptions(),
    folder: Path | None = None,
    progress: Progress | None = None,
    at: Callable[[str], None] = lambda point: None,
    resume: bool = False,
    old: OldRun | None = None,
) -> Trainer:
    """Go through the stages of a model; the trainer of its own training, of what they decided, at the values they gave.

    Arguments as of `Trainer`; resume as of `Trainer.fit`, which is to be called with the same. A model without stages has its
    trainer at once. `Trainer.stages` says what each gave.
    """
    progress = progress or Progress()
    check(composition, options)
    for stage_options in composition.stages:
        stage_of(stage_options).fits(composition, dataset.fitted)
    requests, model, told = dataset.requests_of("train"), composition, dict[str, Any]()
    gifts: list[Callable[[Model], None]] = []
    for stage_options in composition.stages:
        name = stage_options.kind
        progress.stage(name)
        own = replace(amended(options, stage_options), warm_start=None)  # what an older run learnt goes to the model
        shop = _Shop(dataset, requests, own, folder / FOLDER / name if folder else None, progress, at, resume)
        done = stage_of(stage_options).run(model, shop)
        model, requests = done.composition, requests if done.requests is None else done.requests
        gifts.append(done.give)
        told[name] = shop.told | dict(done.told)
        if "note" in done.told:
            progress.note(f"stage {name}: {done.told['note']}")
    if composition.stages:
        progress.stage("")
    last = Trainer(model, dataset, options, folder, progress, at, old, requests)
    last.gifts = gifts
    last.give()
    last.stages = told
    return last


def check(composition: Composition, options: TrainingOptions) -> None:
    """Raise UserError for a stage that the model has no use for, and for a part that lacks the stage it needs."""
    for stage_options in composition.stages:
        stage = stage_of(stage_options)
        stage.check(composition)
        if composition.separate and not stage.separate:
            raise UserError(
                f"stage {stage_options.kind!r} serves one network, and separate = true makes one of each output; drop it: "
                "stages = [], or leave separate out"
            )
        amended(options, stage_options)
    for o in composition.interactions:
        needed = part_class(Interaction, o).stage
        if needed and needed not in [s.kind for s in composition.stages]:
            raise UserError(f"model.interactions: {o.kind!r} needs the stage {needed!r}; give stages = [{needed!r}]")


def amended(options: TrainingOptions, stage_options: Any) -> TrainingOptions:
    """The training of a stage: [training] with the keys that its own option `training` changes."""
    changes = getattr(stage_options, "training", {})
    where = f"model.stages.{stage_options.kind}.training"
    return typed.build(TrainingOptions, typed.amended(options, changes), where) if changes else options


@dataclass
class _Shop:
    """The workshop of one stage (`models.stages.Workshop`). told: what its training gave; steps: how many it took."""

    dataset: Dataset
    requests: np.ndarray
    options: TrainingOptions
    folder: Path | None
    progress: Progress
    at: Callable[[str], None]
    resume: bool
    told: dict[str, Any] = field(default_factory=dict)
    steps: int = 0

    @property
    def seed(self) -> int:
        return self.options.seed

    def train(self, composition: Composition, requests: np.ndarray | None = None, best: bool = True) -> Model:
        requests = self.requests if requests is None else requests
        alone = replace(composition, stages=())
        options = self.options if best else replace(self.options, patience=self.options.epochs)
        trainer = Trainer(alone, self.dataset, options, self.folder, self.progress, self.at, requests=requests)
        history = trainer.fit(self.resume, best)
        if self.folder:
            write_curve(self.folder / "curve.csv", history)
        self.told = told(history) | {"training_requests": len(requests)}
        self.steps = trainer.total_steps
        return trainer.model.eval()

    def once(self, identity: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        kept = Checkpoints(self.folder / "checkpoints", keep=1, at=self.at) if self.folder else None
        found = kept.load() if kept and self.resume else None
        if found is None:
            tensors = make()
            if kept:
                kept.save(tensors, {"identity": dict(identity)}, step=0)
            return tensors
        if found.state["identity"] != identity:
            raise UserError(
                f"{found.path}: was made for another run; resume with the recipe and the data it was started with, "
                "or start a new run"
            )
        return found.tensors


def told(history: list[Epoch]) -> dict[str, Any]:
    """What a training gave, for people: its epochs and the validation metrics of the best."""
    best = max(history, key=lambda e: e.score)
    return {"epochs": len(history), "best_epoch": best.epoch + 1, "validation": best.validation}
