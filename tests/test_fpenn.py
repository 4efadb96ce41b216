"""FPENN against loops, the limits of its card, and draws that are the same offline and in a served graph."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import (
    AGES,
    CATEGORIES,
    ITEMS,
    OF,
    PRICES,
    ROWS,
    USERS,
    Hand,
    batch_of,
    features_of,
    fitted,
    model_of,
    same,
)
from test_export import CLOSE, World, bundle_of, replay, stacked
from torch import Tensor

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Model, Needs
from finerank.models.fpenn import Distributions
from finerank.runtime.noise import Noise, draws, normals, request_key, request_keys
from finerank.runtime.scorer import Query, Scorer
from finerank.schema import Growing
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions

AT = "interactions.0"
FIELDS = ["user", "age", "item", "category", "price"]  # request's values and numbers, then the candidate's
S, D = 4, 2
QUICK = TrainingOptions(epochs=3, tables=Adam(lr=0.05), dense=Adam(lr=0.01), keep_memory=False, threads=1)


def fpenn(deep: bool = False, **options: Any) -> dict[str, Any]:
    tower = {"hidden": [3] if deep else []}
    return {
        "name": "fpenn",
        "interactions": [{"kind": "fpenn", "width": D, "tower": tower} | options],
    }


def part_of(model: Model) -> Distributions:
    part = model.interactions[0]
    assert isinstance(part, Distributions)
    return part


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def tables_by_hand(hand: Hand) -> dict[str, np.ndarray]:
    return hand.rows_of(f"{AT}.embedding.tables.{2 * S * D}.weight")


def distributions(hand: Hand, n: int, spread: float = 0.05) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(mu [S, D], s [S, D]) of every field of a row; numbers are x·v and have no spread."""
    out, offset = {}, math.log(math.exp(spread) - 1)
    for field, value in (("user", USERS[OF[n]]), ("item", ITEMS[n]), ("category", CATEGORIES[n])):
        row = tables_by_hand(hand)[field][value]
        s = np.array([softplus(rho + offset) for rho in row[S * D :]])
        out[field] = (row[: S * D].reshape(S, D), s.reshape(S, D))
    for field, x, side in (("age", AGES[OF[n]], "request"), ("price", PRICES[n], "candidate")):
        out[field] = (x * hand.p[f"{AT}.numbers.{side}"][0].reshape(S, D), np.zeros((S, D)))
    return out


def quadratic(vectors: dict[str, np.ndarray]) -> float:
    """Field-aware factorization machine: each of a pair with the vector that it keeps for the other."""
    total = 0.0
    for i, j in itertools.combinations(range(5), 2):
        a, b = vectors[FIELDS[i]], vectors[FIELDS[j]]
        total += float(a[j - 1] @ b[i])  # slots are numbered without a field's own
    return total


def deep(hand: Hand, vectors: dict[str, np.ndarray]) -> float:
    x = np.concatenate([vectors[f].reshape(-1) for f in FIELDS])
    return float(hand.dense(f"{AT}.tower.towers.0.first", x)[0])


@pytest.fixture
def hand_model() -> Any:
    return lambda **options: model_of(fpenn(**options), fitted(history=False))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return tiny.dataset(tmp_path_factory.mktemp("data") / "one", tasks=1)


# ------------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize(("predict", "c"), [("mean", 0.5), ("ucb", 0.5), ("ucb", 0.0)])
def test_mean_and_bound_are_their_equations_in_loops(predict: str, c: float, hand_model: Any) -> None:
    model = hand_model(predict=predict, c=c)
    hand, expected = Hand(model), []
    for n in range(5):
        at = {f: mu + (c * s if predict == "ucb" else 0) for f, (mu, s) in distributions(hand, n).items()}
        expected.append(quadratic(at) + deep(hand, at) + hand.p["head.bias"][0])
    assert same(model(batch_of(history=False)).logits[:, 0], expected)


def noise_by_hand() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        "request": torch.randn(3, 1 * S * D, generator=draw, dtype=torch.float64),
        "candidate": torch.randn(5, 2 * S * D, generator=draw, dtype=torch.float64),
    }


def test_a_draw_is_mean_plus_spread_times_the_noise_of_the_batch(hand_model: Any) -> None:
    model, noise = hand_model(predict="ts"), noise_by_hand()
    hand, expected = Hand(model), []
    for n in range(5):
        found = distributions(hand, n)
        e = {
            "user": noise["request"][OF[n]].reshape(S, D).numpy(),
            "item": noise["candidate"][n, : S * D].reshape(S, D).numpy(),
            "category": noise["candidate"][n, S * D :].reshape(S, D).numpy(),
        }
        at = {f: mu + s * e.get(f, 0.0) for f, (mu, s) in found.items()}
        expected.append(quadratic(at) + deep(hand, at) + hand.p["head.bias"][0])
    batch = replace(batch_of(history=False), noise=noise)
    assert same(model(batch).logits[:, 0], expected)
    with pytest.raises(UserError, match="reads the noise of the request, and the batch has none"):
        model(batch_of(history=False))


