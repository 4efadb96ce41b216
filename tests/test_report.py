"""The pages: what stands in them, that it is escaped, and that a real browser opens them without any network."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import test_run

from finerank.cli.app import verbs
from finerank.errors import UserError
from finerank.evaluation.compare import compare
from finerank.evaluation.document import Evaluation, evaluation_path
from finerank.explain.between import Between
from finerank.explain.lift import lift
from finerank.explain.past import Explained, Explanation, Seen
from finerank.metrics.estimate import Estimate
from finerank.recipe import Recipe
from finerank.report import charts, pictures
from finerank.report.ablation_report import ablation_report
from finerank.report.comparison_report import comparison_report
from finerank.report.explain_report import request_page
from finerank.report.page import number, percent
from finerank.report.run_report import run_report
from finerank.run import Run, run
from finerank.typed import to_toml

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, `din` and `lr`, on the same data."""
    folder = tmp_path_factory.mktemp("shop")
    test_run.logs(folder)
    run(Recipe.parse(test_run.table(), folder), folder / "din", folder / "data")
    run(Recipe.parse(test_run.table() | {"model": {"name": "lr"}}, folder), folder / "lr", folder / "data")
    return folder


@pytest.fixture(scope="module")
def page(shop: Path) -> str:
    return run_report(Run.open(shop / "din"), rows=200)


def finerank(*words: object) -> None:
    verbs()([str(w) for w in words], standalone_mode=False)


def svgs(html: str) -> list[str]:
    return re.findall(r"<svg .*?</svg>", html, re.DOTALL)


# ------------------------------------------------------------------------------------------------ what stands in them


