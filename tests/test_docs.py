"""What the documents tell a reader to do works as it stands there."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_every_model
import tiny

import finerank.models
import finerank.run
from finerank.models import registry
from finerank.models.composition import Interaction
from finerank.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


def files_in(page: Path) -> dict[str, str]:
    """The code blocks of a page that say which file they are."""
    found = re.findall(r"```python file=(\S+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


@pytest.fixture
def two_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The model of docs/add_a_model.md, as if its file were there."""
    code = files_in(ROOT / "docs" / "add_a_model.md")["src/finerank/models/two_streams.py"]
    assert len(code.splitlines()) <= 100
    (tmp_path / "two_streams.py").write_text(code, encoding="utf-8")
    registry.names()  # the others first
    monkeypatch.setattr(finerank.models, "__path__", [*finerank.models.__path__, str(tmp_path)])
    importlib.import_module("finerank.models.two_streams")
    yield "two_streams"
    del registry._named["two_streams"], registry._parts[Interaction]["two_streams"]
    del sys.modules["finerank.models.two_streams"]


@pytest.mark.parametrize("check", test_every_model.CHECKS)
def test_the_added_model_passes_the_matrix(two_streams: str, check: str, tmp_path: Path) -> None:
    test_every_model.CHECKS[check](two_streams, tiny.dataset(tmp_path / "data", tasks=1), tmp_path)


def test_the_test_of_the_added_model_passes(two_streams: str, tmp_path: Path) -> None:
    code = files_in(ROOT / "docs" / "add_a_model.md")["tests/test_two_streams.py"]
    (tmp_path / "test_two_streams.py").write_text(code, encoding="utf-8")
    found = runpy.run_path(str(tmp_path / "test_two_streams.py"))
    found["test_two_streams_by_hand"](tmp_path)
    found["test_a_width_that_cannot_be_cut_is_refused"]()


def test_the_added_model_gets_its_section_and_goes_into_recipes(two_streams: str, tmp_path: Path) -> None:
    """What the page says to do after the file: its section of docs/models.md, and the line of a recipe."""
    page = runpy.run_path(str(ROOT / "docs" / "make_models_page.py"))["page"]()
    assert "two_streams" in page
    (recipe,) = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs" / "add_a_model.md").read_text(encoding="utf-8"), re.DOTALL
    )
    model = registry.build(registry.parse(tomllib.loads(recipe)["model"]), tiny.dataset(tmp_path / "d", tasks=1).fitted)
    assert model.representation.attends  # DIN's interests
    assert type(model.interactions[0]).__name__ == "TwoStreams"


def test_the_commands_of_the_page_name_what_is_there(two_streams: str) -> None:
    text = (ROOT / "docs" / "add_a_model.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^finerank train (.*?)(?:  +#.*)?$", text, re.MULTILINE)
    words = shlex.split(command)
    recipe = Recipe.read(ROOT / words[0], [words[words.index("--set") + 1]])
    assert recipe.model == registry.composition("two_streams")
    for path in re.findall(r"\b(?:tests|docs)/\w+\.(?:py|md)", text):
        assert (ROOT / path).exists() or path in files_in(ROOT / "docs" / "add_a_model.md"), path


def test_the_files_of_the_page_are_in_the_projects_style(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for name, code in files_in(ROOT / "docs" / "add_a_model.md").items():
        for words in (["check"], ["format", "--diff"]):
            asked = [ruff, *words, "--config", ROOT / "pyproject.toml", "--stdin-filename", ROOT / name, "-"]
            found = subprocess.run(asked, input=code, capture_output=True, text=True, cwd=ROOT)
            assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readmes_python_equals_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten lines build the recipe of the TOML above them, in both languages."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
    text = texts[0]
    (toml,) = (block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[data]" in block)
    (python,) = {block for text in texts for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)}
    assert len([line for line in python.splitlines() if line]) == 10
    made: list[Recipe] = []
    judged = SimpleNamespace(test={"click": {"auc": 0.5}})
    monkeypatch.setattr(finerank.run, "run", lambda recipe, folder: made.append(recipe) or judged)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text(python, encoding="utf-8")
    runpy.run_path(str(tmp_path / "code.py"))
    assert made[0] == Recipe.parse(tomllib.loads(toml), tmp_path)
