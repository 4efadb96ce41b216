"""The house's plan: imports run downwards only, the server's part stays small, and nothing dangerous is called."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import finerank

SRC = Path(finerank.__file__).parent
FILES = sorted(SRC.rglob("*.py"))

BASE = {"errors"}
SCHEMA = {*BASE, "widths"}
RUNTIME = {*SCHEMA, "typed", "schema", "runtime"}
DATA = {*RUNTIME, "kernels", "data"}
MODELS = {*DATA, "layers", "models"}
TRAINING = {*MODELS, "metrics", "training"}
RECIPE = {*TRAINING, "datasets", "recipe"}
RUN = {*RECIPE, "alone", "run"}
EVALUATION = {*RUN, "fresh", "evaluation"}
MAY_IMPORT = {
    "errors": BASE,
    "typed": BASE,
    "widths": BASE,
    "alone": BASE,
    "schema": {*SCHEMA, "schema"},
    "metrics": {*BASE, "metrics"},
    "runtime": RUNTIME,
    "serving": {*RUNTIME, "serving"},
    "data": DATA,
    "datasets": {*DATA, "datasets"},
    "kernels": {*BASE, "kernels"},  # compiled loops: tensors, arrays or columns in, the same out
    "layers": {*DATA, "layers"},
    "models": MODELS,
    "training": TRAINING,
    "recipe": RECIPE,
    "run": RUN,
    "propose": {*DATA, "metrics", "propose"},
    "export": {*RUN, "export"},
    "fresh": {*RUN, "fresh"},
    "evaluation": EVALUATION,
    "explain": {*TRAINING, "explain"},
    "report": {*EVALUATION, "explain", "search", "report"},
    "search": {*EVALUATION, "search"},
    "cli": set[str](),  # everything, see below
    "__main__": {"cli"},  # python -m finerank
    "": set[str](),  # finerank/__init__.py: `import finerank` costs nothing
}
MAY_IMPORT["cli"] = set(MAY_IMPORT) - {"__main__"}
"""Part of the house -> parts that it may import, itself included."""

LIGHT = ("runtime", "serving")
HEAVY = {"torch", "polars", "pyarrow"}


def module_of(path: Path) -> str:
    return ".".join(("finerank", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")


def part_of(module: str) -> str:
    """`finerank.models.din` -> `models`."""
    return (*module.split("."), "")[1]


def imports(tree: ast.AST, at_start: bool = False) -> Iterator[tuple[str, int]]:
    """(module, line) of every import; `at_start`: only those that run when the module is imported."""
    todo = list(ast.iter_child_nodes(tree))
    for node in todo:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
            module = node.module or ""
            # `from finerank.training import loop` names the module finerank.training.loop
            found = [f"{module}.{alias.name}" for alias in node.names]
            yield from ((name if is_module(name) else module, node.lineno) for name in found)
        elif at_start and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types(node)):
            continue
        else:
            todo.extend(ast.iter_child_nodes(node))


def is_module(name: str) -> bool:
    path = SRC.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def wrong_ways(module: str, tree: ast.AST) -> list[str]:
    """Imports of a module that do not run downwards."""
    allowed = MAY_IMPORT[part_of(module)]
    out = []
    for name, line in imports(tree):
        top, part = name.split(".")[0], part_of(name)
        if top == "finerank" and part and part not in allowed:
            out.append(f"{module}:{line} imports {name}")
        if top in HEAVY and part_of(module) in LIGHT:
            out.append(f"{module}:{line} imports {top}")
    return out


def test_every_part_has_its_place() -> None:
    unknown = {part_of(module_of(path)) for path in FILES} - set(MAY_IMPORT)
    assert not unknown, f"{unknown}: say in MAY_IMPORT what they may import"


@pytest.mark.parametrize("path", FILES, ids=[module_of(p) for p in FILES])
def test_imports_run_downwards(path: Path) -> None:
    assert wrong_ways(module_of(path), parsed(path)) == []


def test_the_plan_itself_has_no_way_round() -> None:
    TopologicalSorter({part: allowed - {part} for part, allowed in MAY_IMPORT.items()}).prepare()


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("finerank.models.new", "from finerank.training.loop import Trainer"),
        ("finerank.models.new", "from finerank import training"),
        ("finerank.data.new", "def f():\n    import finerank.models.din"),
        ("finerank.metrics.new", "from finerank.schema import Task"),
        ("finerank.runtime.new", "def f():\n    import torch.nn as nn"),
        ("finerank.runtime.new", "if True:\n    from polars import Series"),
        ("finerank.serving.new", "import finerank.data.source"),
        ("finerank.schema", "import finerank.runtime.rows"),
    ],
)
def test_a_wrong_way_is_seen(module: str, code: str) -> None:
    assert len(wrong_ways(module, ast.parse(code))) == 1


# ------------------------------------------------------------------------------------------------ cycles


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports when it is imported."""
    ours = {module_of(path) for path in FILES}
    return {
        module_of(path): {name for name, _ in imports(parsed(path), at_start=True)} & ours - {module_of(path)}
        for path in FILES
    }


def test_no_module_imports_itself_over_others() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_graph_is_not_empty() -> None:
    edges = graph()
    assert {"finerank.runtime.encoder", "finerank.errors"} <= edges["finerank.data.dataset"]
    assert "finerank.datasets.online_retail" not in edges["finerank.recipe"]  # imported where it is used


def test_the_runtime_loads_nothing_heavy() -> None:
    """What counts in the end: which packages are in memory once a server has imported its part."""
    light = [module_of(path) for path in FILES if part_of(module_of(path)) == "runtime"]
    code = f"import sys, {', '.join(light)}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


# ------------------------------------------------------------------------------------------------ never called

PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "yaml.load", "os.system"}
BROAD = {None, "Exception", "BaseException"}


def dangers(tree: ast.AST) -> list[str]:
    """Pickle, code from text, torch.load, arrays of objects, and handlers that swallow everything."""
    out = [f"line {line}: import of {name}" for name, line in imports(tree) if name.split(".")[0] in PICKLERS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                out.append(f"line {node.lineno}: {called}(...)")
            for word in node.keywords:
                if word.arg in ("allow_pickle", "shell") and ast.unparse(word.value) != "False":
                    out.append(f"line {node.lineno}: {word.arg}={ast.unparse(word.value)}")
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = BROAD & {None if c is None else ast.unparse(c) for c in caught}
            # one that cleans up and raises again swallows nothing
            if broad and not (node.body and isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None):
                out.append(f"line {node.lineno}: except {broad.pop() or ''}")
    return out


@pytest.mark.parametrize("path", FILES, ids=[module_of(p) for p in FILES])
def test_nothing_dangerous(path: Path) -> None:
    assert dangers(parsed(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "np.load(f, allow_pickle=True)",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept (OSError, Exception) as e:\n    print(e)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_a_danger_is_seen(code: str) -> None:
    assert len(dangers(ast.parse(code))) == 1


def test_what_only_looks_dangerous_passes() -> None:
    fine = (
        "model.eval()\nre.compile('a')\nnp.load(f, allow_pickle=False)\ntry:\n    f()\nexcept BaseException:\n    raise"
    )
    assert dangers(ast.parse(fine)) == []
