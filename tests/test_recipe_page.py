"""docs/recipe.md is what its generator gives, and no key is left out."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

from finerank import recipe
from finerank.training.options import Adam
from finerank.typed import apply_overrides

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_recipe_page", DOCS / "make_recipe_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_the_generated_one(maker: ModuleType) -> None:
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == maker.page(), "run `python docs/make_recipe_page.py`"


def test_every_key_is_there_with_a_meaning(maker: ModuleType) -> None:
    page = maker.page()
    todo = [c for key, _ in maker.SECTIONS for c in maker.classes_in(get_type_hints(recipe._File)[key])]
    seen = set()
    while todo:
        cls = todo.pop()
        if cls in seen:
            continue
        seen.add(cls)
        prose, meanings = maker.read(inspect.getdoc(cls) or "")
        for field in dataclasses.fields(cls):
            assert f"| `{field.name}` |" in page
            told = field.name in meanings or field.name in maker.COMMON or f"`{field.name}`" in prose
            assert told, f"{cls.__name__}.{field.name}: say in the docstring what it means"
            todo += maker.classes_in(get_type_hints(cls)[field.name])
    assert len(seen) > 15


def test_the_keys_that_the_introduction_sets_are_taken_by_its_recipe(maker: ModuleType) -> None:
    """On a recipe that has no such tables yet."""
    (table,) = re.findall(r"```toml\n(.*?)```", maker.INTRODUCTION, re.DOTALL)
    examples = [e for e in re.findall(r"`--set ([^`]+)`", maker.INTRODUCTION) if e != "key=value"]
    assert len(examples) == 2
    made = recipe.Recipe.parse(apply_overrides(tomllib.loads(table), examples))
    assert made.training.tables == Adam(lr=0.01)
    assert made.data.split.test == 0.2


def test_a_list_of_tables_is_headed_as_one(maker: ModuleType) -> None:
    headings = re.findall(r"^## (.*)$", maker.page(), re.MULTILINE)
    assert "[[data.tables]]" in headings
    assert '[[data.label]] kind = "conversion"' in headings
    assert 'training.tables = {kind = "adam"}' in headings  # a table, in spite of its name
    assert "[data.split]" in headings
    assert not [h for h in headings if h.startswith(("data.label", "[data.label", "[data.tables"))]


def test_keys_of_a_docstring_are_read_with_their_further_lines(maker: ModuleType) -> None:
    prose, meanings = maker.read("First.\n\na, b  one\n      two\nlast   three\n\nThe end.")
    assert prose == "First.\n\nThe end."
    assert meanings == {"a": "one two", "b": "one two", "last": "three"}
