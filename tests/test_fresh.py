"""Raw rows scored by a finished run: equal to the scores of its own test rows, whatever the order and the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from test_run import logs, table
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.data.source import scan
from finerank.errors import UserError
from finerank.evaluation.evaluate import evaluate, evaluate_files
from finerank.fresh import past
from finerank.fresh.files import predict_file
from finerank.fresh.past import Users
from finerank.fresh.score import FreshScorer
from finerank.recipe import Recipe
from finerank.run import Run, run


def source_row(samples: pl.DataFrame) -> np.ndarray:
    """Row of the samples by row of the data set: requests by time and first position, rows as they were."""
    frame = samples.with_row_index("row").with_columns(first=pl.col("sequence").min().over("request"))
    return frame.sort("time", "first", "row")["row"].to_numpy()


def of_test(opened: Run, samples: pl.DataFrame, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stored logits of the test rows, those of a prediction of all samples)."""
    stored = opened.predictions("test")
    return stored.logits, logits[source_row(samples)[stored.rows]]


@pytest.fixture(scope="module", params=["strict", "file_order", "growing"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    logs(folder)
    recipe: dict[str, Any] = table(epochs=1)
    if request.param == "file_order":
        recipe["history"][0]["ties"] = "file_order"
    if request.param == "growing":
        for feature in recipe["feature"]:
            if feature["name"] == "item":
                feature["encoding"] = {"kind": "growing", "capacity": 20}
    run(Recipe.parse(recipe, folder), folder / "run")
    return folder


def scored(opened: Run, samples: pl.DataFrame, events: pl.DataFrame | None = None, rows: int = 1 << 17) -> np.ndarray:
    scorer = FreshScorer(opened, None if events is None else events.lazy())
    return np.concatenate([batch.logits for batch in scorer.batches(samples.lazy(), rows)])


def test_the_runs_own_rows_get_their_stored_scores(shop: Path) -> None:
    opened = Run.open(shop / "run")
    samples, events = (pl.read_parquet(shop / f"{n}.parquet") for n in ("samples", "events"))
    stored, found = of_test(opened, samples, scored(opened, samples))
    assert np.ptp(stored[:, 0]) > 0.01  # there is something to see
    np.testing.assert_allclose(found, stored, atol=1e-6)
    # in batches that cut requests, and with the log given instead of stored
    for rows, log in ((7, None), (1 << 17, events), (5, events)):
        _, again = of_test(opened, samples, scored(opened, samples, log, rows))
        np.testing.assert_allclose(again, stored, atol=1e-5)


def test_the_order_of_rows_is_theirs(shop: Path) -> None:
    opened = Run.open(shop / "run")
    samples = pl.read_parquet(shop / "samples.parquet")
    mixed = np.random.default_rng(0).permutation(samples.height)
    np.testing.assert_allclose(scored(opened, samples[mixed], rows=11), scored(opened, samples)[mixed], atol=1e-5)


def test_users_have_the_codes_of_their_names_whoever_was_asked_for_before() -> None:
    users = Users(pl.Series(["b", "a", "7"]))
    assert users.codes(pl.Series(["7", "stranger", None, "a"])).tolist() == [2, -1, -1, 1]
    assert users.codes(pl.Series(["stranger", "b", "other"])).tolist() == [-1, 0, -1]
    assert Users(pl.Series([], dtype=pl.String)).codes(pl.Series(["a"])).tolist() == [-1]


def test_the_names_of_strangers_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "STRANGERS", 10)
    users = Users(pl.Series(["b", "a", "7"]))
    for batch in range(40):
        names = [f"s{batch}.{i}" for i in range(9)]
        assert users.codes(pl.Series(["a", *names, "7", "b"])).tolist() == [1, *[-1] * 9, 2, 0]
        assert users._dictionary.size <= 2 * 3 + 10 + 9


def test_later_events_change_nothing_and_earlier_ones_do(shop: Path) -> None:
    opened = Run.open(shop / "run")
    samples, events = (pl.read_parquet(shop / f"{n}.parquet") for n in ("samples", "events"))
    middle = samples["time"].median()
    early = samples.filter(pl.col("time") <= middle)
    known = scored(opened, early, events)
    np.testing.assert_array_equal(scored(opened, early, events.filter(pl.col("time") <= middle)), known)
    assert not np.allclose(scored(opened, early, events.filter(pl.col("time") > middle)), known)


def test_ids_never_seen_and_columns_of_the_training_alone(shop: Path) -> None:
    opened = Run.open(shop / "run")
    samples = pl.read_parquet(shop / "samples.parquet")
    fresh = samples.drop("click", "conversion", "position").with_columns(
        item=pl.lit("never"), user=pl.lit("nobody"), category=pl.lit(99), tags=pl.concat_list(pl.lit("new"))
    )
    found = scored(opened, fresh)
    assert found.shape == (samples.height, 2)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(scored(opened, samples.drop("click", "position")), scored(opened, samples))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "csv.gz", "tsv.zst", "jsonl", "jsonl.gz"])
