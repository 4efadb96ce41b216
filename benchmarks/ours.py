"""finerank in the benchmark: one task a process. Tasks as in `run.py`; called by it.

python benchmarks/ours.py prepare A     encode the raw files once (not timed here)
python benchmarks/ours.py train din A 1 [bf16]
python benchmarks/ours.py steps afm F 1          some steps of a model of the family (`zoo.py`)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch  # before the memory's base is taken
from clock import (
    BATCH,
    CATEGORIES,
    CROSSES,
    DEVICE,
    EMBEDDING,
    EXPERT,
    EXPERTS,
    FACTOR,
    FFM_WIDTH,
    FGCNN_MAPS,
    HEADS,
    HISTORY,
    MAPS,
    NUMBERS,
    RANK,
    TASK_TOWER,
    TOWER,
    UNIT,
    WARM,
    Memory,
    StepClock,
    auc,
    emit,
    folder,
    settle,
    steps_of,
    timed,
)

from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.kernels import build as loops
from finerank.layers.precision import Precision
from finerank.models import registry
from finerank.models.registry import Composition
from finerank.schema import Categorical, Hashed, History, Numeric, Schema, Task, Vocabulary
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.optimisers import Optimisers
from finerank.training.options import TrainingOptions

BY_COLUMN = Split(by="column")
CLICKS = Schema(
    features=(
        Categorical(name="user_id", level="request"),
        Categorical(name="item_id", level="candidate"),
        Categorical(name="cate_id", level="candidate"),
    ),
    histories=(
        History(
            name="clicks",
            fields=("item_id", "cate_id"),
            lists={"item_id": "hist_item", "cate_id": "hist_cate"},
            max_length=HISTORY,
        ),
    ),
    tasks=(Task(name="label"),),
)
CRITEO = Schema(
    features=(
        *(Numeric(name=name, level="candidate", transform="minmax") for name in NUMBERS),
        *(Categorical(name=name, level="candidate") for name in CATEGORIES),
    ),
    tasks=(Task(name="label"),),
)
FIELDS = Schema(
    features=tuple(Categorical(name=name, level="candidate") for name in CATEGORIES), tasks=(Task(name="label"),)
)
TASKS = replace(FIELDS, tasks=(Task(name="label"), Task(name="conversion", within="label")))
SCHEMAS = {"A": CLICKS, "a": CLICKS, "T": CLICKS, "R": CLICKS, "B": CRITEO, "F": FIELDS, "M": TASKS}


def encode(world: str) -> None:
    """A (flat rows with a history), R (ten candidates a request), B (columns only), a (a tenth of A), T (A's training
    rows ten times, its values therefore the same), F (the ids of B),
    M (the ids of B, and a second label: the first where I1 is above its least value)."""
    data = folder()
    name = {"a": "A", "T": "A", "F": "B", "M": "B"}.get(world, world)
    train, test = (pl.scan_parquet(data / f"{name}_{part}.parquet") for part in ("train", "test"))
    if world == "a":
        train, test = train.head(36_000), test.head(4_000)
    if world == "T":
        train = pl.concat([train] * 10)
    requests = pl.col("request") if world == "R" else pl.int_range(pl.len())
    last = train.select(requests.max()).collect().item() - (100 if world == "R" else 1_000)
    train = train.with_columns(split=pl.when(requests <= last).then(pl.lit("train")).otherwise(pl.lit("validation")))
    samples = pl.concat([train, test.with_columns(split=pl.lit("test"))])
    if world == "M":
        samples = samples.with_columns(conversion=pl.col("label") * (pl.col("I1") > pl.col("I1").min()))
    keys = Keys(request="request") if world == "R" else Keys()
    prepare(data / f"finerank_{world}", SCHEMAS[world], samples, None, keys, BY_COLUMN)


def model(task: str) -> Composition:
    """The models of the comparison; `_bn` with batch normalisation in the tower."""
    name, _, norm = task.partition("_")
    tower = {"kind": "tower", "hidden": TOWER, "activation": "relu", "batch_norm": norm == "bn"}
    embedding = {"width": EMBEDDING}
    match name:
        case "din":
            return registry.parse(
                {
                    "name": "din",
                    "representation": {"unit": {"hidden": UNIT, "activation": "relu"}, "embedding": embedding},
                    "interactions": [tower],
                }
            )
        case "deepfm":
            parts = [{"kind": "linear"}, {"kind": "fm"}, tower]
            return registry.parse({"name": "fm", "representation": {"embedding": embedding}, "interactions": parts})
        case _:
            parts = [{"kind": "cross", "layers": 3}, tower]
            return registry.parse({"name": "dcn", "representation": {"embedding": embedding}, "interactions": parts})


DEEP = {"hidden": TOWER, "activation": "relu", "dropout": 0.0, "batch_norm": False}
DEEP_TOWER = {"kind": "tower", **DEEP}
LINEAR = {"kind": "linear"}
EXPERT_PARTS = {"expert": EXPERT, "tower": TASK_TOWER}
INTERACTIONS: dict[str, list[dict[str, Any]]] = {
    "lr": [LINEAR],
    "fm": [LINEAR, {"kind": "fm"}],
    "ffm": [LINEAR, {"kind": "ffm", "dim": FFM_WIDTH, "normalise": False}],
    "fwfm": [{"kind": "fwfm"}],
    "wide_deep": [LINEAR, DEEP_TOWER],
    "pnn": [{"kind": "pnn", **DEEP}],
    "nfm": [LINEAR, {"kind": "bi_interaction", **DEEP}],
    "afm": [LINEAR, {"kind": "attentional_pairs", "factor": FACTOR, "dropout": 0.0, "l2": 0.0}],
    "xdeepfm": [LINEAR, {"kind": "cin", "maps": MAPS}, DEEP_TOWER],
    "autoint": [{"kind": "autoint", "layers": CROSSES, "heads": HEADS, "width": EMBEDDING // HEADS}, DEEP_TOWER],
    "fibinet": [LINEAR, {"kind": "fibinet", **DEEP}],
    "dcn_v2": [{"kind": "cross_v2", "layers": CROSSES, "hidden": []}, DEEP_TOWER],
    "dcn_mix": [{"kind": "cross_v2", "layers": CROSSES, "rank": RANK, "experts": EXPERTS, "hidden": []}, DEEP_TOWER],
    "fgcnn": [{"kind": "fgcnn", "maps": FGCNN_MAPS, "new": [3, 3], "classifier": DEEP}],
    "deep_crossing": [{"kind": "residual_units", "hidden": TOWER, "post_relu": True}],
    "dien": [DEEP_TOWER],
    "dien_aux": [DEEP_TOWER],
    "bst": [DEEP_TOWER],
    "shared_bottom": [{"kind": "shared_bottom", "bottom": TOWER[:2], "tower": TASK_TOWER}],
    "mmoe": [{"kind": "mmoe", "experts": EXPERTS, **EXPERT_PARTS}],
    "ple": [{"kind": "ple", "levels": 2, "own": 2, "shared": 2, **EXPERT_PARTS}],
    "esmm": [DEEP_TOWER],
    "aitm": [{"kind": "aitm", "hidden": TOWER[:2], "tower": TASK_TOWER}],
}
REPRESENTATIONS: dict[str, dict[str, Any]] = {
    "lr": {"kind": "none"},
    "ffm": {"kind": "none"},
    "dien": {"kind": "interest_evolution", "attention": "unit", "auxiliary": 0.0}
    | {"unit": {"hidden": UNIT, "activation": "relu"}},
    "dien_aux": {"kind": "interest_evolution"},
    "bst": {"kind": "behaviour_transformer", "dropout": 0.0, "feed": 43},
}
SEVERAL_HEADS = {"esmm": {"kind": "entire_space"}, "aitm": {"kind": "whole_chain", "calibrator": 0.0}}


def family(task: str) -> Composition:
    """A model of `zoo.py`."""
    representation = REPRESENTATIONS.get(task, {"kind": "plain"})
    if representation["kind"] != "none":
        representation = representation | {"embedding": {"width": EMBEDDING}}
    table = {"representation": representation, "interactions": INTERACTIONS[task]}
    return registry.parse(table | {"heads": SEVERAL_HEADS.get(task, {"kind": "tasks"})})


def settings(seed: int) -> TrainingOptions:
    """One epoch with what is everybody's."""
    threads = torch.get_num_threads()
    return TrainingOptions(epochs=1, seed=seed, threads=threads, batch=Budget(rows=BATCH), device=DEVICE)  # type: ignore[arg-type]


