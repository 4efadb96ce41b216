"""The graph as ONNX for onnxruntime, with the inputs it does not use dropped."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from finerank.data.batch import Batch
from finerank.export.graph import Graph, exported, inputs_of
from finerank.models.composition import Model
from finerank.schema import FittedSchema


def write_onnx(model: Model, fitted: FittedSchema, example: Batch, path: Path | str) -> list[str]:
    """Write the model's graph to `path`; the names of the inputs that are left, in the declared order.

    example  as in `export.graph.exported`
    """
    graph = Graph(model, fitted)
    names = [i.name for i in inputs_of(fitted)]
    program = exported(model, fitted, example)
    written = torch.onnx.export(program, input_names=names, output_names=graph.outputs, dynamo=True, verbose=False)
    assert written is not None
    proto = written.model_proto
    used = {name for node in proto.graph.node for name in _reads(node)}
    kept = [i for i in proto.graph.input if i.name in used]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    onnx.save(proto, str(path))
    return [i.name for i in kept]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Every value that a node reads, its sub-graphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                names |= _reads(inner)
    return names