def test_predict_writes_keys_and_probabilities_row_for_row(shop: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "deep" / f"scores.{suffix}"
    arguments = ["predict", shop / "run", "--samples", shop / "samples.parquet", "-o", out]
    result = CliRunner().invoke(verbs(), [str(a) for a in arguments], catch_exceptions=False)
    samples = pl.read_parquet(shop / "samples.parquet")
    assert f"{samples.height} rows scored" in result.output
    written = scan(out).collect()
    assert written.columns == ["request", "user", "time", "click", "conversion"]
    assert written.select("request", "user", "time").equals(samples.select("request", "user", "time"))
    logits = scored(Run.open(shop / "run"), samples)
    np.testing.assert_allclose(written["click"].to_numpy(), 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-5)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_list_columns_are_read_as_they_were_prepared(tmp_path: Path) -> None:
    samples, _ = tiny.frames(seed=2)
    past = pl.Series([[f"i{(i * k) % 30}" for k in range(i % 9)] or None for i in range(samples["request"].max() + 1)])
    samples = samples.with_columns(past=past.gather(samples["request"]))
    samples.write_parquet(tmp_path / "samples.parquet")
    recipe = table(epochs=1)
    del recipe["data"]["events"]
    recipe["history"] = [{"name": "past", "fields": ["item"], "lists": {"item": "past"}, "max_length": 4}]
    run(Recipe.parse(recipe, tmp_path), tmp_path / "run")
    opened = Run.open(tmp_path / "run")
    for rows in (1 << 17, 6):
        stored, found = of_test(opened, samples, scored(opened, samples, rows=rows))
        np.testing.assert_allclose(found, stored, atol=1e-5)


def test_bad_input_is_one_sentence(shop: Path, tmp_path: Path) -> None:
    opened = Run.open(shop / "run")
    samples = pl.read_parquet(shop / "samples.parquet")
    one = samples.row(0, named=True)["request"]
    cases: list[tuple[pl.DataFrame, str]] = [
        (samples.drop("item"), "no column 'item', which feature 'item' needs"),
        (samples.rename({"category": "categry"}), "did you mean 'categry'"),
        (samples.drop("user"), "no column 'user', which"),
        (samples.clear(), "no rows"),
        (samples.with_columns(price=pl.lit("cheap")), "cheap"),
        (samples.with_columns(time=pl.lit("soon")), "'soon'"),
        (samples.with_columns(tags=pl.lit(3)), "accepted: lists"),
        (samples.with_columns(price=pl.lit(float("inf"))), "finite"),
        (samples.with_columns(request=pl.lit(one)), "rows of different times"),
        (samples.with_columns(request=pl.lit(None, pl.Int64)), "have no 'request'"),
        (
            samples.with_columns(user=pl.when(pl.int_range(pl.len()) % 2 == 0).then("user")),
            "different users, or some without",
        ),
        (samples.with_columns(time=pl.lit(None, pl.Int64)), "no time"),
    ]
    for i, (frame, sentence) in enumerate(cases):
        path = tmp_path / f"{i}.parquet"
        frame.write_parquet(path)
        with pytest.raises(UserError, match=sentence):
            predict_file(opened, path, None, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))  # nothing half done
    path = tmp_path / "samples.parquet"
    samples.write_parquet(path)
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-100])
    samples.head(3).drop("item").write_parquet(tmp_path / "events.parquet")
    pl.read_parquet(shop / "events.parquet").clear().write_parquet(tmp_path / "nothing.parquet")
    for given, events, out, sentence in (
        (path, None, "out.txt", "accepted: .parquet, .csv"),
        (path, None, "there.csv", "exists"),
        (tmp_path / "none.parquet", None, "out.csv", "no such file"),
        (tmp_path / "cut.parquet", None, "out.csv", "not readable"),
        (path, tmp_path / "none.csv", "out.csv", "no such file"),
        (path, tmp_path / "events.parquet", "out.csv", "events: no column 'item'"),
        (path, tmp_path / "nothing.parquet", "out.csv", "events: no rows; is this the right file"),
    ):
        with pytest.raises(UserError, match=sentence):
            predict_file(opened, given, events, tmp_path / out)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_only_what_cannot_be_read_is_said_not_to_be_readable(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of scoring is ours, not the file's: it keeps its own name and where it happened."""

    def failing(*_: object) -> None:
        raise pl.exceptions.ComputeError("while scoring")

    monkeypatch.setattr(FreshScorer, "score", failing)
    with pytest.raises(pl.exceptions.ComputeError, match="while scoring"):
        scored(Run.open(shop / "run"), pl.read_parquet(shop / "samples.parquet"))


def test_evaluating_the_files_of_the_test_rows_is_evaluating_the_split(shop: Path, tmp_path: Path) -> None:
    opened = Run.open(shop / "run")
    samples = pl.read_parquet(shop / "samples.parquet")
    rows = np.sort(source_row(samples)[opened.predictions("test").rows])
    samples[rows].write_parquet(tmp_path / "part.parquet")
    for by in ("user", "request"):
        wanted = evaluate(opened, "test", by, columns=("country", "price"))  # type: ignore[arg-type]
        found = evaluate_files(opened, tmp_path / "part.parquet", None, by, ("country", "price"))  # type: ignore[arg-type]
        assert (found.rows, found.users, found.requests) == (wanted.rows, wanted.users, wanted.requests)
        for head, one in wanted.heads.items():
            other = found.heads[head]
            for name, estimate in one.metrics.items():
                assert other.metrics[name].value == pytest.approx(estimate.value, rel=1e-4, nan_ok=True), name
                if name != "ece":  # whose draws go to users in another order
                    assert other.metrics[name].se == pytest.approx(estimate.se, rel=1e-3, nan_ok=True), name
            for a, b in zip(one.slices, other.slices, strict=True):
                assert (a.by, a.note) == (b.by, b.note)
                assert [(s.name, s.rows, s.users, s.positives) for s in a.slices] == [
                    (s.name, s.rows, s.users, s.positives) for s in b.slices
                ]


def test_strangers_are_new_users_and_labels_are_needed(shop: Path, tmp_path: Path) -> None:
    opened = Run.open(shop / "run")
    samples = pl.read_parquet(shop / "samples.parquet")
    samples.with_columns(user=pl.lit("x") + pl.col("user")).write_parquet(tmp_path / "strangers.parquet")
    found = evaluate_files(opened, tmp_path / "strangers.parquet")
    table_ = next(t for t in found.heads["click"].slices if t.by == "new user")
    assert [(s.name, s.rows) for s in table_.slices] == [("new", samples.height)]
    samples.drop("click").write_parquet(tmp_path / "bare.parquet")
    with pytest.raises(UserError, match="no label column 'click'"):
        evaluate_files(opened, tmp_path / "bare.parquet")
    arguments = ["evaluate", shop / "run", "--events", shop / "events.parquet"]
    refused = CliRunner().invoke(verbs(), [str(a) for a in arguments]).exception
    assert "--events: is read for --samples" in str(refused)
    arguments += ["--samples", shop / "samples.parquet", "-o", tmp_path / "new" / "e.json"]
    for option, value in (("--split", "test"), ("--top", 3), ("--amount", "delay"), ("--order", "position")):
        refused = CliRunner().invoke(verbs(), [str(a) for a in [*arguments, option, value]]).exception
        assert f"{option}: is for a split of the run's data" in str(refused)
    result = CliRunner().invoke(verbs(), [str(a) for a in arguments], catch_exceptions=False)
    assert f"samples.parquet: {samples.height} rows of" in result.output
