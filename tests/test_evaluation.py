"""The evaluation of a run against the metrics called by hand; slices, files, comparisons and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_run import logs, table
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.errors import UserError
from finerank.evaluation.compare import Comparison, compare, differences
from finerank.evaluation.document import METRICS, Evaluation, evaluation_path
from finerank.evaluation.evaluate import evaluate, evaluate_run
from finerank.evaluation.measure import HeadRows
from finerank.evaluation.slices import slicings
from finerank.metrics.estimate import Influence, student_quantile, student_tail
from finerank.metrics.probability import logloss
from finerank.metrics.ranking import auc, gauc, rela_impr
from finerank.recipe import Recipe
from finerank.run import Run, prepared, run
from finerank.schema import OOV, Vocabulary
from finerank.search.standings import standings


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one data set: `a` and `a2` differ in the seed, `b` is another model."""
    folder = tmp_path_factory.mktemp("shop")
    logs(folder)
    one = table(epochs=2)
    prepared(Recipe.parse(one, folder), folder / "data")
    run(Recipe.parse(one, folder), folder / "a", folder / "data")
    run(Recipe.parse(table(epochs=2, seed=5), folder), folder / "a2", folder / "data")
    run(Recipe.parse(one | {"model": {"name": "base"}}, folder), folder / "b", folder / "data")
    return folder