def test_without_spread_draw_bound_and_mean_are_one_field_aware_machine(hand_model: Any) -> None:
    logits = []
    for way in ("mean", "ucb", "ts"):
        model = hand_model(predict=way)
        with torch.no_grad():
            table = next(iter(model.embeddings().values()))
            table.weight[:, S * D :] = -1e3  # softplus is 0
            part_of(model).tower.towers[0].first.weight.zero_()  # type: ignore[union-attr]
        batch = replace(batch_of(history=False), noise=noise_by_hand())
        logits.append(model(batch).logits[:, 0])
        hand = Hand(model)
        expected = [
            quadratic({f: mu for f, (mu, _) in distributions(hand, n).items()}) + hand.p["head.bias"][0]
            for n in range(5)
        ]
        assert same(logits[-1], expected)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_the_mean_over_draws_of_the_quadratic_head_is_that_of_the_mean(hand_model: Any) -> None:
    """Independent noise in every slot; within four standard errors of 1,000 draws."""
    model, mean = hand_model(predict="ts", spread=0.5), hand_model(predict="mean", spread=0.5)
    for m in (model, mean):
        with torch.no_grad():
            part_of(m).tower.towers[0].first.weight.zero_()  # type: ignore[union-attr]
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(1_000):
        noise = {name: torch.randn(t.shape, generator=draw, dtype=torch.float64) for name, t in noise_by_hand().items()}
        found.append(model(replace(batch_of(history=False), noise=noise)).logits[:, 0].detach())
    drawn = torch.stack(found)
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert bool((drawn.std(0) > 0.1).all())
    assert bool(((drawn.mean(0) - mean(batch_of(history=False)).logits[:, 0]).abs() < 4 * error).all())


def test_kl_by_hand(hand_model: Any) -> None:
    """Every row pays for each of its values, divided by how often the value occurs in training."""
    counts = {name: np.arange(1, rows + 1) for name, rows in ROWS.items()}
    schema = fitted(history=False)
    tables = {name: replace(t, counts=counts[name]) for name, t in schema.tables.items()}
    model = model_of(fpenn(kl=0.3, prior=0.2), replace(schema, tables=tables)).train()
    part_of(model).gaussian.eval()
    hand, total = Hand(model), 0.0
    for n in range(5):
        found = distributions(hand, n)
        for field, value in (("user", USERS[OF[n]]), ("item", ITEMS[n]), ("category", CATEGORIES[n])):
            mu, s = found[field]
            each = np.log(0.2 / s) + (s**2 + mu**2) / (2 * 0.2**2) - 0.5
            total += float(each.sum()) / counts[field][value]
    batch = batch_of(history=False)
    assert same(model(batch).losses["fpenn_kl"], [0.3 * total / 5])
    assert same(model(replace(batch, rows_in_step=20)).losses["fpenn_kl"], [0.3 * total / 20])
    assert model.eval()(batch).losses == {}
    assert hand_model(kl=0.0).train()(batch).losses == {}


def test_kl_is_the_divergence_of_two_normals() -> None:
    part = part_of(model_of(fpenn(prior=0.7), fitted(history=False)))
    mu, s = torch.tensor([[[0.3, -1.0]]]), torch.tensor([[[0.2, 1.5]]])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, s), normal(torch.zeros(1), torch.tensor([0.7]))).sum()
    assert float(part._divergence(mu, s)) == pytest.approx(float(expected), rel=1e-6)


def test_gradient_reaches_the_spread_through_the_draw_alone(hand_model: Any) -> None:
    model = hand_model(kl=0.0).train()
    for tables in model.embeddings().values():
        tables.sparse = False
    batch = batch_of(history=False)
    torch.manual_seed(0)
    sum(model.losses(batch, model(batch)).values()).backward()
    (weight,) = (t.weight for t in model.embeddings().values())
    of_rho = weight.grad[:, S * D :]
    assert int((of_rho != 0).any(1).sum()) == 3 + 4 + 3  # the distinct users, items, categories of the batch
    torch.manual_seed(0)
    first = model(batch).logits
    assert not torch.equal(first, model(batch).logits)  # training draws anew
    torch.manual_seed(0)
    assert torch.equal(first, model(batch).logits)


