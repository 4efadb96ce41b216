"""The graph as ONNX for onnxruntime, with the inputs it does not use dropped."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from finerank.export.graph import Graph, exported, graph_inputs
from finerank.models.composition import Model
from finerank.schema import FittedSchema


def write_onnx(model: Model, fitted: FittedSchema, path: Path) -> list[str]:
    """Write the model's graph to `path`; the names of the inputs that are left, in the declared order.

    The weights are a file of their own (`<path>.data`): protobuf ends at 2 GiB, and onnxruntime maps the file, so that
    several servers on a machine share its memory.
    """
    names = [i.name for i in graph_inputs(fitted, model.needs.noise)]
    outputs = Graph.outputs_of(model)
    with _quiet():
        program = exported(model, fitted)
        written = torch.onnx.export(program, input_names=names, output_names=outputs, dynamo=True, verbose=False)
    assert written is not None
    inputs = written.model.graph.inputs
    inputs[:] = [value for value in inputs if value.uses()]
    ClearMetadataAndDocStringPass()(written.model)  # paths of this machine, and half of the file
    written.save(path, external_data=True)
    return [str(value.name) for value in inputs]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the exporter says about itself: packages we have no use for, its own deprecations."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r".*script_method.* is deprecated", category=DeprecationWarning)
            yield
    finally:
        registry.setLevel(level)