def after_ours(tick: Callable[[], None]) -> Callable[[], None]:
    """`clock.after_torch` for our training: dense parameters and tables moved."""
    plain = Optimisers.step

    def step(self: Optimisers, count: int) -> None:
        plain(self, count)
        tick()

    Optimisers.step = step  # type: ignore[method-assign]
    return lambda: setattr(Optimisers, "step", plain)


def steps(task: str, world: str, seed: int) -> None:
    """Some steps of a model of the family by the product's own training loop."""
    settle(seed)
    with Memory() as memory:
        data = Dataset.open(folder() / f"finerank_{world}")
        trainer = Trainer(family(task), data, settings(seed))
        with StepClock(WARM, steps_of(task), after_ours) as clock:
            trainer.fit()
    emit(**clock.figures(), memory_mb=memory.megabytes, loops=loops.state().split(":")[0])


def train(task: str, world: str, seed: int, precision: Precision = "float32") -> None:
    """A whole epoch through the product's own training loop, then the test part."""
    settle(seed)
    with Memory() as memory:
        data = Dataset.open(folder() / f"finerank_{world}")
        trainer = Trainer(model(task), data, replace(settings(seed), precision=precision))
        with StepClock(hook=after_ours) as clock:
            rows = trainer.fit()[0].rows
        trained = memory.peak
        test = data.requests_of("test")
    found, noise = timed(lambda: predict(trainer.model, trainer.builder, test, device=trainer.device))
    steps = len(clock.times)
    emit(
        **clock.figures(rows / steps),
        evaluate_rows_per_s=len(found.rows) / noise.seconds,
        evaluate_other_cpu=noise.other,
        auc=auc(found.labels[:, 0], found.logits[:, 0]),
        memory_mb=memory.megabytes,
        training_memory_mb=(trained - memory.base) / 2**20,
        loops=loops.state().split(":")[0],
    )