def test_a_report_says_what_was_measured(shop: Path, page: str) -> None:
    found = Evaluation.read(evaluation_path(shop / "din", "test"))
    for head in found.heads.values():
        for name in ("auc", "gauc", "logloss"):
            assert number(head.metrics[name].value) in page
            assert number(head.metrics[name].low) in page
    for title in (
        "Result: click",
        "Result: conversion",
        "Learning",
        "Slices",
        "Fields that count",
        "A past that lit up",
        "Data",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "name = &#34;din&#34;" in page  # the recipe
    assert len(svgs(page)) > 10


def test_every_field_has_its_line(shop: Path, page: str) -> None:
    data = Run.open(shop / "din").dataset
    fields = page[page.index("<h3>Fields</h3>") :]
    for name in ("user", "country", "item", "tags", "clicks.item", "train_only.position"):
        assert f"<td>{name}</td>" in fields
    counts = data.fitted.tables["country"].counts
    assert re.search(rf"<td>country</td><td[^>]*>categorical</td>.*?<td[^>]*>{(counts[3:] > 0).sum()}</td>", fields)


def test_pictures_are_sound_and_nothing_is_fetched(page: str) -> None:
    for svg in svgs(page):
        ElementTree.fromstring(svg)
        assert 'role="img"' in svg
    assert "<script" not in page
    links = re.findall(r'(?:href|src)="([^"#][^"]*)"', page)
    assert not [link for link in links if not link.startswith("#")]
    assert "url(http" not in page


def test_without_rows_no_importance(shop: Path) -> None:
    assert "Fields that count" not in run_report(Run.open(shop / "lr"), rows=0)


def test_a_page_into_a_folder_is_refused(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-o .` ended in a traceback: the folder it stands in has no name of its own."""
    monkeypatch.chdir(shop)
    for verb in (("report", "--rows", 0), ("explain", "--lift", "country")):
        with pytest.raises(UserError, match=r"^\.: is a folder; name a file$"):
            finerank(verb[0], "lr", *verb[1:], "-o", ".")


def test_a_run_without_scores_of_the_split_says_so(shop: Path) -> None:
    with pytest.raises(UserError, match="no scores of 'train'"):
        run_report(Run.open(shop / "lr"), "train")


def test_several_runs_are_compared(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finerank("report", shop / "lr")
    finerank("report", shop / "lr", shop / "din", "-o", shop / "both.html")
    assert "both.html" in capsys.readouterr().out
    html = (shop / "both.html").read_text(encoding="utf-8")
    assert "<h1>lr, din</h1>" in html
    assert 'href="lr/report.html"' in html
    assert "RelaImpr" in html
    assert re.search(r"din is .* lr|din and lr", html)
    assert len(svgs(html)) >= 4


def test_a_difference_that_has_no_p_has_an_empty_cell(shop: Path) -> None:
    runs = [Run.open(shop / "lr"), Run.open(shop / "din")]
    found = compare(runs)
    none = dict.fromkeys(("low", "high", "p", "p_holm"), math.nan)
    against = tuple(
        replace(a, differences={m: replace(d, **none) for m, d in a.differences.items()}) for a in found.against
    )
    html = comparison_report(replace(found, against=against), runs, shop / "x.html")
    for one in against:
        assert f'{one.differences["auc"].value:+.4f}</td><td></td><td class="n"></td></tr>' in html


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs `one`, `two` (another seed) and `other` of a click and of an amount."""
    folder = tmp_path_factory.mktemp("numbers")
    test_run.logs(folder)
    table = test_run.table()
    table["task"] = [{"name": "click"}, {"name": "amount", "column": "position", "kind": "regression"}]
    small = {"name": "base", "interactions": [{"kind": "tower", "hidden": [8]}]}
    for name, model, seed in (("one", table["model"], 1), ("two", table["model"], 2), ("other", small, 1)):
        told = table | {"model": model, "training": table["training"] | {"seed": seed}}
        run(Recipe.parse(told, folder), folder / name, folder / "data")
    return folder


def test_slices_of_a_number_show_its_rmse(numbers: Path) -> None:
    """They showed an empty axis of AUC and a table of dashes."""
    html = run_report(Run.open(numbers / "one"), rows=0)
    at = html.index("· amount</h3>")
    figure = html[at : html.index("</table>", at)]
    assert 'aria-label="RMSE by ' in figure
    assert '<th class="n">RMSE</th>' in figure
    assert "AUC" not in figure
    (of,) = (h for h in Evaluation.read(evaluation_path(numbers / "one", "test")).heads.values() if h.task == "amount")
    for one in of.slices[0].slices:
        assert number(one.rmse) in figure
        assert math.isnan(one.rmse_low) or f"{number(one.rmse_low)} to {number(one.rmse_high)}" in figure
    assert any(one.rmse_low < one.rmse < one.rmse_high for one in of.slices[0].slices)


def test_a_question_of_which_no_slice_has_an_interval_has_no_picture(numbers: Path) -> None:
    table = Evaluation.read(evaluation_path(numbers / "one", "test")).heads["click"].slices[0]
    none = tuple(replace(s, auc=Estimate(value=0.5)) for s in table.slices)
    assert not pictures.slice_chart(replace(table, slices=none), "auc", 0.5).svg


def test_compared_numbers_show_the_difference_of_their_rmse(numbers: Path) -> None:
    """Its cells stood below ΔAUC, and were empty; what ± is was said nowhere."""
    runs = [Run.open(numbers / name) for name in ("other", "one", "two")]
    found = compare(runs)
    html = comparison_report(found, runs, numbers / "x.html")
    amount = html[html.index("<h2>Result: amount") : html.index("<h2>How it was measured")]
    assert '<th class="n">Δ RMSE</th>' in amount
    assert "RelaImpr" not in amount
    (difference,) = (a.differences["rmse"] for a in found.against if a.head == "amount")
    assert f"{difference.value:+.4f}</td><td>{difference.low:+.4f} to {difference.high:+.4f}</td>" in amount
    assert "± is the standard deviation between seeds" in html


@pytest.fixture(scope="module")
def ablation(shop: Path) -> Path:
    """What `finerank ablate` writes, of two runs that are there and three outcomes that are made up."""
    (shop / "r.toml").write_text(to_toml(test_run.table(epochs=1)), encoding="utf-8")
    finerank("ablate", shop / "r.toml", "-o", shop / "out", "--seeds", 1, "--only", "softmax")
    assert "<svg" in (shop / "out" / "ablation.html").read_text(encoding="utf-8")
    kept = json.loads((shop / "out" / "ablation.json").read_text(encoding="utf-8"))
    numbers = {"seeds": 1, "validation": 0.7, "test": 0.7, "spread": None, "rows_per_second": 1_000.0}
    for name, low, value, high in (
        ("up", 0.001, 0.002, 0.003),
        ("down", -0.003, -0.002, -0.001),
        ("far", -0.4, -0.3, -0.2),
    ):
        kept["variants"].append(
            {
                "name": name,
                "question": "<why>",
                "reason": "",
                "difference": value,
                "low": low,
                "high": high,
                "p": 0.0001,
            }
            | numbers
        )
    kept["variants"][1] |= {"difference": 0.0001, "low": -0.001, "high": 0.0012}
    kept["variants"].append({"name": "never", "question": "?", "reason": "no minutes were left"})
    (shop / "made").mkdir()
    (shop / "made" / "ablation.json").write_text(json.dumps(kept), encoding="utf-8")
    shutil.copytree(shop / "out" / "as_it_is", shop / "made" / "as_it_is")
    finerank("report", shop / "made")
    return shop / "made" / "ablation.html"


def test_an_ablation_says_what_each_change_is_worth(ablation: Path) -> None:
    html = ablation.read_text(encoding="utf-8")
    assert "<h1>Ablation of r.toml</h1>" in html
    assert "<p>1 of 4 changes gain, most of all: up (+0.0020).</p>" in html
    assert "<p>2 of 4 changes cost, most of all: far (-0.3000).</p>" in html
    assert "<p>1 of 4 changes cannot be told from none.</p>" in html
    (picture,) = svgs(html)
    ElementTree.fromstring(picture)
    assert "up +0.0020 (+0.0010 to +0.0030)" in picture
    assert "far" not in picture  # it would squeeze the others
    assert "Far off the picture: far (-0.3000)." in html
    assert re.search(r">up</td><td>&lt;why&gt;</td>.*?\+0\.0020.*?\+0\.0010 to \+0\.0030.*?&lt; \.001.*?1,000", html)
    assert "<td>never</td><td>no minutes were left</td>" in html
    assert "name = &#34;din&#34;" in html


def test_a_folder_without_an_ablation_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ablation here"):
        ablation_report(tmp_path)
    for text in ("{", '{"recipe": 1, "variants": [{"nme": 1}]}', '{"variants": 3}', '{"recipe": "r", "variants": [3]}'):
        (tmp_path / "ablation.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            ablation_report(tmp_path)


def test_lifts_are_counted_without_the_model(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(self: Run) -> None:
        raise AssertionError("the weights are not needed")

    monkeypatch.setattr(Run, "trainer", loading)
    finerank("explain", shop / "din", "--lift", "item", "-o", tmp_path / "lift.html")
    html = (tmp_path / "lift.html").read_text(encoding="utf-8")
    assert f"training rows of {shop / 'din'}" in html


def test_the_page_of_lifts_names_the_task_and_lists_counts_and_lifts(shop: Path, tmp_path: Path) -> None:
    """Of several tasks none was named, and the lifts themselves stood on the screen alone."""
    finerank("explain", shop / "din", "--lift", "country", "-o", tmp_path / "lift.html")
    html = (tmp_path / "lift.html").read_text(encoding="utf-8")
    assert "<h2>P(click | country)</h2>" in html
    assert "P(click | country) on training rows, all 2 values, number of rows in brackets" in html
    for one in lift(Run.open(shop / "din").dataset, "country", "click").values:
        cells = (one.value, f"{one.rows:,}", f"{one.positives:,}", number(one.rate))
        cells += (f"{number(one.low)} to {number(one.high)}", number(one.lift, 2))
        assert (
            "".join(f"<td>{cell}</td>" for cell in cells).replace("<miss", "&lt;miss").replace("ing>", "ing&gt;")
            in html
        )


def test_of_several_heads_each_has_its_importance(
    shop: Path, page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for head in ("click", "conversion"):
        assert f"AUC of {head} lost on test rows" in page
    finerank("explain", shop / "din", "--rows", "50", "-o", tmp_path / "fields.html")
    assert "mean, least and most of 3 times that a field's values were dealt out anew" in capsys.readouterr().out
    html = (tmp_path / "fields.html").read_text(encoding="utf-8")
    assert f"test rows of {shop / 'din'}" in html
    assert "AUC of click lost when" in html
    assert "AUC of conversion lost when" in html
    finerank("explain", shop / "din", "--rows", "50", "--head", "conversion", "-o", tmp_path / "fields.html")
    html = (tmp_path / "fields.html").read_text(encoding="utf-8")
    assert "AUC of click" not in html
    assert "AUC of conversion lost when" in html
    finerank("explain", shop / "din", "--lift", "country", "--head", "conversion", "-o", tmp_path / "lift.html")
    assert "<h2>P(conversion | country)</h2>" in (tmp_path / "lift.html").read_text(encoding="utf-8")


def test_names_from_the_data_are_escaped() -> None:
    seen = Seen("clicks", {"item": "<b>"}, 60.0, 0.5, 0.1)
    other = Seen("clicks", {"item": "<b>"}, 60.0, -0.5, 0.2)
    candidate = Explained({"item": '"><script>alert(1)</script>'}, 1.0, 0.0, 0.5, (seen, other))
    html = request_page(Explanation("<i>", 0, "click", {"country": "A&B"}, (candidate,)), "din")
    assert "<script" not in html
    assert "<i>" not in html
    assert "<b>" not in html
    assert "A&amp;B" in html
    for svg in svgs(html):
        ElementTree.fromstring(svg)


def test_fields_that_look_at_fields_are_drawn_and_listed() -> None:
    """A matrix whose cells are the means, without those that are not weighed, and the strongest of each candidate."""
    pair = np.array([[[np.nan, 0.25], [np.nan, np.nan]], [[np.nan, 0.75], [np.nan, np.nan]]])
    between = Between("attention of pairs", ("user", "item"), ("user", "item"), pair)
    candidates = tuple(Explained({"item": name}, 0.0, 0.0, score, ()) for name, score in (("low", 0.2), ("high", 0.9)))
    html = request_page(Explanation("u", 0, "click", {}, candidates, (between,)), "afm")
    (picture,) = svgs(html)
    assert picture.count("strength: 0.5") + picture.count("weight: 0.5") == 1
    assert html.index("user × item +0.750") < html.index("user × item +0.250")  # the highest score first
    assert "user × user" not in html


def test_names_that_no_picture_can_hold_are_replaced() -> None:
    """A control character once killed the process."""
    drawn = charts.bars([{"name": "a\x02b\x00\ud800", "value": 1.0, "low": 0.0, "high": 1.0}], "x", "\x01")
    assert "a\ufffdb" in drawn


def test_equal_events_keep_a_column_each() -> None:
    seen = tuple(Seen("clicks", {"item": "same"}, 60.0, 0.1 * t, 0.0) for t in range(3))
    found = Explanation("u", 0, "click", {}, (Explained({"item": "a"}, 0.0, 0.0, 0.5, seen),))
    weights, effects = pictures.past(found)
    for picture in (weights, effects):
        assert picture.svg.count('aria-roledescription="rect mark"') == 3
        assert picture.svg.count("same") >= 3


def test_numbers_for_people() -> None:
    assert number(12345) == "12,345"
    assert number(float("nan")) == "–"
    assert number(0.12345) == "0.1235"
    assert percent(0.123) == "12.3 %"
    assert [pictures.ago(s) for s in (5, 90, 7_200, 200_000)] == ["5 s", "2 min", "2 h", "2 d"]


def test_a_slice_without_an_interval_is_not_drawn() -> None:
    drawn = charts.intervals([("a", Estimate(value=0.5, low=0.4, high=0.6))], "AUC", "one", line=0.5)
    assert "one" in drawn
    ElementTree.fromstring(drawn)


# ------------------------------------------------------------------------------------------------ in a browser


@browser
def test_a_browser_opens_the_pages_without_network(shop: Path, page: str, ablation: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "run.html").write_text(page, encoding="utf-8")
    shutil.copy(ablation, tmp_path / "ablation.html")
    finerank("report", shop / "lr", shop / "din", "-o", tmp_path / "both.html")
    finerank("explain", shop / "din", "--user", "u1", "--map", "item", "--split", "train", "-o", tmp_path / "user.html")
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        for name, headings in (("run", 7), ("both", 2), ("user", 2), ("ablation", 4)):
            tab = chromium.new_page(viewport={"width": 1200, "height": 900})
            asked: list[str] = []
            wrong: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, wrong=wrong: wrong.append(message.text))
            tab.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
            tab.goto((tmp_path / f"{name}.html").as_uri())
            assert len(asked) == 1
            assert not wrong
            assert tab.locator("h2").count() >= headings
            for k in range(tab.locator("svg").count()):
                box = tab.locator("svg").nth(k).bounding_box()
                assert box is None or (box["width"] > 50 and box["height"] > 20)
            across = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert across == 0, f"{name}: the page is wider than the window"
            tab.set_viewport_size({"width": 400, "height": 900})
            tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            across = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert across == 0, f"{name}: the page is wider than a narrow window"
            tab.set_viewport_size({"width": 1200, "height": 900})
            shot = tab.screenshot(path=tmp_path / f"{name}.png")
            assert len(shot) > 10_000
            tab.close()
        chromium.close()


def test_a_legend_is_no_wider_than_its_picture() -> None:
    """Seven runs, or one of a very long name, stand below one another."""

    def width(*names: str) -> float:
        drawn = charts.lines([{"x": x, "y": x, "series": n} for n in names for x in (1, 2)], "x", "y", "a picture")
        found = re.search(r'width="([\d.]+)"', drawn)
        assert found
        return float(found[1])

    alone = width("one")
    assert width(*(f"model_{i}/seed1" for i in range(7))) <= alone + 1
    assert width("a" * 200, "b") <= alone + 24  # the symbol; the name is cut off
    assert width("a", "b", "c", "d") <= alone + 1