def test_a_strong_prior_draws_spread_and_mean_to_it(data: Dataset) -> None:
    found = {}
    for kl in (0.0, 30.0):
        table = {"name": "fpenn", "interactions": ["linear", {"kind": "fpenn", "kl": kl, "prior": 0.2, "width": 2}]}
        options = replace(QUICK, epochs=25, patience=99)
        trainer = Trainer(registry.parse(table), data, options)
        trainer.fit(best=False)
        part = trainer.model.interactions[1]
        assert isinstance(part, Distributions)
        weight = next(iter(part.embedding.tables.values())).table("item")[3:]  # type: ignore[operator]
        mu, rho = weight.chunk(2, dim=1)
        found[kl] = float(mu.abs().mean()), float(torch.nn.functional.softplus(rho + part.offset).mean())
    assert found[30.0][0] < 0.3 * found[0.0][0]
    assert abs(found[30.0][1] - 0.2) < abs(found[0.0][1] - 0.2)
    assert found[30.0][1] == pytest.approx(0.2, rel=0.3)


# ------------------------------------------------------------------------------------------------ the noise itself


def test_noise_is_a_function_of_request_column_and_value() -> None:
    noise = Noise(seed=1, width=6, request=("user",), candidate=("item", "category"))
    columns = fitted(history=False).candidate
    block = batch_of(history=False).candidate.map(Tensor.numpy)
    keys = request_keys(np.array([7, 7, 8, 9, 9]))
    found = draws(noise, "candidate", columns, block, keys)
    assert found.shape == (5, 12)
    assert found.dtype == np.float32
    item, category = found[:, :6], found[:, 6:]
    for a, b in itertools.combinations(range(5), 2):
        request = OF[a] == OF[b]
        assert (item[a] == item[b]).all() == (request and ITEMS[a] == ITEMS[b])
        assert (category[a] == category[b]).all() == (request and CATEGORIES[a] == CATEGORIES[b])
    assert not (item[0] == category[0]).any()  # 3 and 3: equal values of two columns are two things
    turned = block.map(lambda t: t[::-1])
    assert np.array_equal(draws(noise, "candidate", columns, turned, keys[::-1])[::-1], found)
    assert not (draws(replace(noise, seed=2), "candidate", columns, block, keys) == found).any()
    assert request_key(7) == request_key("7") == int(keys[0]) != request_key("r7")


def test_normals_are_standard_and_independent() -> None:
    found = normals(np.arange(60_000, dtype=np.uint64), 5).astype(np.float64)
    assert np.abs(found.mean(0)).max() < 4 / math.sqrt(60_000)
    assert np.abs(found.std(0) - 1).max() < 0.01
    assert np.abs(np.corrcoef(found.T) - np.eye(5)).max() < 4 / math.sqrt(60_000)
    assert np.mean(np.abs(found) < 1.96) == pytest.approx(0.95, abs=0.002)
    assert np.isfinite(found).all()
    assert not np.array_equal(found[0], normals(np.array([1], dtype=np.uint64), 5)[0])


# ------------------------------------------------------------------------------------------------ the same everywhere


@pytest.fixture(scope="module")
def trip(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, World, Path]:
    """A trained model whose scores are draws, and its bundle."""
    table = {"name": "fpenn", "interactions": ["linear", {"kind": "fpenn", "predict": "ts", "spread": 0.5, "seed": 5}]}
    trainer = Trainer(registry.parse(table), data, QUICK)
    trainer.fit()
    folder = tmp_path_factory.mktemp("trip") / "bundle"
    bundle_of(trainer, folder)
    return trainer, World(data, *tiny.frames()), folder


def test_offline_draws_are_those_of_the_served_graph(trip: tuple[Trainer, World, Path]) -> None:
    """A server that names requests as the log places them gives the draws of the evaluation, together or one by one."""
    trainer, world, folder = trip
    scorer, data = Scorer.load(folder), world.data
    assert [i.name for i in scorer.manifest.inputs][-2:] == ["noise.request", "noise.candidate"]
    requests = data.requests_of("test")
    offline = predict(trainer.model, trainer.builder, requests)
    rows, queries = replay(world, scorer, "test")
    assert np.array_equal(rows, offline.rows)
    named = [replace(q, id=int(data.sequence[r])) for q, r in zip(queries, requests, strict=True)]
    alone = [scorer.score(q.request, q.candidates, q.histories, q.id) for q in named]
    for found in (scorer.score_many(named), alone):
        np.testing.assert_allclose(stacked(found, scorer), offline.logits, **CLOSE)
    again = predict(trainer.model, trainer.builder, requests[::-1].copy(), rows_per_batch=3)
    order = np.argsort(again.rows)
    assert np.array_equal(again.rows[order], np.sort(offline.rows))
    np.testing.assert_allclose(again.logits[order], offline.logits[np.argsort(offline.rows)], **CLOSE)
    other = [replace(q, id=f"other {q.id}") for q in named]
    moved = np.abs(stacked(scorer.score_many(other), scorer) - offline.logits)
    assert float(np.median(moved)) > 0.05  # another request, another draw
    texts = [replace(q, id=str(q.id)) for q in named]
    np.testing.assert_allclose(stacked(scorer.score_many(texts), scorer), offline.logits, **CLOSE)
    with pytest.raises(UserError, match="this model's scores are draws, one per request: give the query an id"):
        scorer.score(queries[0].request, queries[0].candidates, queries[0].histories)


