"""A trained model and its encoder as a bundle: a folder that `runtime.scorer.Scorer` opens, without torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

import finerank
from finerank.data.folders import vacant
from finerank.errors import UserError
from finerank.export.graph import Graph, graph_inputs
from finerank.export.onnx import write_onnx
from finerank.models.composition import Model
from finerank.runtime.encoder import Encoder
from finerank.runtime.fields import fields_of
from finerank.runtime.manifest import (
    ENCODER,
    FORMAT,
    MANIFEST,
    MODEL,
    HeadFacts,
    HistoryFacts,
    Manifest,
    file_facts,
    rows_file,
    schema_hash,
)
from finerank.runtime.rows import RowMap
from finerank.runtime.symbols import write_json
from finerank.schema import FittedSchema, Growing, Schema, source_columns
from finerank.typed import plain


def write_bundle(
    model: Model,
    fitted: FittedSchema,
    encoder: Encoder,
    folder: Path | str,
    row_maps: Mapping[str, RowMap] | None = None,
) -> Manifest:
    """Write everything that a server needs into `folder`; it appears whole or not at all.

    fitted, encoder  of the data set that the model was built for (`Dataset.fitted`, `Dataset.encoder`)
    row_maps         of growing tables, as trained (`Trainer.row_maps`)
    Raises UserError if the folder exists and is not empty, if a growing table has no map, or if an input reads a column
    that is train-only or a label. The model may be on any device and is left as it is.
    """
    folder, row_maps = Path(folder), row_maps or {}
    vacant(folder)
    check_no_leak(fitted.schema)
    growing = tuple(name for name, table in fitted.tables.items() if isinstance(table.encoding, Growing))
    if missing := set(growing) - set(row_maps):
        raise UserError(f"export: no row map for the growing table {min(missing)!r}; pass the trainer's row_maps")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    try:
        partial.mkdir()
        kept = _graph(model, fitted, partial / MODEL)
        encoder.save(partial / ENCODER)
        for i, name in enumerate(growing):
            (partial / rows_file(i)).parent.mkdir(exist_ok=True)
            np.savez(partial / rows_file(i), **row_maps[name].state())  # type: ignore[arg-type]
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = Manifest(
            format=FORMAT,
            model=model.name,
            versions={"finerank": finerank.__version__}
            | {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
            schema_hash=schema_hash(encoder.schema),
            heads=tuple(
                HeadFacts(name=h.name, task=h.task, link=h.link, space=h.space, trained=h.trained) for h in model.heads
            ),
            inputs=tuple(i for i in graph_inputs(fitted, model.needs.noise) if i.name in kept),
            outputs=tuple(Graph.outputs_of(model)),
            histories={
                h.name: HistoryFacts(max_length=h.max_length, ties=h.ties, fields=h.fields)
                for h in encoder.schema.histories
            },
            growing=growing,
            noise=model.needs.noise,
            composition=model.table,
            files={str(path.relative_to(partial).as_posix()): file_facts(path) for path in files},
        )
        write_json(partial / MANIFEST, plain(manifest))
        for path in (*files, partial / MANIFEST, partial):
            _sync(path)
        os.replace(partial, folder)
        _sync(folder.parent)
    finally:  # after a good end there is nothing left to remove
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _graph(model: Model, fitted: FittedSchema, path: Path) -> set[str]:
    """Write the graph from the CPU, in evaluation mode, and put the model back; the inputs that are left."""
    device, training = next(model.parameters()).device, model.training
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        return set(write_onnx(model.cpu(), fitted, path))
    finally:
        for parameter, data in weights:  # these very tensors: optimisers of tables hold them
            parameter.data = data
        model.to(device).train(training)


def check_no_leak(schema: Schema) -> None:
    """Raise UserError if an input of a request or candidate reads the column of a train-only feature; no schema has one that
    reads a label's.

    Inputs are made of features whose use is "input" alone (`Encoder.columns`), so a train-only feature has none; this is
    about a second feature over the same column. Events may read it: what happened then is known by now.
    """
    hidden = {column: f.name for f in schema.features if f.use != "input" for column in source_columns(f)}
    for level in ("request", "candidate"):
        for f in fields_of(schema, level):
            for column in f.columns:
                if column in hidden:
                    raise UserError(
                        f"export: feature {f.feature.name!r} reads the column {column!r}, which {hidden[column]!r} keeps "
                        "out of serving (train-only); drop the feature or give it another column"
                    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
