"""docs/models.md is what its generator gives, and the generator leaves nothing out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import forward_passes
import pytest
import test_every_model
import tiny

from finerank.models import registry
from finerank.models.composition import Heads, Interaction, Representation

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_models_page", DOCS / "make_models_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(maker: ModuleType) -> str:
    made = maker.page()
    assert isinstance(made, str)
    return made


def test_the_committed_page_is_the_generated_one(page: str) -> None:
    assert (DOCS / "models.md").read_text(encoding="utf-8") == page, "run `python docs/make_models_page.py`"


def test_every_model_part_and_check_is_on_the_page(page: str, maker: ModuleType) -> None:
    for name in registry.names():
        assert f"\n## {name}\n" in page
        assert f'name = "{name}"' in page
        assert registry.composition(name).paper in page
    for base, place in ((Representation, "representation"), (Interaction, "interactions"), (Heads, "heads")):
        for options in registry.options_of(base).__args__:
            assert f"\n### {place}: {options.kind}\n" in page
            assert f"](#{place}-{options.kind})" in page
    assert [name for name, _ in maker.checks()] == list(test_every_model.CHECKS)


def test_links_within_the_page_lead_somewhere(page: str) -> None:
    headings = {line.lstrip("# ").lower().replace(": ", "-") for line in page.splitlines() if line.startswith("#")}
    targets = {piece.split(")")[0] for piece in page.split("](#")[1:]}
    assert targets <= headings
    assert len(targets) > 10


def test_an_exemption_is_printed_with_its_reason_and_replacement(
    maker: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\nExempted from checks: none.\n" in maker.page()
    exempt = replace(registry.composition("lr"), exemptions={"empty_histories": ("it has none", "test_lr")})
    monkeypatch.setitem(registry._named, "lr", exempt)
    monkeypatch.setattr(importlib.import_module("finerank.models.lr"), "LR", exempt)
    assert "Exempted from checks: `empty_histories`: it has none; instead `test_lr`." in maker.page()


def test_the_tests_of_a_forward_pass_are_printed(page: str) -> None:
    assert "Forward pass by hand: [dfm is two sums of weights](../tests/test_whole_models.py).\n" in page
    assert page.count("\nForward pass by hand: [") == len(forward_passes.BY_HAND)
    assert page.count("\nLimits: [") == len(forward_passes.LIMITS)
    assert "\n- **export parity**: The exported graph" in page


def test_what_is_smaller_in_tests_is_printed_with_its_reason(page: str) -> None:
    assert page.count("\nSmaller in tests: ") == len(tiny.SIZES)
    for name, (reason, _) in tiny.SIZES.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert f"\nSmaller in tests: {reason}.\n" in section


def test_sizes_by_hand(maker: ModuleType) -> None:
    """lr: one weight a value (three reserved rows a table), two numbers and the bias; base: four tables, none for ages."""
    lr = registry.build(registry.composition("lr"), maker.reference(1))
    assert maker._sizes(lr) == (0, 10_003 + 53 + 5_003 + 103, 3)
    base = registry.build(registry.composition("base"), maker.reference(1))
    fields, numbers = 2 + 2 + 2, 2  # request, candidate, pooled
    tower = (fields * 16 + numbers) * 200 + 200 + 200 + 200 * 80 + 80 + 80 + 80  # weights, biases, slopes
    assert maker._sizes(base) == (16 * (10_003 + 53 + 5_003 + 103), 0, tower + 1)


def test_meanings_are_read_from_docstrings_and_must_be_there(maker: ModuleType) -> None:
    @dataclass(frozen=True)
    class Lines:
        """What it is.

        first   one thing,
                told on two lines
        second  another · not a key: text

        More words.
        """

        first: int = 0
        second: int = 0
        kind: ClassVar[str] = "lines"

    @dataclass(frozen=True)
    class Inline:
        """one: the first · two, three: the others."""

        one: int = 0
        two: int = 0
        three: int = 0

    @dataclass(frozen=True)
    class Silent:
        """told: yes."""

        told: int = 0
        untold: int = 0

    assert maker.option_texts(Lines) == {"first": "one thing, told on two lines", "second": "another · not a key: text"}
    assert maker.option_texts(Inline) == {"one": "the first", "two": "the others", "three": "the others"}
    with pytest.raises(ValueError, match=r"Silent: the docstring does not explain untold"):
        maker.option_texts(Silent)
