"""Options that have no effect where they are given: they are told, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_run import logs, table
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.models import registry
from finerank.models.effects import without_effect
from finerank.recipe import Recipe

NETWORK = "has no effect: kind = 'dot' has no network"
MATRIX = "has no effect: rank = 0 is one whole matrix a layer, without experts"
CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"name": "din", "representation": {"unit": {"start": 0.3}}}, []),
    (
        {"name": "din", "representation": {"unit": {"start": 0.3, "softmax": True}}},
        ["model.representation.unit.start has no effect: softmax takes what all weights have in common out"],
    ),
    (
        {"name": "din", "representation": {"unit": {"kind": "dot", "hidden": [8], "inputs": ["inner"]}}},
        [f"model.representation.unit.inputs {NETWORK}", f"model.representation.unit.hidden {NETWORK}"],
    ),
    ({"name": "dien", "representation": {"attention": "unit", "unit": {"kind": "dot"}}}, []),  # its own defaults
    (
        {"name": "dcn_v2", "interactions": [{"kind": "cross_v2", "experts": 2, "gate": "sigmoid"}]},
        [f"model.interactions[0].experts {MATRIX}", f"model.interactions[0].gate {MATRIX}"],
    ),
    ({"name": "dcn_mix", "interactions": [{"kind": "cross_v2", "experts": 2}]}, []),
    ({"name": "autofis_fm", "interactions": ["linear", {"kind": "autofis", "c": 0.1}]}, []),
    (
        {"name": "autofis_fm", "interactions": ["linear", {"kind": "autofis", "c": 0.1}], "stages": []},
        ["model.interactions[1].c has no effect: GRDA moves gates in a search alone, and there is no stage 'search'"],
    ),
]


@pytest.mark.parametrize(("given", "told"), CASES)
def test_what_has_no_effect_is_told(given: dict[str, Any], told: list[str]) -> None:
    assert without_effect(registry.parse(given)) == told


def test_no_named_model_has_such_options() -> None:
    assert {name: without_effect(registry.composition(name)) for name in registry.names()} == {
        name: [] for name in registry.names()
    }


def test_train_tells_before_it_begins(tmp_path: Path) -> None:
    logs(tmp_path)
    one = table(epochs=1) | {"model": {"name": "din", "representation": {"unit": {"softmax": True, "start": 0.3}}}}
    recipe = tmp_path / "r.toml"
    recipe.write_text(Recipe.parse(one, tmp_path).toml(), encoding="utf-8")
    result = CliRunner().invoke(verbs(), ["train", str(recipe), "-o", str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.startswith("note: model.representation.unit.start has no effect: softmax takes")
