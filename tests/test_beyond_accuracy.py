"""Beyond accuracy: every metric against loops over sets, and its limits; what `evaluate` makes of a run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from test_run import logs, table
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.errors import UserError
from finerank.evaluation import beyond
from finerank.evaluation.beyond import TITLES
from finerank.evaluation.document import Evaluation, evaluation_path
from finerank.evaluation.evaluate import evaluate
from finerank.metrics import beyond as metrics
from finerank.metrics.estimate import student_quantile
from finerank.recipe import Recipe
from finerank.report.run_report import run_report
from finerank.run import Run, run
from finerank.schema import FIRST

LISTS = 9


@pytest.fixture(params=range(3))
def page(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Lists of 1 to 7 rows, not in order; items repeat within and across them."""
    draw = np.random.default_rng(request.param)
    lists = draw.permutation(np.repeat(np.arange(LISTS), draw.integers(1, 8, LISTS)))
    m = len(lists)
    return {
        "lists": lists,
        "items": draw.integers(0, 8, m),
        "vectors": draw.normal(size=(m, 3)) * (draw.random((m, 1)) > 0.2),
        "attributes": draw.integers(-1, 3, (m, 4)),
        "users_of": draw.integers(0, 20, m),
        "relevant": draw.random(m) < 0.4,
        "likeness": draw.random(m),
        "one": draw.integers(0, 5, m),
        "other": draw.normal(size=m),
        "scores": draw.integers(0, 3, m) / 2,
    }


def rows_of(page: dict[str, Any]) -> list[list[int]]:
    return [[n for n in range(len(page["lists"])) if page["lists"][n] == g] for g in range(LISTS)]


def same(got: np.ndarray, wanted: list[float]) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_tops_are_the_best_rows(page: dict[str, Any], k: int) -> None:
    found = metrics.top(page["scores"], page["lists"], k).tolist()
    assert found == metrics.top(page["scores"], page["lists"], k).tolist()
    for g, rows in enumerate(rows_of(page)):
        mine = [n for n in found if page["lists"][n] == g]
        scores = [page["scores"][n] for n in mine]
        assert len(set(mine)) == len(mine) == min(k, len(rows))
        assert scores == sorted((page["scores"][n] for n in rows), reverse=True)[:k]


def test_equal_scores_do_not_keep_the_order_of_the_file() -> None:
    """Labels may stand first in a file: constant scores must not find them."""
    found = metrics.top(np.zeros(2_000), np.repeat(np.arange(100), 20), 5)
    assert abs((found % 20).mean() - 9.5) < 1


def test_coverage_and_gini(page: dict[str, Any]) -> None:
    items = page["items"].tolist()
    assert metrics.coverage(page["items"], 10) == len(set(items)) / 10
    counts = [items.count(i) for i in range(10)]
    spread = sum(abs(a - b) for a, b in itertools.product(counts, counts))
    assert metrics.gini(page["items"], 10) == pytest.approx(spread / (2 * 10 * sum(counts)))


@pytest.mark.parametrize("k", [2, 3])
def test_personalisation(page: dict[str, Any], k: int) -> None:
    sets = [{int(page["items"][n]) for n in rows} for rows in rows_of(page)]
    wanted = []
    for g, mine in enumerate(sets):
        common = [len(mine & other) / k for h, other in enumerate(sets) if h != g and len(other) >= k]
        wanted.append(1 - float(np.mean(common)) if len(mine) >= k and common else math.nan)
    same(metrics.personalisation(page["lists"], page["items"], k), wanted)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norm = math.sqrt(a @ a) * math.sqrt(b @ b)
    return float(a @ b) / norm if norm else 0.0


def test_diversity(page: dict[str, Any]) -> None:
    v = page["vectors"]
    wanted = []
    for rows in rows_of(page):
        pairs = list(itertools.combinations(rows, 2))
        wanted.append(1 - float(np.mean([cosine(v[a], v[b]) for a, b in pairs])) if pairs else math.nan)
    same(metrics.diversity(page["lists"], v), wanted)


