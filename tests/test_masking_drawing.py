"""What the batch builder makes for catalogue models: hidden events, drawn items, ages of examples."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.drawing import Drawing, Law
from finerank.data.masking import Masking
from finerank.data.order import Budget
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Needs
from finerank.schema import FIRST, PADDING, Growing
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("drawing") / "data", requests=120, tasks=1)


def needs(rate: float = 0.3, last: float = 0.4, count: int = 7, of: str = "candidates") -> Needs:
    return Needs(
        masked={"clicks": Masking(rate=rate, last=last)},
        drawn={"clicks": Drawing(count=count, item="item", of=of)},  # type: ignore[arg-type]
        example_age=True,
    )


def of_request(batch: Batch, r: int) -> list[bool]:
    out: list[bool] = batch.masked["clicks"][batch.histories["clicks"].segments == r].tolist()
    return out


def test_every_sequence_hides_something_and_some_only_the_last(data: Dataset) -> None:
    builder = BatchBuilder(data, needs(rate=0.01))
    batch = builder.batch(np.arange(data.requests), epoch=3)
    kinds = []
    for r, length in enumerate(batch.histories["clicks"].lengths.tolist()):
        hidden = of_request(batch, r)
        if length:
            assert sum(hidden) == 1  # at this rate hardly more, and never none
            kinds.append(hidden[-1])
    assert 0.4 <= np.mean(kinds) < 0.9  # four in ten by rule, and some of the others by chance
    only_last = BatchBuilder(data, needs(last=1.0)).batch(np.arange(data.requests))
    history = only_last.histories["clicks"]
    newest = history.positions == history.lengths[history.segments] - 1
    assert torch.equal(only_last.masked["clicks"], newest)


def test_as_many_are_hidden_as_the_rate_says(data: Dataset) -> None:
    builder = BatchBuilder(data, needs(rate=0.5, last=0.0))
    many = torch.cat([builder.batch(np.arange(data.requests), epoch=e).masked["clicks"] for e in range(20)])
    assert 0.48 < float(many.float().mean()) < 0.58  # a little above: a sequence of one hides it


def test_masks_and_draws_are_of_seed_epoch_and_request_alone(data: Dataset) -> None:
    some = np.array([100, 7, 55, 3, 99])
    builder = BatchBuilder(data, needs(), seed=4)
    whole, part = builder.batch(np.arange(data.requests), epoch=2), builder.batch(some, epoch=2)
    for i, r in enumerate(some.tolist()):
        assert of_request(part, i) == of_request(whole, r)
        assert torch.equal(part.drawn["clicks"].ids[i], whole.drawn["clicks"].ids[r])
        assert torch.equal(part.drawn["clicks"].log_q[i], whole.drawn["clicks"].log_q[r])
    for other in (builder.batch(some, epoch=3), BatchBuilder(data, needs(), seed=5).batch(some, epoch=2)):
        assert not torch.equal(other.masked["clicks"], part.masked["clicks"])
        assert not torch.equal(other.drawn["clicks"].ids, part.drawn["clicks"].ids)
    chunks = list(builder.batches(next(builder.steps(some[:1], Budget(rows=1), shuffle=False)), epoch=2))
    assert all(torch.equal(c.drawn["clicks"].ids, part.drawn["clicks"].ids[:1]) for c in chunks)


def test_evaluation_hides_and_draws_nothing(data: Dataset) -> None:
    batch = BatchBuilder(data, needs()).batch(np.arange(5), epoch=None)
    assert (dict(batch.masked), dict(batch.drawn), batch.example_age) == ({}, {}, None)


@pytest.mark.parametrize("of", ["candidates", "events"])
def test_draws_are_known_events_and_their_shares_are_counted(data: Dataset, of: str) -> None:
    """Against a loop over the log in the order of knowledge."""
    batch = BatchBuilder(data, needs(count=50, of=of)).batch(np.arange(data.requests), epoch=1)
    table, slices = data.events["clicks"], data.slices["clicks"]
    log = table.block.ids[table.by_rank, 0].tolist()
    drawn = batch.drawn["clicks"]
    if of == "candidates":
        own, request = data.candidate.ids[:, 0], batch.request_of.tolist()
    else:
        own, request = batch.histories["clicks"].events.ids[:, 0].numpy(), batch.histories["clicks"].segments.tolist()
    for r in range(data.requests):
        known = log[: slices.known[r]]
        ids, log_q = drawn.ids[r].tolist(), drawn.log_q[r].tolist()
        if not known:
            assert set(ids) == {PADDING}
            continue
        assert set(ids) <= set(known)
        assert np.allclose(log_q, [np.log(known.count(i) / len(known)) for i in ids], atol=1e-6)
    for n, r in enumerate(request):
        known = log[: slices.known[r]]
        share = max(known.count(own[n]), 1) / max(len(known), 1)
        assert float(drawn.true[n]) == pytest.approx(np.log(share), abs=1e-6)


def test_a_law_holds_twelve_bytes_an_event() -> None:
    """And little more while it is made: there may be hundreds of millions."""
    n = 100_000
    items = np.random.default_rng(0).integers(0, 2**31 - 1, n).astype(np.int32)
    by_rank = np.arange(n)
    tracemalloc.start()
    law = Law(items, by_rank)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 12 * n + 10_000
    assert peak < 30 * n
    assert (np.diff(law.keys) > 0).all()
    assert sorted(law.keys // (n + 1)) == sorted(items.astype(int))  # no product is beyond int64


def test_what_is_drawn_follows_the_shares_and_never_the_future() -> None:
    items = np.array([3, 4, 3, 3, 5, 6, 6, 6, 6, 6])
    whole, early = (Law(items[:n], np.arange(n)) for n in (10, 5))
    known, requests = np.array([5] * 400), np.arange(400)
    drawn, log_q = whole.draw(25, known, 17, requests)
    before, log_before = early.draw(25, known, 17, requests)
    assert (drawn == before).all()  # without the later events, too
    assert np.array_equal(log_q, log_before)
    shares = np.bincount(drawn.ravel(), minlength=7)[3:] / drawn.size
    assert np.allclose(shares, [0.6, 0.2, 0.2, 0.0], atol=0.015)
    assert np.allclose(np.exp(whole.log_share(np.array([3, 6, 6]), np.array([5, 5, 10]))), [0.6, 0.2, 0.5])


def test_a_batch_does_not_look_at_all_requests_for_its_age(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, whole = [], Dataset.requests_of

    def requests_of(dataset: Dataset, split: str) -> np.ndarray:
        asked.append(split)
        return whole(dataset, split)

    monkeypatch.setattr(Dataset, "requests_of", requests_of)
    builder = BatchBuilder(data, needs())
    one, other = builder.batch(np.array([0])), builder.batch(np.array([1]))
    assert one.example_age is not None
    assert other.example_age is not None
    assert asked == ["train"]


def test_example_age_counts_days_to_the_newest_training_request(data: Dataset) -> None:
    batch = BatchBuilder(data, needs()).batch(np.arange(data.requests))
    assert batch.example_age is not None
    newest = data.time[data.split == 0].max()
    expected = np.maximum(newest - data.time, 0) / 86_400e6
    assert np.allclose(batch.example_age.numpy(), expected, rtol=1e-6)
    assert batch.example_age.max() > 0
    assert batch.example_age[data.requests_of("test")].max() == 0


def test_needs_are_joined() -> None:
    one = Needs(masked={"a": Masking()}, drawn={"a": Drawing(count=1, item="i", of="events")})
    two = Needs(masked={"b": Masking(rate=0.5)}, pairs=frozenset("p"), example_age=True)
    both = one | two
    assert (set(both.masked), set(both.drawn), both.pairs, both.example_age) == ({"a", "b"}, {"a"}, {"p"}, True)


def test_draws_of_a_growing_table_are_its_rows(tmp_path: Path) -> None:
    made = tiny.dataset(tmp_path / "data", requests=80, tasks=1, encoding=Growing(capacity=12))
    for name in ("youtube_candidates", "bert4rec"):
        options = TrainingOptions(epochs=1, keep_memory=False, threads=1)
        parsed = registry.parse(
            {"name": name, "representation": {"sampled": 9} if name == "bert4rec" else {"drawn": 9}}
        )
        trainer = Trainer(parsed, made, options)
        trainer.fit()
        batch = trainer.feed.batch(made.requests_of("train"), 1)
        ids = batch.drawn["clicks"].ids
        assert int(ids.max()) < FIRST + 12
        assert np.isfinite(trainer.history[0].loss)


def test_shares_alone_are_those_beside_draws(data: Dataset) -> None:
    every = np.arange(data.requests)
    with_draws, alone = (BatchBuilder(data, needs(count=c)).batch(every).drawn["clicks"] for c in (5, 0))
    assert alone.ids.shape == alone.log_q.shape == (data.requests, 0)
    assert torch.equal(alone.true, with_draws.true)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Drawing(count=-1, item="i", of="events"), r"count = -1; accepted: 0 \(none, the shares alone\)"),
        (lambda: Masking(rate=1.1), r"rate = 1\.1, last = 0\.1; accepted"),
    ],
)
def test_wrong_needs_are_refused(make: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()  # type: ignore[operator]