def vocabulary(rows: int) -> None:
    """Milliseconds a step with a table of so many rows, of which the same 10,000 values occur: the bytes touched are equal."""
    settle(1)
    draw = np.random.default_rng(0)
    values, label = draw.integers(0, 10_000, (300_000, 8)), draw.integers(0, 2, 300_000)
    columns = [f"c{i}" for i in range(8)]
    part = pl.when(pl.int_range(pl.len()) < 299_000).then(pl.lit("train")).otherwise(pl.lit("validation"))
    samples = pl.DataFrame(values, schema=columns).with_columns(label=pl.Series(label), split=part)
    encoding = Vocabulary() if rows == 10_000 else Hashed(buckets=rows)
    features = tuple(Categorical(name=c, level="candidate", table="t", encoding=encoding) for c in columns)
    with tempfile.TemporaryDirectory() as at:
        prepare(
            Path(at) / "data",
            Schema(features=features, tasks=(Task(name="label"),)),
            samples.lazy(),
            None,
            Keys(),
            BY_COLUMN,
        )
        trainer = Trainer(
            model("deepfm"), Dataset.open(Path(at) / "data"), TrainingOptions(epochs=1, seed=1, device="cpu")
        )
        with StepClock(hook=after_ours) as clock:
            trainer.fit()
    emit(**clock.figures())


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "prepare":
        encode(rest[0])
    elif verb == "train":
        train(rest[0], rest[1], int(rest[2]), "bf16" if rest[3:] == ["bf16"] else "float32")
    elif verb == "steps":
        steps(rest[0], rest[1], int(rest[2]))
    else:
        vocabulary(int(rest[0]))
