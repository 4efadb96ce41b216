"""Explanations: weights and effects are the model's own, importance finds what is used, lifts are counted rightly."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny
import torch

from finerank.data.builder import BatchBuilder
from finerank.data.columns import take_block
from finerank.data.dataset import Dataset, Slices
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.errors import UserError, nearest
from finerank.explain import past
from finerank.explain.embedding_map import embedding_map, table_vectors
from finerank.explain.importance import permutation_importance
from finerank.explain.lift import Z95, _interval, lift
from finerank.explain.past import Explanation, batch_of, explain, latest_request
from finerank.explain.readable import names_of
from finerank.metrics.estimate import student_quantile
from finerank.models.registry import parse
from finerank.schema import MultiValued, Schema, Task
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def din(data: Dataset) -> Trainer:
    """Random weights, large enough that every field speaks."""
    composition = parse({"name": "din", "representation": {"embedding": {"width": 4, "std": 1.0}}})
    return Trainer(composition, data, TrainingOptions(threads=1, keep_memory=False))


def someone(data: Dataset, split: str = "test") -> str:
    """The user of the split's request with the longest past."""
    requests = data.requests_of(split)
    slices = data.slices["clicks"]
    longest = requests[np.argmax(slices.end[requests] - slices.start[requests])]
    return str(data.users[int(data.user[longest])])


def test_weights_and_scores_are_those_of_the_model(din: Trainer, data: Dataset) -> None:
    user = someone(data)
    request = latest_request(data, user, "test")
    found = explain(din, user)
    din.model.eval()
    out = din.model(din.builder.batch(np.array([request]), epoch=None))
    np.testing.assert_allclose([c.logit for c in found.candidates], out.logits[:, 0].detach(), rtol=1e-6)
    weights = [s.weight for c in found.candidates for s in c.past if s.history == "clicks"]
    np.testing.assert_allclose(weights, out.attention["clicks"].detach(), rtol=1e-6)
    assert [c.score for c in found.candidates] == pytest.approx([1 / (1 + np.exp(-c.logit)) for c in found.candidates])
    assert all(s.age is not None and s.age > 0 for c in found.candidates for s in c.past)


@pytest.mark.parametrize("name", ["din", "base", "dien"])
def test_an_effect_is_the_logit_without_the_event(data: Dataset, name: str) -> None:
    """The oldest and the newest event can be left out by moving the ends of the slices: the plain twin."""
    trainer = Trainer(parse({"name": name}), data, TrainingOptions(threads=1, keep_memory=False, seed=3))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    user = someone(data)
    request = latest_request(data, user, "test")
    found = explain(trainer, user)
    assert found.candidates[0].past
    slices = data.slices["clicks"]
    for end, shift in (("start", 1), ("end", -1)):
        moved = {"start": slices.start.copy(), "end": slices.end.copy()}
        moved[end][request] += shift
        trainer.builder.dataset = replace(data, slices={"clicks": Slices(moved["start"], moved["end"], slices.known)})
        without = trainer.model(trainer.builder.batch(np.array([request]), epoch=None)).logits[:, 0].detach().numpy()
        effect = [c.past[0 if end == "start" else -1].effect for c in found.candidates]
        np.testing.assert_allclose(effect, [c.logit for c in found.candidates] - without, rtol=1e-4, atol=1e-5)
    trainer.builder.dataset = data