def finerank(*arguments: object) -> str:
    result = CliRunner().invoke(verbs(), [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_metrics_are_those_called_by_hand(shop: Path) -> None:
    opened = Run.open(shop / "a")
    found = evaluate(opened, "test")
    scores = opened.predictions("test")
    assert (found.rows, found.split, found.model, found.seed) == (len(scores.rows), "test", "din", 1)
    assert found.requests == len(opened.dataset.requests_of("test"))
    for i, (name, head) in enumerate(found.heads.items()):
        inside = scores.weights[:, i] != 0
        y, z, g = scores.labels[inside, i], scores.logits[inside, i], scores.groups[inside]
        assert (head.rows, head.users, head.positives) == (len(y), len(set(g.tolist())), int(y.sum()))
        assert head.metrics["auc"].value == pytest.approx(auc(y, z), nan_ok=True)
        assert head.metrics["gauc"].value == pytest.approx(gauc(y, z, g).value, nan_ok=True)
        assert head.metrics["logloss"].value == pytest.approx(logloss(y, z))
        assert list(head.metrics) == [m for m in METRICS if m in head.metrics]  # in the order of showing
        assert name in opened.metrics()["test"]
    stored = opened.metrics()["test"]["click"]
    assert found.heads["click"].metrics["auc"].value == pytest.approx(stored["auc"])


def test_the_rows_of_a_head_are_gathered_once(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its metrics and for what is beyond accuracy alike: they are as large as the split."""
    gathered: list[int] = []
    of = HeadRows.of

    def counted(*arguments: Any) -> HeadRows:
        gathered.append(len(arguments[1]))
        return of(*arguments)

    monkeypatch.setattr(HeadRows, "of", counted)
    found = evaluate(Run.open(shop / "a"), "test")
    assert gathered == [found.rows] * len(found.heads)
    assert all(head.beyond for head in found.heads.values())


def test_by_request_the_groups_are_requests_and_the_intervals_still_over_users(shop: Path) -> None:
    opened = Run.open(shop / "a")
    scores, data = opened.predictions("test"), opened.dataset
    requests = data.requests_of("test")
    of_row = np.repeat(requests, data.first[requests + 1] - data.first[requests])
    found = evaluate(opened, "test", by="request").heads["click"]
    wanted = gauc(scores.labels[:, 0], scores.logits[:, 0], of_row)
    assert found.metrics["gauc"].value == pytest.approx(wanted.value)
    assert (found.groups, found.groups_used) == (len(requests), wanted.groups_used)
    assert found.share_of_rows_used == pytest.approx(wanted.share_of_impressions_used)
    assert found.users == len(set(scores.groups.tolist()))


def test_slices_part_the_rows_and_their_metrics_are_those_of_their_rows(shop: Path) -> None:
    opened = Run.open(shop / "a")
    data, scores = opened.dataset, opened.predictions("test")
    columns = ("country", "item", "category", "price", "amount", "age", "country_category", "position")
    found = evaluate(opened, "test", columns=columns).heads["click"]
    by = {t.by: t for t in found.slices}
    assert set(by) == {"history clicks", "new user", "new item", "popularity", *columns}  # no hour: times start at 0
    for table_ in found.slices:
        assert sum(s.rows for s in table_.slices) == found.rows
        assert sum(s.positives for s in table_.slices) == found.positives
    requests = data.requests_of("test")
    country = data.encoder.tables["country"].names
    of_row = np.repeat(data.request.ids[requests, 1], data.first[requests + 1] - data.first[requests])
    for one in by["country"].slices:
        here = of_row == country.index(one.name)
        assert one.rows == here.sum()
        assert one.auc.value == pytest.approx(auc(scores.labels[here, 0], scores.logits[here, 0]))
        assert one.logloss == pytest.approx(logloss(scores.labels[here, 0], scores.logits[here, 0]))
    # every slice equal: the log loss is the mean of the slices', a weighted AUC that of rows weighing 1 / slice
    even, parts = by["country"].even, by["country"].slices
    assert even["logloss"] == pytest.approx(np.mean([s.logloss for s in parts]))
    weight = np.select([of_row == country.index(s.name) for s in parts], [1 / s.rows for s in parts])
    assert even["auc"] == pytest.approx(auc(scores.labels[:, 0], scores.logits[:, 0], weight))


def test_new_items_users_and_histories_are_counted_in_the_training_rows(shop: Path) -> None:
    data = Run.open(shop / "a").dataset
    requests, rows = data.requests_of("test"), data.rows_of(data.requests_of("test"))
    asked = {s.by: s for s in slicings(data, requests)}
    place = [name for name, _ in data.fitted.candidate.ids].index("item")
    training = data.candidate.ids[data.rows_of(data.requests_of("train")), place].tolist()
    counts = np.array([training.count(i) if i >= 3 else 0 for i in data.candidate.ids[rows, place]])
    assert (asked["new item"].of == (counts == 0)).all()
    assert asked["popularity"].names[:3] == ("0", "1-9", "10-99")
    assert (asked["popularity"].of == np.digitize(counts, [1, 10, 100, 1_000, 10_000, 100_000])).all()
    lengths = data.slices["clicks"].end[requests] - data.slices["clicks"].start[requests]
    of_row = np.repeat(lengths, data.first[requests + 1] - data.first[requests])
    assert (asked["history clicks"].of == np.digitize(of_row, [1, 3, 6, 11, 21, 51])).all()
    known = set(data.user[data.requests_of("train")].tolist())
    new = np.repeat([u not in known for u in data.user[requests]], np.diff(data.first)[requests])
    assert (asked["new user"].of == new).all()


def test_items_that_are_too_rare_for_the_vocabulary_are_new(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", encoding=Vocabulary(min_count=12))
    place = [name for name, _ in data.fitted.candidate.ids].index("item")
    assert (data.candidate.ids[data.rows_of(data.requests_of("train")), place] == OOV).any()  # in training too
    requests = data.requests_of("test")
    asked = {s.by: s for s in slicings(data, requests)}
    unknown = data.candidate.ids[data.rows_of(requests), place] == OOV
    assert unknown.any()
    assert (asked["new item"].of[unknown] == 1).all()


def test_training_again_takes_the_old_evaluation_away(tmp_path: Path) -> None:
    logs(tmp_path)
    recipe = Recipe.parse(table(epochs=1), tmp_path)
    run(recipe, tmp_path / "run")
    evaluate_run(Run.open(tmp_path / "run"))
    assert evaluation_path(tmp_path / "run", "test").exists()
    run(recipe, tmp_path / "run", resume=True)
    assert not evaluation_path(tmp_path / "run", "test").exists()


def test_curves_begin_and_end_where_they_must(shop: Path) -> None:
    found = evaluate(Run.open(shop / "a"), "test").heads["click"]
    assert found.curves is not None
    roc = np.array(found.curves.roc)
    assert roc[0].tolist() == [0, 0]
    assert roc[-1].tolist() == [1, 1]
    assert (np.diff(roc, axis=0) >= 0).all()
    assert len(roc) <= 201
    area = np.trapezoid(roc[:, 1], roc[:, 0])
    assert area == pytest.approx(found.metrics["auc"].value, abs=0.01)
    assert sum(b.rows for b in found.curves.reliability) == found.rows
    assert sum(found.curves.histogram.positives) == found.positives
    assert sum(found.curves.histogram.negatives) == found.rows - found.positives
    assert found.curves.precision_recall[-1] == (1.0, pytest.approx(found.rate, abs=1e-5))


def test_the_file_reads_back_and_damage_is_named(shop: Path, tmp_path: Path) -> None:
    written = evaluate_run(Run.open(shop / "a"))
    path = evaluation_path(shop / "a", "test")
    read = Evaluation.read(path)
    assert repr(read) == repr(written)  # NaN included
    assert "NaN" not in path.read_text()
    content = json.loads(path.read_text())
    for damaged, sentence in (
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps(content | {"format": "x"}), "format is 'x'"),
        (json.dumps({"format": content["format"]}), "missing"),
    ):
        (tmp_path / "e.json").write_text(damaged)
        with pytest.raises(UserError, match=sentence):
            Evaluation.read(tmp_path / "e.json")
    with pytest.raises(UserError, match="no such file"):
        Evaluation.read(tmp_path / "none.json")


# ------------------------------------------------------------------------------------------------ comparing


def test_a_comparison_is_paired_and_seeds_are_one_side(shop: Path, tmp_path: Path) -> None:
    runs = [Run.open(shop / name) for name in ("b", "a", "a2")]
    found = compare(runs)
    assert [s.name for s in found.sides] == ["b", "a (2 seeds)"]
    assert found.sides[1].seeds == (1, 5)
    assert found.how == "covers the data and the seeds"
    areas = [evaluate(r).heads["click"].metrics["auc"].value for r in runs]
    one = next(a for a in found.against if a.head == "click")
    difference = one.differences["auc"]
    assert difference.value == pytest.approx(np.mean(areas[1:]) - areas[0])
    assert found.sides[1].between_seeds["click"]["auc"] == pytest.approx(np.std(areas[1:], ddof=1))
    assert difference.se_seeds == pytest.approx(np.std(areas[1:], ddof=1) * math.sqrt(1 + 1 / 2))
    assert difference.low < difference.value < difference.high
    expected = rela_impr(float(np.mean(areas[1:])), areas[0])  # NaN of a base below chance
    assert one.rela_impr == pytest.approx(expected, nan_ok=True)
    assert f"on the same {found.rows:,} rows of {found.users:,} users" in one.sentence
    found.write(tmp_path / "c.json")
    assert repr(Comparison.read(tmp_path / "c.json")) == repr(found)

    alone = compare(runs[:2])
    assert alone.how == "covers the data, not the seed of the training"
    other = next(a for a in alone.against if a.head == "click").differences["auc"]
    assert math.isnan(other.se_seeds)
    assert other.p == other.p_holm


def test_both_variances_by_hand() -> None:
    """Sides of 1 and 3 seeds over four users; the variance between seeds is pooled: that of .60, .64, .62, two free."""

    def one(value: float, *of: float) -> Influence:
        return Influence(value, np.array(of), 101)

    base = [one(0.5, 0.01, 0.0, 0.0, 0.0)]
    side = [one(v, 0.01, 0.03 * k, 0.0, 0.0) for k, v in enumerate((0.60, 0.64, 0.62))]
    (found,) = differences([base, side])
    assert found.value == pytest.approx(0.12)
    assert found.se_data == pytest.approx(0.03)  # mean influence .03 on the second user; the first cancels
    seeds = 0.02**2 * (1 + 1 / 3)
    assert found.se_seeds == pytest.approx(math.sqrt(seeds))
    variance = 0.03**2 + seeds
    df = variance**2 / (0.03**4 / 2 + seeds**2 / 2)  # one of 101 users does it all: 3 - 1 degrees of freedom
    assert found.high - found.value == pytest.approx(student_quantile(df) * math.sqrt(variance))
    assert found.p == pytest.approx(student_tail(0.12 / math.sqrt(variance), df))
    (alone,) = differences([base, side[:1]])
    assert math.isnan(alone.se_seeds)
    assert alone.se_data == 0.0  # the influences are equal


def test_a_run_against_its_copy_is_no_difference(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / "a", shop / "copy")
    text = (shop / "copy" / "recipe.toml").read_text()
    (shop / "copy" / "recipe.toml").write_text(text.replace("patience = ", "patience = 1"))  # another recipe
    found = compare([Run.open(shop / "a"), Run.open(shop / "copy")])
    assert [s.name for s in found.sides] == ["a", "copy"]
    for one in found.against:
        for d in one.differences.values():
            assert math.isnan(d.value) or (d.value, d.p) == (0.0, 1.0) or math.isnan(d.p)
    assert found.against[0].sentence.startswith("No difference between copy and a is shown: +0.0000 click AUC")
    assert found.against[0].rela_impr == 0.0


def test_a_training_repeated_is_no_second_seed(shop: Path, tmp_path: Path) -> None:
    """It was averaged as one, and told that seeds make no difference."""
    again = shutil.copytree(shop / "a", tmp_path / "again")
    shutil.copytree(shop / "data", tmp_path / "data")
    with pytest.raises(
        UserError, match=r"again: is .*a once more: one recipe and one seed \(1\); leave one out, or train"
    ):
        compare([Run.open(shop / name) for name in ("b", "a")] + [Run.open(again)])


def test_three_sides_are_adjusted_by_holm(shop: Path) -> None:
    runs = [Run.open(shop / name) for name in ("b", "a", "copy")]
    found = compare(runs)
    ps = [a.differences["logloss"].p for a in found.against if a.head == "click"]
    adjusted = [a.differences["logloss"].p_holm for a in found.against if a.head == "click"]
    assert len(ps) == 2
    assert adjusted == pytest.approx([min(1, 2 * p) for p in ps])  # equal twins: both the smallest


def test_runs_that_were_not_judged_alike_are_refused(shop: Path, tmp_path: Path) -> None:
    logs(tmp_path, seed=3)
    run(Recipe.parse(table(epochs=1), tmp_path), tmp_path / "other")
    a, other = Run.open(shop / "a"), Run.open(tmp_path / "other")
    with pytest.raises(UserError, match="one prepared data set"):
        compare([a, other])
    with pytest.raises(UserError, match="given twice"):
        compare([a, Run.open(shop / "." / "a")])
    with pytest.raises(UserError, match="two or more"):
        compare([a])
    mended = Run.open(shop / "b")
    labels = mended.dataset.labels.copy()
    labels[mended.dataset.rows_of(mended.dataset.requests_of("test"))[:3]] = (
        1 - labels[mended.dataset.rows_of(mended.dataset.requests_of("test"))[:3]]
    )
    object.__setattr__(mended.dataset, "labels", labels)
    with pytest.raises(UserError, match="rows have another label or weight of 'click'"):
        compare([a, mended])


# ------------------------------------------------------------------------------------------------ the verbs


def test_evaluate_shows_and_writes(shop: Path, tmp_path: Path) -> None:
    out = finerank("evaluate", shop / "a", "--slice", "country", "--by", "request", "-o", tmp_path / "e.json")
    assert "GAUC (impressions)" in out
    assert "click by country" in out
    assert "covers the data, not the seed of the training" in out
    assert "slices equal" in out
    assert Evaluation.read(tmp_path / "e.json").by == "request"
    finerank("evaluate", shop / "a", "--split", "validation")
    assert Evaluation.read(evaluation_path(shop / "a", "validation")).split == "validation"


def test_a_sentence_counts_the_rows_of_its_head(shop: Path) -> None:
    """It told of all rows of the split, whatever lay within the head's task: a buy within a click has far fewer."""
    runs = [Run.open(shop / name) for name in ("b", "a")]
    told = {a.head: a.sentence for a in compare(runs).against}
    judged = evaluate(runs[0]).heads
    assert judged["conversion"].rows < judged["click"].rows
    for head, sentence in told.items():
        assert f"on the same {judged[head].rows:,} rows of {judged[head].users:,} users" in sentence


def test_what_slices_equal_means_is_said(shop: Path) -> None:
    """An AUC of .42 under slices of .57 and 1.00 looked like a mistake: it is no mean of theirs."""
    told = " ".join(finerank("evaluate", shop / "a").split())
    assert "slices equal: all rows at once, weighed so that each slice counts alike" in told


def test_compare_shows_and_writes(shop: Path, tmp_path: Path) -> None:
    out = finerank("compare", shop / "b", shop / "a", "-o", tmp_path)
    assert "RelaImpr" in out
    assert "on the same" in out
    assert "Each is of its metric alone" in out.replace("\n", " ")
    assert "Holm" not in out  # of two sides there is one comparison
    assert Comparison.read(tmp_path / "comparison.json").sides[0].name == "b"


def test_bad_input_is_one_sentence(shop: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        (["evaluate", tmp_path], "no finished run"),
        (["evaluate", shop / "a", "--slice", "contry"], "did you mean 'country'"),
        (["evaluate", shop / "a", "--slice", "tags"], "several values per row"),
        (["compare", shop / "a"], "give two or more"),
        (["compare", shop / "a", tmp_path / "none"], "no finished run"),
    ):
        found = CliRunner().invoke(verbs(), [str(a) for a in arguments]).exception
        assert isinstance(found, UserError)
        assert sentence in str(found)


def test_seeds_of_one_recipe_alone_are_told_of_in_a_sentence(shop: Path, tmp_path: Path) -> None:
    """There was a table and no word, and a page without even that."""
    out = finerank("compare", shop / "a", shop / "a2")
    assert "p is" not in out
    found = compare([Run.open(shop / "a"), Run.open(shop / "a2")])
    (side,) = found.sides
    for head, metrics in side.metrics.items():
        name, mean = next(iter(metrics.items()))
        told = (
            f"test {head} {METRICS[name][0]} {mean:.4f} is the mean, {side.between_seeds[head][name]:.4f} the standard"
        )
        assert f"a (2 seeds): all of one recipe, so there is nothing to compare with; {told}" in out
    finerank("report", shop / "a", shop / "a2", "-o", tmp_path / "two.html")
    page = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert page.count("so there is nothing to compare with") == len(side.metrics)
    assert "everything against" not in page


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `lr` and `dcn`, on a log without users."""
    folder = tmp_path_factory.mktemp("nobody")
    logs(folder)
    one = table(epochs=1) | {"history": [], "model": {"name": "lr"}}
    one["data"] = {key: value for key, value in one["data"].items() if key != "events"}
    one["data"]["keys"] = {key: value for key, value in one["data"]["keys"].items() if key != "user"}
    for name in ("lr", "dcn"):
        run(Recipe.parse(one | {"model": {"name": name}}, folder), folder / name, folder / "data")
    return folder


def test_without_users_no_users_are_counted(nobody: Path) -> None:
    """Every request counts as somebody else: it said so many users."""
    out = finerank("evaluate", nobody / "lr")
    requests = len(Run.open(nobody / "lr").dataset.requests_of("test"))
    assert "95 % intervals are over requests, for the recipe names no users: each covers the data" in out
    assert f" rows of {requests} requests; written to" in out
    assert re.search(r"rows +requests +rate", out)  # of the slices
    assert not re.search(r"rows +users", out)
    found = Evaluation.read(nobody / "lr" / "evaluation_test.json")
    assert found.unit == "requests"
    for head in found.heads.values():
        assert all("users" not in one.auc.how for table in head.slices for one in table.slices)


def test_without_users_comparisons_and_pages_tell_of_requests(nobody: Path) -> None:
    """Sentences and pages said users, and that intervals cover their choice."""
    requests = len(Run.open(nobody / "lr").dataset.requests_of("test"))
    rows = len(Run.open(nobody / "lr").predictions("test").rows)
    out = finerank("compare", nobody / "lr", nobody / "dcn", "-o", nobody / "c.json")
    assert f"{rows:,} rows of {requests:,} requests" in out
    assert "users" not in out
    assert Comparison.read(nobody / "c.json").unit == "requests"
    pages = {"run": [nobody / "lr"], "two": [nobody / "lr", nobody / "dcn"]}
    for name, of in pages.items():
        finerank("report", *of, "--rows", 0, "-o", nobody / f"{name}.html")
    one, two = ((nobody / f"{name}.html").read_text(encoding="utf-8") for name in pages)
    assert f"rows in {requests:,} requests · " in one
    assert "Intervals cover the choice of requests, not the seed" in one
    assert "<td>users</td>" not in one
    assert "split by" in one
    told = finerank("prepare", nobody / "lr" / "recipe.toml", "-o", nobody / "prepared")
    assert " rows in " in told
    assert "users" not in told
    assert '<th class="n">requests</th><th class="n">rate</th>' in one
    assert f"{rows:,} test rows of {requests:,} requests; everything against lr" in two
    runs = {name: [Run.open(nobody / name)] for name in ("lr", "dcn")}
    (nobody / "bench").mkdir()
    standings(nobody / "bench", "two", runs, [])
    told = (nobody / "bench" / "bench.md").read_text(encoding="utf-8")
    assert f"{rows:,} test rows of {requests:,} requests." in told
    assert "95 % (data): the choice of requests." in told