def test_diversity_by_attributes(page: dict[str, Any]) -> None:
    """Against the definition, and against `diversity` of one-hot vectors where every attribute is known."""
    a = page["attributes"]
    wanted = []
    for rows in rows_of(page):
        alike = [np.mean((a[m] == a[n]) & (a[m] >= 0)) for m, n in itertools.combinations(rows, 2)]
        wanted.append(1 - float(np.mean(alike)) if alike else math.nan)
    same(metrics.attribute_diversity(page["lists"], a), wanted)
    known = np.abs(a)
    one_hot = (known[:, :, None] == np.arange(3)).reshape(len(a), -1)
    same(
        metrics.attribute_diversity(page["lists"], known),
        metrics.diversity(page["lists"], one_hot.astype(float)).tolist(),
    )


def test_novelty(page: dict[str, Any]) -> None:
    wanted = [float(np.mean([-math.log2(max(page["users_of"][n], 1) / 32) for n in rows])) for rows in rows_of(page)]
    same(metrics.novelty(page["lists"], page["users_of"], 32), wanted)


def test_surprise(page: dict[str, Any]) -> None:
    wanted = []
    for rows in rows_of(page):
        found = [1 - page["likeness"][n] for n in rows if page["relevant"][n]]
        wanted.append(float(np.mean(found)) if found else math.nan)
    same(metrics.surprise(page["lists"], page["relevant"], page["likeness"]), wanted)