def test_effects_do_not_depend_on_how_many_events_are_left_out_at_a_time(
    din: Trainer, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once a past of 200 events and 200 candidates took 3 GB."""

    def effects() -> list[float]:
        return [s.effect for c in explain(din, someone(data)).candidates for s in c.past]

    together = effects()
    monkeypatch.setattr(past, "PAIRS", 1)
    np.testing.assert_allclose(effects(), together, rtol=1e-4, atol=1e-6)


def test_an_item_of_the_request_and_one_from_before(din: Trainer, data: Dataset) -> None:
    user = someone(data)
    whole = explain(din, user)
    item = whole.candidates[-1].what["item"]
    one = explain(din, user, item)
    assert [c.logit for c in one.candidates] == pytest.approx(
        [c.logit for c in whole.candidates if c.what["item"] == item], rel=1e-6
    )
    here = {c.what["item"] for c in whole.candidates}
    rows = data.rows_of(np.arange(latest_request(data, user, "test")))
    names = names_of(data.encoder, data.fitted.candidate, take_block(data.candidate, rows))
    other = next(n["item"] for n in names if n["item"] not in here and not n["item"].startswith("<"))
    (found,) = explain(din, user, other).candidates
    assert found.what["item"] == other


def test_users_whose_names_are_gone_are_an_error_of_the_data(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data")
    (tmp_path / "data" / "users.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"users\.parquet: not readable \(\w+\); prepare again"):
        latest_request(data, "3", "test")


def test_of_many_names_a_sentence_lists_a_few() -> None:
    """An unknown user was told of by listing every user of the log, a hundred thousand of them."""
    users = [f"u{i:04}" for i in range(2_000)]
    said = nearest("u1999x", users)
    assert said.startswith("did you mean 'u1999'? accepted: u0000, u0001, ")
    assert said.endswith(", u0019 and 1,980 more")
    assert nearest("x", users[:100]).endswith(", u0099")  # few enough to be read


def test_whom_and_what_it_does_not_know_it_says(din: Trainer, data: Dataset) -> None:
    with pytest.raises(UserError, match=r"user 'nobody' is not in the data; "):
        explain(din, "nobody")
    with pytest.raises(UserError, match=r"item 'i999' was never a candidate up to this request"):
        explain(din, someone(data), "i999")
    with pytest.raises(UserError, match=r"no head 'clik'; .*click"):
        explain(din, someone(data), head="clik")
    with pytest.raises(UserError, match="no candidate id field 'itm'"):
        embedding_map(din, "itm", 5)


# ------------------------------------------------------------------------------------------------ fields


FIELDS = (
    "user",
    "country",
    "interests",
    "age",
    "age?",
    "item",
    "category",
    "tags",
    "price",
    "country_category",
    "amount",
)
"""As the tiny world declares them: the request's fields and numbers, then the candidate's; `age?`: whether it is missing."""


def explained(data: Dataset, **model: object) -> tuple[Trainer, Explanation]:
    """A model with random weights, explained for a user."""
    trainer = Trainer(parse(model), data, TrainingOptions(threads=1, keep_memory=False))
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=draw)
    return trainer, explain(trainer, someone(data))


def rows_of(trainer: Trainer, data: Dataset) -> np.ndarray:
    """[C, F, D]: the vectors of the fields of the request's candidates."""
    batch = trainer.builder.batch(np.array([latest_request(data, someone(data), "test")]), epoch=None)
    model = trainer.model
    vectors = model.interactions[-1].vectors  # type: ignore[union-attr]
    found: np.ndarray = vectors.rows(model.representation(batch)).detach().double().numpy()  # type: ignore[operator]
    return found


@pytest.fixture(scope="module")
def one_task(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("one") / "data", tasks=1)


def test_attention_of_pairs_of_fields_by_hand(one_task: Dataset) -> None:
    """AFM: softmax over all pairs of h · relu(W p + b), in the names of the fields."""
    part = {"kind": "attentional_pairs", "factor": 3}
    trainer, found = explained(one_task, name="afm", representation={"embedding": {"width": 4}}, interactions=[part])
    (one,) = found.between
    v_CFD = rows_of(trainer, one_task)
    w, b, h = (
        p.detach().double().numpy()
        for name, p in trainer.model.interactions[0].named_parameters()
        if name.startswith(("attention.", "score."))
    )
    assert (one.what, one.rows, one.columns) == ("attention of pairs", FIELDS, FIELDS)
    for c, v_FD in enumerate(v_CFD):
        score = {
            (i, j): float(h[0] @ np.maximum(w @ (v_FD[i] * v_FD[j]) + b, 0))
            for i, j in combinations(range(len(FIELDS)), 2)
        }
        total = sum(np.exp(s) for s in score.values())
        for i, j in product(range(len(FIELDS)), repeat=2):
            expected = np.exp(score[i, j]) / total if i < j else np.nan
            assert one.weights[c, i, j] == pytest.approx(expected, rel=1e-4, nan_ok=True)
        (i, j), best = max(score.items(), key=lambda s: s[1])
        ((a, d, weight),) = one.strongest([c], 1)
        assert (a, d, weight) == (FIELDS[i], FIELDS[j], pytest.approx(np.exp(best) / total, rel=1e-4))


def test_attention_between_fields_by_hand(one_task: Dataset) -> None:
    """AutoInt's first layer: the mean over heads of the softmax of what each field asks and each answers."""
    part = {"kind": "autoint", "layers": 2, "heads": 2, "width": 3}
    trainer, found = explained(
        one_task, name="autoint", representation={"embedding": {"width": 4}}, interactions=[part]
    )
    assert [(b.what, b.rows, b.columns) for b in found.between] == [
        ("attention of layer 1", FIELDS, FIELDS),
        ("attention of layer 2", FIELDS, FIELDS),
    ]
    layer = trainer.model.interactions[0].layers[0]  # type: ignore[union-attr, index]
    asks, answers = (linear.weight.detach().double().numpy() for linear in (layer.query, layer.key))  # type: ignore[union-attr]
    for c, v_FD in enumerate(rows_of(trainer, one_task)):
        for m, v in enumerate(v_FD):
            expected = np.zeros(len(FIELDS))
            for head in (slice(0, 3), slice(3, 6)):
                e = np.exp([float((asks[head] @ v) @ (answers[head] @ k)) for k in v_FD])
                expected += e / e.sum() / 2
            np.testing.assert_allclose(found.between[0].weights[c, m], expected, rtol=1e-3)
    np.testing.assert_allclose(found.between[1].weights.sum(2), 1, rtol=1e-5)


def test_strengths_of_pairs_are_the_models_own(one_task: Dataset) -> None:
    trainer, found = explained(one_task, name="fwfm")
    (one,) = found.between
    r = trainer.model.interactions[0].weights[0].tolist()  # type: ignore[union-attr, index]
    for (i, j), expected in zip(combinations(range(len(FIELDS)), 2), r, strict=True):
        np.testing.assert_allclose(one.weights[:, i, j], expected, rtol=1e-6)
        assert np.isnan(one.weights[:, j, i]).all()
    kept = ["user*item", "category*price"]
    _, found = explained(one_task, name="autofis_fm", interactions=[{"kind": "autofis", "kept": kept}], stages=[])
    strongest = found.between[0].strongest([0], 9)
    assert sorted(f"{a}*{b}" for a, b, _ in strongest) == sorted(kept)  # a pair that was dropped is not there
    _, found = explained(one_task, name="fibinet")
    assert (found.between[0].rows, found.between[0].columns) == (("weight",), FIELDS)


def test_separate_networks_weigh_fields_each_for_itself(data: Dataset) -> None:
    _, found = explained(data, name="fwfm", separate=True)
    assert [b.what for b in found.between] == ["click.r", "conversion.r"]
    assert not np.allclose(found.between[0].weights, found.between[1].weights, equal_nan=True)


def test_what_weighs_nothing_says_nothing(din: Trainer, data: Dataset) -> None:
    assert explain(din, someone(data)).between == ()


def test_importance_is_nought_for_what_the_model_does_not_read(data: Dataset) -> None:
    """A linear model over no embeddings of histories: dealing these out anew changes nothing at all."""
    trainer = Trainer(parse({"name": "lr"}), data, TrainingOptions(threads=1, keep_memory=False))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += torch.randn_like(parameter)
    (of_click,) = permutation_importance(trainer, "train", rows=10_000, repeats=2, head="click").values()
    found = {(i.level, i.field): i for i in of_click}
    assert all(found[key].loss == 0 for key in found if key[0] == "clicks")
    assert any(i.loss != 0 for i in found.values())


def test_importance_finds_the_field_that_decides(data: Dataset) -> None:
    """The weights of `item` alone are set, to what each item was clicked: only it can count."""
    trainer = Trainer(parse({"name": "lr"}), data, TrainingOptions(threads=1, keep_memory=False))
    rows = data.rows_of(data.requests_of("train"))
    j = [name for name, _ in data.fitted.candidate.ids].index("item")
    symbols = np.asarray(data.candidate.ids)[rows, j].astype(int)
    size = data.encoder.tables["item"].size
    rate = np.bincount(symbols, data.labels[rows, 0], size) / np.maximum(np.bincount(symbols, minlength=size), 1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
        (tables,) = trainer.model.embeddings().values()
        tables.table("item")[:] = torch.from_numpy(rate).float()[:, None]
    first, second, *_ = permutation_importance(trainer, "train", rows=10_000)["click"]
    assert (first.level, first.field) == ("candidate", "item")
    assert first.loss > 0.05
    assert first.low <= first.loss <= first.high
    assert second.loss == 0


def test_importance_is_of_each_head_or_of_the_one_that_is_named(data: Dataset) -> None:
    trainer = Trainer(parse({"name": "lr"}), data, TrainingOptions(threads=1, keep_memory=False))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += torch.randn_like(parameter)
    found = permutation_importance(trainer, "train", 10_000, repeats=1)
    assert list(found) == ["click", "conversion"]
    assert found["click"] != found["conversion"]
    for name in found:
        assert permutation_importance(trainer, "train", 10_000, repeats=1, head=name) == {name: found[name]}
    with pytest.raises(UserError, match="no binary head 'clik'; did you mean 'click'"):
        permutation_importance(trainer, "train", head="clik")


def test_a_head_of_one_class_has_no_importance_and_the_others_have(data: Dataset) -> None:
    nobody = replace(data, labels=np.asarray(data.labels) * [1.0, 0.0])
    trainer = Trainer(parse({"name": "lr"}), data, TrainingOptions(threads=1, keep_memory=False))
    trainer.builder = BatchBuilder(nobody, trainer.model.needs)
    assert list(permutation_importance(trainer, "train", 10_000, repeats=1)) == ["click"]
    with pytest.raises(UserError, match="train rows that count for 'conversion' are of one class"):
        permutation_importance(trainer, "train", 10_000, head="conversion")


def test_a_lift_is_counted_by_hand(data: Dataset) -> None:
    samples, _ = tiny.frames()
    train = data.rows_of(data.requests_of("train"))
    ordered = samples.sort("time", "sequence", maintain_order=True)[train.tolist()]
    assert ordered["click"].to_list() == data.labels[train, 0].astype(int).tolist()
    overall = ordered["click"].mean()
    for v in lift(data, "category", "click").values:
        mine = ordered.filter(pl.col("category").cast(pl.String) == v.value)["click"]
        assert (v.rows, v.positives) == (len(mine), mine.sum())
        assert v.rate == pytest.approx(mine.mean())
        assert v.lift == pytest.approx(mine.mean() / overall)
        assert 0 <= v.low <= v.rate <= v.high <= 1
    tags = ordered.explode("tags").group_by("tags").agg(pl.len(), pl.col("click").sum())
    counted = {tag: (rows, clicks) for tag, rows, clicks in tags.drop_nulls().iter_rows()}
    assert {v.value: (v.rows, v.positives) for v in lift(data, "tags").values} == counted


def test_a_lift_says_of_how_many_values_it_is(data: Dataset) -> None:
    """Twenty of a catalogue's values stood there as if they were all."""
    every, few = lift(data, "category"), lift(data, "category", top=2)
    assert (every.scope, len(every.values)) == (f"all {every.distinct:,} values", every.distinct)
    assert (few.scope, len(few.values)) == (f"the 2 most frequent of {every.distinct:,} values", 2)
    least = min(v.rows for v in few.values)
    assert sum(v.rows > least for v in every.values) < 2


def test_a_row_counts_once_however_often_its_list_holds_a_value(tmp_path: Path) -> None:
    """Both values stand in every row, one of them three times in every other row: neither says anything."""
    rows = range(40)
    samples = pl.DataFrame(
        {"time": list(rows), "tags": [["a", "a", "a", "b"] if i % 2 else ["a", "b"] for i in rows]}
        | {"click": [int(i % 4 == 1) for i in rows]}
    )
    tags = Schema(features=(MultiValued(name="tags", level="candidate"),), histories=(), tasks=(Task(name="click"),))
    made = prepare(tmp_path / "data", tags, samples.lazy(), None, Keys(time="time"), Split(validation=0.1, test=0.1))
    assert [(v.rows, v.positives, v.rate, v.lift) for v in lift(made, "tags").values] == [(32, 8, 0.25, 1.0)] * 2


def wilson(p: float, worth: float, z: float) -> tuple[float, float]:
    centre = (p + z**2 / (2 * worth)) / (1 + z**2 / worth)
    half = z / (1 + z**2 / worth) * (p * (1 - p) / worth + z**2 / (4 * worth**2)) ** 0.5
    return centre - half, centre + half


def test_the_interval_of_a_lift_knows_users() -> None:
    positive = np.array([1.0] * 30 + [0.0] * 70)
    alone = _interval(positive, np.arange(100), 0.3)
    assert alone == pytest.approx(wilson(0.3, 99, student_quantile(99)))
    together = _interval(positive, np.arange(100) // 10, 0.3)  # ten users, each all or nothing
    assert together == pytest.approx(wilson(0.3, 9, student_quantile(9)))
    alike = _interval(
        np.tile([1.0, 0.0, 0.0], 50), np.arange(150) // 75, 1 / 3
    )  # two users of one rate: all rows, and t of 1
    assert alike == pytest.approx(wilson(1 / 3, 150, student_quantile(1)))


@pytest.mark.parametrize(("positives", "rows"), [(5, 10), (3, 10), (300, 1_000), (0, 10), (10, 10)])
def test_the_rows_of_one_user_are_worth_one(positives: int, rows: int) -> None:
    """His deviations from his own rate add up to 0, or to what rounding leaves of it."""
    positive = (np.arange(rows) < positives).astype(float)
    low, high = wilson(positives / rows, 1, Z95)
    assert _interval(positive, np.zeros(rows, np.int64), positives / rows) == pytest.approx((max(0, low), min(1, high)))


def test_the_interval_of_a_lift_covers_the_truth_with_few_users() -> None:
    r, inside = np.random.default_rng(0), 0
    for _ in range(400):
        of = np.repeat(np.arange(5), 30)
        positive = (r.random(150) < r.beta(1, 4, 5)[of]).astype(float)  # of 1/5 on average
        low, high = _interval(positive, of, float(positive.mean()))
        inside += low <= 0.2 <= high
    assert inside >= 0.92 * 400


def test_lift_of_what_is_not_there(data: Dataset) -> None:
    with pytest.raises(UserError, match=r"no id or list field 'amount'"):
        lift(data, "amount")
    with pytest.raises(UserError, match="no binary task 'x'"):
        lift(data, "item", "x")


# ------------------------------------------------------------------------------------------------ the map


def test_a_map_of_flat_embeddings_keeps_everything(data: Dataset) -> None:
    """In two dimensions the plane loses nothing: distances on it are those of the embeddings."""
    composition = parse({"name": "din", "representation": {"embedding": {"width": 2, "std": 1.0}}})
    trainer = Trainer(composition, data, TrainingOptions(threads=1, keep_memory=False))
    request = int(data.requests_of("test")[-1])
    found = embedding_map(trainer, "item", request, "category", top=10)
    assert found.kept == pytest.approx(1)
    vectors = table_vectors(trainer.model, "item")
    symbols = [data.encoder.tables["item"].lookup(s.name) for s in found.spots]
    wanted = np.linalg.norm(vectors[symbols][:, None] - vectors[symbols][None], axis=2)
    place = np.array([(s.x, s.y) for s in found.spots])
    np.testing.assert_allclose(np.linalg.norm(place[:, None] - place[None], axis=2), wanted, atol=1e-5)
    counts = [s.count for s in found.spots]
    assert counts == sorted(counts, reverse=True)


def test_a_map_scores_items_for_the_request(din: Trainer, data: Dataset) -> None:
    request = latest_request(data, someone(data), "test")
    found = embedding_map(din, "item", request, top=5)
    spot = found.spots[0]
    j = [name for name, _ in data.fitted.candidate.ids].index("item")
    until = int(data.first[request + 1])
    symbol = data.encoder.tables["item"].lookup(spot.name)
    row = np.flatnonzero(np.asarray(data.candidate.ids)[:until, j] == symbol)[-1:]
    logit = din.model.eval()(batch_of(din.builder, request, row)).logits[0, 0].detach()
    assert spot.score == pytest.approx(float(torch.sigmoid(logit)), rel=1e-5)


def test_a_map_is_of_the_head_that_is_asked_for_and_on_its_scale(tmp_path: Path) -> None:
    """A number is no probability: its head's link is applied, not a sigmoid."""
    data = tiny.dataset(tmp_path / "data", tasks=3)
    trainer, found = explained(data, name="shared_bottom")
    request = latest_request(data, found.user, "test")
    first, number = (embedding_map(trainer, "item", request, top=5, head=head) for head in (None, "delay"))
    items = {s.name: s.score for s in number.spots}
    for name, score in items.items():
        (one,) = explain(trainer, found.user, name, head="delay").candidates[-1:]
        assert score == pytest.approx(one.logit, rel=1e-5)
    assert [s.score for s in first.spots] != list(items.values())
    assert all(0 < s.score < 1 for s in first.spots)
