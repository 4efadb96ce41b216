"""The graph as ONNX for onnxruntime, with the inputs it does not use dropped."""

from __future__ import annotations

from pathlib import Path

import torch

from finerank.export.graph import Graph, exported, inputs_of
from finerank.models.composition import Model
from finerank.schema import FittedSchema


def write_onnx(model: Model, fitted: FittedSchema, path: Path) -> list[str]:
    """Write the model's graph to `path`, weights beside it; the names of the inputs left, in the declared order.

    The weights are a file of their own (`<path>.data`): protobuf ends at 2 GiB, and onnxruntime maps the file, so that
    several servers on a machine share its memory.
    """
    names = [i.name for i in inputs_of(fitted)]
    outputs = Graph(model, fitted).outputs
    program = exported(model, fitted)
    written = torch.onnx.export(program, input_names=names, output_names=outputs, dynamo=True, verbose=False)
    assert written is not None
    inputs = written.model.graph.inputs
    inputs[:] = [value for value in inputs if value.uses()]
    written.save(path, external_data=True)
    return [str(value.name) for value in inputs]