def test_footrule(page: dict[str, Any]) -> None:
    def places(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]

    wanted = []
    for rows in rows_of(page):
        one, other = (places([float(page[name][n]) for n in rows]) for name in ("one", "other"))
        moved = sum(abs(a - b) for a, b in zip(one, other, strict=True))
        wanted.append(moved / (len(rows) ** 2 // 2) if len(rows) > 1 else math.nan)
    same(metrics.footrule(page["lists"], page["one"], page["other"]), wanted)


def test_one_item_for_all() -> None:
    lists, items = np.repeat(np.arange(5), 3), np.zeros(15, dtype=np.int64)
    assert metrics.coverage(items, 50) == 1 / 50
    assert metrics.gini(items, 50) == pytest.approx(1 - 1 / 50)
    assert metrics.personalisation(lists, items, 1).tolist() == [0.0] * 5
    assert metrics.attribute_diversity(lists, np.ones((15, 2), dtype=np.int64)).tolist() == [0.0] * 5
    np.testing.assert_allclose(metrics.diversity(lists, np.ones((15, 4))), 0, atol=1e-12)
    apart = np.arange(15)
    assert metrics.personalisation(lists, apart, 3).tolist() == [1.0] * 5
    assert metrics.gini(apart, 15) == 0


def test_nothing_is_not_a_number() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert math.isnan(metrics.gini(none, 10))
    assert metrics.coverage(none, 10) == 0
    for value in (
        metrics.coverage(none, 0),
        metrics.coverage_se(none, none, 10),
        metrics.coverage_se(np.zeros(5, dtype=np.int64), np.arange(5), 10),
        metrics.gini_influence(none, 10, none, 0).se,
        metrics.clicks_per_impression([], 0),
        metrics.conversions_per_click([0], [0]),
        metrics.amount_per_1000_impressions([], 0),
    ):
        assert math.isnan(value)
    assert len(metrics.footrule(none, [], [])) == len(metrics.personalisation(none, none)) == 0
    assert np.isnan(metrics.personalisation(np.zeros(3, dtype=np.int64), np.arange(3), 2)).all()
    with pytest.raises(UserError, match=r"k = 0; accepted: 1 or more"):
        metrics.top([1.0], np.zeros(1, dtype=np.int64), 0)


def tops_of(draw: np.random.Generator, users: int, kind: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(items, users, catalogue): tops of ten of users of one population, whose tastes are their own or of a segment."""
    fixed = np.random.default_rng(7)
    if kind == "segments":
        pages = fixed.permuted(np.tile(np.arange(800), (60, 1)), axis=1)[:, :10]
        share = np.arange(1, 61) ** -1.2
        items = pages[draw.choice(60, users, p=share / share.sum())]
        return items.ravel(), np.repeat(np.arange(users), 10), 800
    catalogue, slope = {"few": (200, 0.8), "many": (1_500, 0.9)}[kind]
    liked = -slope * np.log(np.arange(1, catalogue + 1)) + draw.gumbel(size=(users, catalogue))
    return np.argpartition(-liked, 10, axis=1)[:, :10].ravel(), np.repeat(np.arange(users), 10), catalogue


@pytest.mark.parametrize("kind", ["few", "many", "segments"])
def test_intervals_of_coverage_and_gini_hold_what_as_many_users_see(kind: str) -> None:
    """300 samples of 60 users: the mean of all lies in 90 to 99 % of their intervals."""
    draw, users = np.random.default_rng(1), 60
    found = []
    for _ in range(300):
        items, of, catalogue = tops_of(draw, users, kind)
        gini = metrics.gini_influence(items, catalogue, of, users)
        found.append(
            (metrics.coverage(items, catalogue), metrics.coverage_se(items, of, catalogue), gini.value, gini.se)
        )
    coverage, coverage_se, gini_, gini_se = np.array(found).T
    t = student_quantile(users - 1)
    for values, se in ((coverage, coverage_se), (gini_, gini_se)):
        held = float((np.abs(values - values.mean()) <= t * se).mean())
        assert 0.9 <= held <= 0.99, (kind, held)


def test_the_error_of_coverage_is_the_series_over_sets_of_users(page: dict[str, Any]) -> None:
    lists, items = page["lists"], page["items"] * 7  # any codes
    users = len(set(lists.tolist()))
    sets: dict[frozenset[int], int] = {}
    for item in set(items.tolist()):
        of = frozenset(lists[items == item].tolist())
        sets[of] = sets.get(of, 0) + 1
    alone = sum(n for s, n in sets.items() if len(s) == 1)
    first = sum(n**2 for s, n in sets.items() if len(s) == 1) - alone**2 / users
    weight = [sum(math.comb(8, j) for j in range(k, 9)) / 256 for k in range(9 + 1)]
    series = weight[1] * first - sum((-1) ** len(s) * weight[len(s)] * n**2 for s, n in sets.items() if len(s) > 1)
    wanted = math.sqrt(max(series, first / 3)) / 100 if first > 1e-9 else math.nan
    assert metrics.coverage_se(items, lists, 100) == pytest.approx(wanted, nan_ok=True)


def test_what_a_user_does_to_gini_is_what_leaving_it_out_does() -> None:
    items, of, catalogue = tops_of(np.random.default_rng(3), 80, "many")
    found = metrics.gini_influence(items, catalogue, of, 80)
    left = np.array([metrics.gini(items[of != u], catalogue) for u in range(80)])
    assert found.se == pytest.approx(math.sqrt(79 * left.var()), rel=0.05)
    assert found.value == metrics.gini(items, catalogue)


# ------------------------------------------------------------------------------------------------ of a run


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("shop")
    logs(folder)
    run(Recipe.parse(table(epochs=1), folder), folder / "run")
    return Run.open(folder / "run")


@pytest.mark.parametrize(("by", "k"), [("user", 3), ("request", 2)])
def test_a_run_against_loops(shop: Run, by: Any, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beyond, "AT_ONCE", 7)  # so that pasts are compared in several turns
    found = {n: e.value for n, e in evaluate(shop, "test", by, k=k).heads["click"].beyond.items()}
    data, scores = shop.dataset, shop.predictions("test")
    column = {name: j for j, (name, _) in enumerate(data.fitted.candidate.ids)}
    past_column = {name: j for j, (name, _) in enumerate(data.fitted.histories["clicks"].ids)}
    described = [n for n in column if n in past_column and n != "item"]
    assert described == ["category", "price"]

    def values(row: int) -> list[int]:
        return [int(data.candidate.ids[row, column[n]]) for n in described]

    request_of = np.searchsorted(data.first, np.arange(data.rows), side="right") - 1
    tops: dict[int, list[int]] = {}
    for n in np.argsort(-scores.logits[:, 0], kind="stable"):  # scores of this run do not tie within a list
        row = int(scores.rows[n])
        group = int(scores.groups[n]) if by == "user" else int(request_of[row])
        if len(tops.setdefault(group, [])) < k:
            tops[group].append(row)
    item = {row: int(data.candidate.ids[row, column["item"]]) for rows in tops.values() for row in rows}
    train = [int(r) for r in data.rows_of(data.requests_of("train"))]
    trained = {int(data.candidate.ids[r, column["item"]]) for r in train}
    assert found[f"coverage@{k}"] == pytest.approx(len(set(item.values())) / len(trained | set(item.values())))

    users = {int(data.user[request_of[r]]) for r in train}
    had: dict[int, set[int]] = {}
    for r in train:
        if data.labels[r, 0] == 1:
            had.setdefault(int(data.candidate.ids[r, column["item"]]), set()).add(int(data.user[request_of[r]]))

    def rarity(i: int) -> float:
        return -math.log2(max(len(had.get(i, ())) if i >= FIRST else 0, 1) / len(users))

    assert found[f"novelty@{k}"] == pytest.approx(
        np.mean([np.mean([rarity(item[r]) for r in t]) for t in tops.values()])
    )

    def alike(a: list[int], b: list[int]) -> float:
        return sum(x == y and x >= FIRST for x, y in zip(a, b, strict=True)) / len(a)

    inside = [
        1 - np.mean([alike(values(a), values(b)) for a, b in itertools.combinations(t, 2)])
        for t in tops.values()
        if len(t) > 1
    ]
    assert found[f"diversity@{k}"] == pytest.approx(np.mean(inside))
    surprises = []
    for t in tops.values():
        mine = []
        for r in t:
            if data.labels[r, 0] == 1:
                request = int(request_of[r])
                past = range(int(data.slices["clicks"].start[request]), int(data.slices["clicks"].end[request]))
                ids = data.events["clicks"].block.ids
                events = [[int(ids[e, past_column[n]]) for n in described] for e in past]
                mine.append(1 - max((alike(values(r), e) for e in events), default=0.0))
        if mine:
            surprises.append(np.mean(mine))
    assert found[f"surprise@{k}"] == pytest.approx(np.mean(surprises))
    sets = [{item[r] for r in t} for t in tops.values()]
    sets = [s for s in sets if len(s) == k]
    overlap = [len(a & b) / k for a, b in itertools.combinations(sets, 2)]
    assert found[f"personalisation@{k}"] == pytest.approx(1 - np.mean(overlap))
    rows = [r for t in tops.values() for r in t]
    clicks = sum(data.labels[r, 0] == 1 for r in rows)
    bought = sum(data.labels[r, 0] == 1 and data.labels[r, 1] == 1 for r in rows)
    assert found[f"clicks_per_impression@{k}"] == pytest.approx(clicks / len(rows))
    assert found[f"conversions_per_click@{k}"] == pytest.approx(bought / clicks)
    assert f"amount_per_1000_impressions@{k}" not in found


def test_what_is_judged_among_clicks_alone_has_no_clicks_by_impression(shop: Run) -> None:
    """The rows of a conversion within a click are clicks: its CTR was 1.0000 of 1.0000, and its GPM of 1,000 clicks."""
    found = evaluate(shop, "test", "request").heads
    assert any(name.startswith("clicks_per_impression") for name in found["click"].beyond)
    within = found["conversion"].beyond
    assert any(name.startswith("conversions_per_click") for name in within)
    assert not any(name.startswith(("clicks_per_impression", "amount_per")) for name in within)


def test_how_far_rows_would_move(shop: Run) -> None:
    found = evaluate(shop, "test", "request", order="position").heads["click"].beyond["footrule"].value
    data, scores = shop.dataset, shop.predictions("test")
    table = data.encoder.tables["position"]
    moved = []
    for request in data.requests_of("test"):
        rows = [i for i, r in enumerate(scores.rows) if data.first[request] <= r < data.first[request + 1]]
        if len(rows) > 1:
            shown = [float(table.name(int(data.train_only.ids[scores.rows[i], 0]))) for i in rows]
            score = [-float(scores.logits[i, 0]) for i in rows]
            places = [[sum(v < x for v in of) + (sum(v == x for v in of) - 1) / 2 for x in of] for of in (shown, score)]
            moved.append(sum(abs(a - b) for a, b in zip(*places, strict=True)) / (len(rows) ** 2 // 2))
    assert found == pytest.approx(np.mean(moved))
    for wrong, message in (
        ("positon", r"order 'positon' is no feature"),
        ("item", r"order 'item': its values are no numbers"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(shop, "test", order=wrong)


def test_intervals_are_those_of_resampled_users(shop: Run) -> None:
    """The mean over lists of users: the interval is that of the mean of a sample."""
    found = evaluate(shop, "test", k=3).heads["click"].beyond["novelty@3"]
    assert found.low < found.value < found.high
    assert "users" in found.how
    for name in ("coverage@3", "gini@3"):
        found = evaluate(shop, "test", k=3).heads["click"].beyond[name]
        assert 0 <= found.low < found.value < found.high <= 1
        assert found.how.startswith("of as many users")


def test_of_one_user_there_is_no_interval(tmp_path: Path) -> None:
    samples, events = (frame.with_columns(user=pl.lit("u1")) for frame in tiny.frames())
    samples.write_parquet(tmp_path / "samples.parquet")
    events.write_parquet(tmp_path / "events.parquet")
    run(Recipe.parse(table(epochs=1) | {"model": {"name": "lr"}}, tmp_path), tmp_path / "run")
    found = evaluate(Run.open(tmp_path / "run"), "test", k=3).heads["click"].beyond
    for name in ("coverage@3", "gini@3", "novelty@3"):
        assert math.isnan(found[name].low)
        assert found[name].how.endswith("no interval: too few users")


def test_an_amount_per_thousand_impressions(tmp_path: Path) -> None:
    recipe = table(epochs=1)
    logs(tmp_path)
    recipe["task"] = [recipe["task"][0], {"name": "amount", "kind": "regression", "column": "price"}]
    recipe["feature"] = [f for f in recipe["feature"] if f["name"] not in ("price", "amount")]
    recipe["history"][0]["fields"] = ["item", "category"]
    run(Recipe.parse(recipe, tmp_path), tmp_path / "run")
    opened = Run.open(tmp_path / "run")
    found = evaluate(opened, "test", "request", k=50, amount="amount").heads["click"].beyond
    rows = opened.predictions("test").rows
    expected = 1000 * opened.dataset.labels[rows, 1].mean()
    assert found["amount_per_1000_impressions@50"].value == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match=r"amount 'amont' is no regression task; did you mean 'amount'"):
        evaluate(opened, "test", amount="amont")


def test_the_verb_shows_writes_and_reports(shop: Run) -> None:
    shown = CliRunner().invoke(verbs(), ["evaluate", str(shop.folder), "--top", "2"])
    assert shown.exit_code == 0, shown.output
    assert "CTR: clicks / impressions, top 2" in shown.output
    read = Evaluation.read(evaluation_path(shop.folder, "test"))
    names = [n.removesuffix("@2") for n in read.heads["click"].beyond]
    assert names == [n for n in TITLES if n in names]
    assert len(names) == 8
    assert "coverage: distinct items / items of the catalogue, top 2" in run_report(shop, rows=0)
