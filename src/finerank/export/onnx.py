"""The graph as ONNX for onnxruntime, with the inputs it does not use dropped."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
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
    _size_what_is_empty(written.model.graph)
    ClearMetadataAndDocStringPass()(written.model)  # paths of this machine, and half of the file
    written.save(path, external_data=True)
    return [str(value.name) for value in inputs]


def _size_what_is_empty(graph: ir.Graph) -> None:
    """Gives the first axis of an empty reshaped tensor, [N, 0] say, as that of what it was made of.

    The exporter writes -1 there, which says nothing where the other sizes multiply to 0, and onnxruntime refuses it. A side
    without any field or number (a schema without request-level features) is such a tensor.
    """
    for node in list(graph):
        out, given = node.outputs[0], node.inputs[0] if node.inputs else None
        if node.op_type != "Reshape" or given is None or out.shape is None or given.shape is None or 0 not in out.shape:
            continue
        if out.shape[0] != given.shape[0]:
            continue
        rest = ir.tensor(np.array([int(size) for size in list(out.shape)[1:]], dtype=np.int64))  # type: ignore[arg-type]
        ends = [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)]
        first = ir.Node("", "Shape", [given], ends)
        others = ir.Node("", "Constant", [], [ir.AttrTensor("value", rest)])
        size = ir.Node("", "Concat", [first.outputs[0], others.outputs[0]], [ir.AttrInt64("axis", 0)])
        graph.insert_before(node, [first, others, size])
        node.replace_input_with(1, size.outputs[0])
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 1)


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