def test_draws_do_not_depend_on_other_candidates(trip: tuple[Trainer, World, Path]) -> None:
    _, world, folder = trip
    scorer = Scorer.load(folder)
    _, queries = replay(world, scorer, "test")
    query = max(queries, key=lambda q: len(q.candidates))
    whole = scorer.score(query.request, query.candidates, query.histories, 3).logits["click"]
    back = scorer.score(query.request, query.candidates[::-1], query.histories, 3).logits["click"]
    np.testing.assert_allclose(back[::-1], whole, **CLOSE)
    last = scorer.score(query.request, query.candidates[-1:], query.histories, 3).logits["click"]
    np.testing.assert_allclose(last, whole[-1:], **CLOSE)
    twice = scorer.score(query.request, [query.candidates[0]] * 2, query.histories, 3).logits["click"]
    assert twice[0] == twice[1]  # one draw of the parameters, not one of each row


def test_training_batches_carry_no_noise_and_models_that_do_not_draw_none(data: Dataset) -> None:
    ts = registry.build(
        registry.parse({"name": "fpenn", "interactions": [{"kind": "fpenn", "predict": "ts"}]}), data.fitted
    )
    builder = BatchBuilder(data, ts.needs)
    assert set(builder.batch(np.arange(3), epoch=None).noise) == {"request", "candidate"}
    assert builder.batch(np.arange(3), epoch=0).noise == {}
    mean = registry.build(registry.composition("fpenn"), data.fitted)
    assert mean.needs.noise is None
    assert BatchBuilder(data, mean.needs).batch(np.arange(3), epoch=None).noise == {}
    drawn: Batch = builder.batch(np.arange(3), epoch=None)
    assert drawn.noise["request"].shape == (3, len(part_of(ts).embedding.order["request"]) * part_of(ts).slots * 4)


def test_growing_tables_and_fields_left_out(tmp_path: Path) -> None:
    growing = tiny.dataset(tmp_path / "growing", tasks=1, encoding=Growing(capacity=20))
    table = {
        "name": "fpenn",
        "without": ["category", "age"],
        "interactions": ["linear", {"kind": "fpenn", "predict": "ts"}],
    }
    trainer = Trainer(registry.parse(table), growing, QUICK)
    trainer.fit()
    noise = trainer.model.needs.noise
    assert noise is not None
    assert "category" not in noise.candidate
    scored = predict(trainer.model, trainer.builder, growing.requests_of("test"))
    assert np.isfinite(scored.logits).all()


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spread": 0.0}, r"spread = 0\.0, prior = 0\.1; accepted: numbers above 0"),
        ({"prior": -1.0}, r"prior = -1\.0; accepted"),
        ({"kl": -1.0}, r"kl = -1\.0"),
        ({"width": 0}, "width = 0"),
        ({"predict": "thompson"}, "predict: got 'thompson'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.parse(fpenn(**options))


def test_what_it_cannot_serve() -> None:
    with pytest.raises(UserError, match="interaction 'fpenn' gives one output and the heads need 2"):
        registry.build(registry.parse(fpenn()), fitted(("click", "conversion"), history=False))
    one = registry.parse(fpenn() | {"without": ["age", "item", "category", "price"]})
    with pytest.raises(UserError, match="interaction 'fpenn' crosses fields, and the schema has 1"):
        registry.build(one, fitted(history=False))
    two = {"name": "fpenn", "interactions": [{"kind": "fpenn", "predict": "ts"}] * 2}
    with pytest.raises(UserError, match="two parts of the model draw noise"):
        registry.build(registry.parse(two), fitted(history=False))
    assert (Needs() | Needs()).noise is None
    assert Query({}, []).id is None
    assert features_of(model_of(fpenn(), fitted(history=False)), batch_of(history=False)).fields_R.shape[1] == 0
