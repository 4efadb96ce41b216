"""BERT4Rec and YouTube DNN: cards' tests, losses by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import (
    AGES,
    ITEMS,
    OF,
    PAST,
    ROWS,
    SMALL,
    USERS,
    D,
    Event,
    Hand,
    batch_of,
    fitted,
    model_of,
    same,
    tower,
)
from transformer_by_hand import block, gelu

from finerank.data.batch import Batch, Drawn
from finerank.errors import UserError
from finerank.models import bert4rec, registry
from finerank.models.catalogue import in_batch_softmax
from finerank.models.composition import Model
from finerank.schema import FIRST, OOV, Task
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions

BERT: dict[str, Any] = {"name": "bert4rec", "representation": {"embedding": {"width": 4}, "dropout": 0.0, "feed": 2}}
W = 4


def bert(**options: Any) -> dict[str, Any]:
    return BERT | {"representation": BERT["representation"] | options}


def items(hand: Hand, name: str = "vectors") -> np.ndarray:
    return hand.p[f"representation.catalogue.{name}.weight"]


def expected_at(hand: Hand, seen: list[np.ndarray | None]) -> list[np.ndarray]:
    """u of every element of a sequence of item vectors, oldest first; None is [mask]. What has no place is shifted out."""
    places = hand.p["representation.places"]
    seen = seen[-len(places) :]
    x = [(hand.p["representation.mask"][0] if e is None else e) + places[len(seen) - 1 - i] for i, e in enumerate(seen)]
    for layer in range(2):
        x = [block(hand.p, f"representation.blocks.{layer}", 2, "gelu", row, x)[0] for row in x]
    return [np.array([gelu(v) for v in hand.dense("representation.last", row)]) for row in x]


@pytest.mark.parametrize("past", [PAST, [PAST[0] * 2, [], PAST[2]]], ids=["short", "at full length"])
def test_bert4rec_scores_candidates_by_the_mask_behind_the_past(past: list[list[Event]]) -> None:
    model = model_of(BERT)
    hand, expected = Hand(model), []
    for n in range(5):
        u = expected_at(hand, [*(items(hand)[e[0]] for e in past[OF[n]]), None])[-1]
        score = float(u @ items(hand)[ITEMS[n]]) + items(hand, "biases")[ITEMS[n], 0]
        expected.append(score + hand.p["head.bias"][0])
    assert same(model(batch_of(past)).logits[:, 0], expected)


HIDDEN = [[False, True, False], [], [True, True]]


def masked(batch: Batch, hidden: list[list[bool]] = HIDDEN) -> Batch:
    return replace(batch, masked={"clicks": torch.tensor([h for request in hidden for h in request], dtype=torch.bool)})


def test_cloze_loss_by_hand() -> None:
    """The mean over hidden items of -log softmax over the eight rows that are items; nothing at visible ones."""
    model = model_of(BERT).train()
    hand, terms = Hand(model), []
    for past, hidden in zip(PAST, HIDDEN, strict=True):
        seen = [None if h else items(hand)[e[0]] for e, h in zip(past, hidden, strict=True)]
        for u, e, h in zip(expected_at(hand, seen), past, hidden, strict=True):
            logits = items(hand)[FIRST:] @ u + items(hand, "biases")[FIRST:, 0]
            terms += [math.log(np.exp(logits).sum()) - logits[e[0] - FIRST]] if h else []
    batch = masked(batch_of())
    losses = model.losses(batch, model(batch))
    assert set(losses) == {"cloze"}  # the labels are not learnt
    assert float(losses["cloze"].detach()) == pytest.approx(sum(terms) / 3, rel=1e-9)
    half = replace(batch, rows_in_step=10)
    assert float(model(half).losses["cloze"].detach()) == pytest.approx(sum(terms) / 6, rel=1e-9)


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_at_a_time_learn_what_all_together_do(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The softmax over items and the attention within groups, in slices of so many rows that are made again to go back."""

    def run() -> list[torch.Tensor]:
        model = model_of(BERT | {"heads": "tasks"}).train()
        out = model(masked(batch_of()))
        loss = out.losses["cloze"] + out.logits.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        given = [t.values.grad for t in model.representation.catalogue.vectors.touched]  # type: ignore[union-attr]
        return [loss.detach(), *(g for g in (*given, *(p.grad for p in model.parameters())) if g is not None)]

    whole, sizes = run(), []
    softmax = bert4rec.full_softmax
    monkeypatch.setattr(bert4rec, "full_softmax", lambda logits, i: sizes.append(len(i)) or softmax(logits, i))
    every = len(model_of(BERT).representation.catalogue.all())  # type: ignore[operator,union-attr]
    monkeypatch.setattr("finerank.layers.slices.SLICE", rows * 3 * every)
    sliced = run()
    assert sizes[:2] == ([1, 1] if rows == 1 else [2, 1])
    assert len(whole) == len(sliced)
    for a, b in zip(whole, sliced, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def at_places(model: Model, past: list[list[Event]], hidden: list[list[bool]]) -> torch.Tensor:
    """u of every event, in training."""
    batch = masked(batch_of(past), hidden)
    r = model.representation
    history = batch.histories["clicks"]
    (e,) = r.catalogue(history.events.ids[:, 0])  # type: ignore[operator,union-attr]
    out: torch.Tensor = r._guessed(e, history, batch.masked["clicks"])  # type: ignore[operator,union-attr]
    return out


def test_a_hidden_item_does_not_leak_and_the_right_side_is_seen() -> None:
    model = model_of(BERT)
    hidden = [[False, True, False], [], [False, False]]
    before = at_places(model, PAST, hidden)[1]
    other_truth = [[PAST[0][0], (7, 3, 4), PAST[0][2]], [], PAST[2]]
    assert torch.equal(at_places(model, other_truth, hidden)[1], before)
    other_right = [[*PAST[0][:2], (7, 3, 5)], [], PAST[2]]
    assert bool((at_places(model, other_right, hidden)[1] != before).all())


def test_serving_is_the_path_of_a_hidden_last_item() -> None:
    """[mask] behind two items is what a hidden third item gives."""
    model = model_of(BERT)
    trained = at_places(model, PAST, [[False, False, True], [], [False, True]])
    served = model.representation(batch_of([PAST[0][:2], [], PAST[2][:1]])).fields_R[:, 0]
    assert torch.allclose(served[[0, 2]], trained[[2, 4]], rtol=1e-12)


def test_longer_batch_mates_change_nothing() -> None:
    model = model_of(BERT)
    longer = [PAST[0], [], PAST[2] * 3]
    assert torch.allclose(model(batch_of(longer)).logits[:3], model(batch_of()).logits[:3], rtol=1e-10)
    hidden = [HIDDEN[0], [], HIDDEN[2] * 3]
    assert torch.allclose(at_places(model, longer, hidden)[:3], at_places(model, PAST, HIDDEN)[:3], rtol=1e-10)


def test_what_has_no_row_of_its_own_is_no_target() -> None:
    model = model_of(BERT).train()
    unknown: list[list[Event]] = [[PAST[0][0], (OOV, 3, 4), PAST[0][2]], [], PAST[2]]
    one = masked(batch_of(unknown), [[False, True, True], [], [False, False]])
    loss = float(model(one).losses["cloze"].detach())
    hand = Hand(model)
    u = expected_at(hand, [items(hand)[4], None, None])[2]
    logits = items(hand)[FIRST:] @ u + items(hand, "biases")[FIRST:, 0]
    assert loss == pytest.approx(math.log(np.exp(logits).sum()) - logits[4 - FIRST], rel=1e-9)
    none = masked(batch_of(unknown), [[False, True, False], [], [False, False]])
    assert float(model(none).losses["cloze"].detach()) == 0.0


DRAWN = torch.tensor([[3, 5, 0], [3, 4, 6], [7, 4, 3]])
LOG_Q = torch.log(torch.tensor([[0.5, 0.25, 1.0], [0.1, 0.2, 0.3], [0.4, 0.2, 0.3]], dtype=torch.float64))


def softmax_by_hand(true: float, others: list[float]) -> float:
    return math.log(sum(math.exp(v) for v in [true, *others])) - true


def test_bert4rec_among_drawn_items_by_hand() -> None:
    """Logits less log Q; a draw that is the item itself, or no item, does not take part."""
    model = model_of(bert(sampled=3)).train()
    assert model.needs.drawn["clicks"].count == 3
    assert model.needs.drawn["clicks"].of == "events"
    hand, terms = Hand(model), []
    q = np.log([0.3, 0.2, 0.1, 0.5, 0.4])
    drawn = Drawn(DRAWN, LOG_Q, torch.from_numpy(q))
    t = 0
    for r, (past, hidden) in enumerate(zip(PAST, HIDDEN, strict=True)):
        seen = [None if h else items(hand)[e[0]] for e, h in zip(past, hidden, strict=True)]
        for u, e, h in zip(expected_at(hand, seen), past, hidden, strict=True):
            score = [float(v) for v in items(hand) @ u + items(hand, "biases")[:, 0]]
            others = [
                score[i] - float(LOG_Q[r, m]) for m, i in enumerate(DRAWN[r].tolist()) if i >= FIRST and i != e[0]
            ]
            terms += [softmax_by_hand(score[e[0]] - q[t], others)] if h else []
            t += 1
    batch = replace(masked(batch_of()), drawn={"clicks": drawn})
    assert float(model(batch).losses["cloze"].detach()) == pytest.approx(sum(terms) / 3, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0.0}, r"rate = 0\.0, last = 0\.1; accepted: a rate above 0"),
        ({"last": 1.5}, r"last = 1\.5; accepted"),
        ({"sampled": -1}, r"sampled = -1; accepted: 0 \(the whole table\) or more"),
        ({"heads": 0}, r"heads = 0, feed = 4; accepted"),
    ],
)
def test_wrong_options_of_bert4rec_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        registry.parse({"name": "bert4rec", "representation": options})


def test_a_catalogue_needs_an_item_that_both_sides_share() -> None:
    made = fitted()
    apart = replace(made.histories["clicks"], ids=(("age", "clicks.age"),))
    said = (
        r"no field of any history is a single id that shares its table with the candidate.*\(histories here: clicks\)"
    )
    with pytest.raises(UserError, match=said):
        model_of(BERT, replace(made, histories={"clicks": apart}))
    with pytest.raises(UserError, match=r"history = 'views' is not declared; accepted: clicks"):
        model_of(bert(history="views"))
    with pytest.raises(UserError, match=r"no field of history 'clicks' is a single id"):
        model_of(bert(history="clicks"), replace(made, histories={"clicks": apart}))


def test_matching_needs_one_vector_on_either_side() -> None:
    with pytest.raises(UserError, match=r"'match' multiplies one vector .* and there are 1 and 2; .*'cloze'"):
        model_of({"name": "lr", "representation": SMALL | {"kind": "plain"}, "interactions": ["match"]})


def test_bert4rec_may_learn_the_labels_too() -> None:
    model = model_of(BERT | {"heads": "tasks"})
    batch = masked(batch_of())
    served = model(batch).logits
    out = model.train()(batch)
    assert set(model.losses(batch, out)) == {"click", "cloze"}
    assert torch.equal(out.logits, served)


def test_each_past_is_read_once_where_training_learns_nothing_from_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss as beside scores that are learnt; a loss that an interaction takes of the vectors has them read too."""
    charging = {"kind": "late_crossing", "hidden": [4], "in_batch": 1.0}
    read: list[str] = []
    for way in ("_expected", "_guessed"):
        plain = getattr(bert4rec.Cloze, way)
        monkeypatch.setattr(bert4rec.Cloze, way, lambda *a, way=way, plain=plain: read.append(way) or plain(*a))

    def trained(table: dict[str, Any]) -> float:
        read.clear()
        return float(model_of(table).train()(masked(batch_of())).losses["cloze"].detach())

    alone = trained(BERT)
    assert read == ["_guessed"]
    assert trained(BERT | {"heads": "tasks"}) == alone
    assert read == ["_guessed", "_expected"]
    assert trained(BERT | {"interactions": [charging], "heads": "catalogue"}) == alone
    assert read == ["_guessed", "_expected"]


# ------------------------------------------------------------------------------------------------ YouTube: candidates


def youtube(**options: Any) -> dict[str, Any]:
    return {"name": "youtube_candidates", "representation": SMALL | {"hidden": [5, 3]} | options}


def user_by_hand(hand: Hand, r: int, age: float | None) -> np.ndarray:
    past = [np.concatenate([tables(hand)["item"][e[0]], tables(hand)["category"][e[1]]]) for e in PAST[r]]
    mean = np.mean(past, axis=0) if past else np.zeros(2 * D)
    parts = [tables(hand)["user"][USERS[r]], [AGES[r]], mean]
    x = np.concatenate(parts if age is None else [*parts, [age]])
    for layer in (0, 2):
        x = np.maximum(hand.dense(f"representation.tower.layers.{layer}", x), 0.0)
    return x


def tables(hand: Hand) -> dict[str, np.ndarray]:
    whole, at, out = hand.p[f"representation.embed.embedding.tables.{D}.weight"], 0, {}
    for name in sorted(ROWS.keys() - {"clicks.age"}):
        out[name] = whole[at : at + ROWS[name]]
        at += ROWS[name]
    assert at == len(whole)
    return out


@pytest.mark.parametrize("aged", [True, False])
@pytest.mark.parametrize("correct", [True, False])
def test_youtube_candidates_by_hand(correct: bool, aged: bool) -> None:
    """Only the two clicked rows have a loss, weighted, over five rows; in serving the example's age is 0."""
    model = model_of(youtube(correct=correct, example_age=aged))
    hand = Hand(model)
    log_q = np.log([0.3, 0.2, 0.1, 0.5, 0.4])
    days = torch.tensor([3.0, 0.0, 10.0], dtype=torch.float64)
    batch = batch_of(weights=[[2.0], [1.0], [1.0], [0.5], [1.0]])
    batch = replace(
        batch,
        drawn={"clicks": Drawn(DRAWN, LOG_Q, torch.from_numpy(log_q))},
        example_age=days if aged else None,
    )
    served = [user_by_hand(hand, OF[n], 0.0 if aged else None) @ items(hand)[ITEMS[n]] for n in range(5)]
    assert hand.p["head.bias"][0] == pytest.approx(math.log(0.25 / 0.75))
    assert same(model(batch).logits[:, 0], [v + hand.p["head.bias"][0] for v in served])
    model.train()
    terms = []
    for n, weight in ((0, 2.0), (3, 0.5)):
        u = user_by_hand(hand, OF[n], math.log1p(float(days[OF[n]])) if aged else None)
        off = [float(LOG_Q[OF[n], m]) if correct else 0.0 for m in range(3)]
        drawn = DRAWN[OF[n]].tolist()
        others = [float(u @ items(hand)[i]) - off[m] for m, i in enumerate(drawn) if i >= FIRST and i != ITEMS[n]]
        own = float(u @ items(hand)[ITEMS[n]]) - (log_q[n] if correct else 0.0)
        terms.append(weight * softmax_by_hand(own, others))
    losses = model.losses(batch, model(batch))
    assert set(losses) == {"catalogue"}
    assert float(losses["catalogue"].detach()) == pytest.approx(sum(terms) / 5, rel=1e-9)


def test_equal_shares_correct_nothing() -> None:
    """The correction is then a constant shift of all logits."""
    flat = Drawn(DRAWN, torch.full((3, 3), -2.5, dtype=torch.float64), torch.full((5,), -2.5, dtype=torch.float64))
    batch = replace(batch_of(), drawn={"clicks": flat}, example_age=torch.zeros(3, dtype=torch.float64))
    with_it, without = (model_of(youtube(correct=c)).train()(batch).losses["catalogue"].detach() for c in (True, False))
    assert float(with_it) == pytest.approx(float(without), rel=1e-12)


LABELS, LOG_SHARE = [[1.0], [1.0], [1.0], [1.0], [0.0]], np.log([0.3, 0.2, 0.1, 0.5, 0.4])


def by_batch(score: Callable[[int, int], float], correct: bool, labels: list[list[float]]) -> list[float]:
    """Losses of the positive rows, each against those of other requests and other items. score: (request, row)."""
    rows = [n for n in range(5) if labels[n][0]]
    off = LOG_SHARE if correct else np.zeros(5)
    return [
        softmax_by_hand(
            score(OF[n], n) - off[n],
            [score(OF[n], m) - off[m] for m in rows if OF[m] != OF[n] and ITEMS[m] != ITEMS[n]],
        )
        for n in rows
    ]


def shares() -> dict[str, Drawn]:
    nothing = torch.empty(3, 0)
    return {"clicks": Drawn(nothing.long(), nothing.double(), torch.from_numpy(LOG_SHARE))}


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("labels", [LABELS, [[1.0]] * 5], ids=["four", "the same item twice"])
def test_youtube_against_the_rest_of_the_batch_by_hand(correct: bool, labels: list[list[float]]) -> None:
    model = model_of(youtube(correct=correct, negatives="batch", example_age=False)).train()
    hand = Hand(model)
    batch = replace(batch_of(labels=labels), drawn=shares())

    def score(r: int, n: int) -> float:
        return float(user_by_hand(hand, r, None) @ items(hand)[ITEMS[n]])

    losses = model.losses(batch, model(batch))
    expected = sum(by_batch(score, correct, labels)) / 5
    assert float(losses["catalogue"].detach()) == pytest.approx(expected, rel=1e-9)
    drawing = model.needs.drawn["clicks"]
    assert (drawing.count, drawing.of) == (0, "candidates")


@pytest.mark.parametrize("correct", [True, False])
def test_two_tower_by_hand(correct: bool) -> None:
    late = {"kind": "late_crossing", "hidden": [4, 3], "temperature": 0.5, "correct": correct}
    model = model_of({"name": "two_tower", "representation": SMALL, "interactions": [late]}).train()
    hand = Hand(model)

    def side(x: np.ndarray, at: str) -> np.ndarray:
        for k in range(2):
            x = np.tanh(hand.dense(f"interactions.0.{at}.0.layers.{2 * k}", x))
        return x / math.sqrt(float(x @ x))

    def score(r: int, n: int) -> float:
        x_r, x_n = hand.row(OF.index(r), [hand.pooled(OF.index(r))]), hand.row(n, [hand.pooled(n)])
        return float(side(x_r[: 3 * D + 1], "networks_R") @ side(x_n[3 * D + 1 :], "networks_N")) / 0.5

    batch = replace(batch_of(labels=LABELS, weights=[[2.0], [1.0], [1.0], [0.5], [1.0]]), drawn=shares())
    each = by_batch(score, correct, LABELS)
    expected = sum(w * loss for w, loss in zip((2.0, 1.0, 1.0, 0.5), each, strict=True)) / 5
    losses = model.losses(batch, model(batch))
    assert set(losses) == {"click in batch"}
    assert float(losses["click in batch"].detach()) == pytest.approx(expected, rel=1e-9)
    served = model.eval()(batch)
    assert served.losses == {}
    assert same(served.logits[:, 0], [score(OF[n], n) + float(hand.p["head.bias"][0]) for n in range(5)])


def test_negatives_of_a_batch_leave_out_what_is_no_negative() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.5], [2.0, 0.0, 1.0]], dtype=torch.float64)
    alone = in_batch_softmax(logits, torch.tensor([5, 6, 7]), torch.tensor([4, 4, 4]))
    assert alone.tolist() == [0.0, 0.0, 0.0]  # one request: nothing to tell apart
    unknown = in_batch_softmax(logits, torch.tensor([5, OOV, 7]), torch.tensor([0, 1, 2]))
    assert unknown.tolist() == pytest.approx([softmax_by_hand(1.0, [3.0]), 0.0, softmax_by_hand(1.0, [2.0])], rel=1e-12)
    shifted = in_batch_softmax(logits, torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2]), torch.full((3,), -2.5))
    plain = in_batch_softmax(logits, torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2]))
    assert torch.allclose(shifted, plain, rtol=1e-12)  # equal shares correct nothing
    assert in_batch_softmax(torch.empty(0, 0), torch.empty(0).long(), torch.empty(0).long()).shape == (0,)


def test_two_tower_is_trained_and_refuses_what_it_cannot_learn(tmp_path: Path) -> None:
    """Its loss is of the batch alone, and falls."""
    made = fitted()
    number = replace(made, schema=replace(made.schema, tasks=(Task(name="click", kind="regression"),)))
    with pytest.raises(UserError, match=r"in_batch: 1 outputs for 1 tasks, .* accepted: a binary task"):
        model_of({"name": "two_tower", "representation": SMALL}, number)
    with pytest.raises(UserError, match=r"in_batch = -1\.0; accepted: 0 \(none\)"):
        registry.parse({"name": "two_tower", "interactions": [{"kind": "late_crossing", "in_batch": -1.0}]})
    data = tiny.dataset(tmp_path / "data", requests=200, tasks=1)
    options = TrainingOptions(epochs=6, patience=9, tables=Adam(lr=0.02), keep_memory=False, threads=1)
    trainer = Trainer(registry.parse({"name": "two_tower", "representation": SMALL}), data, options)
    trainer.fit()
    assert trainer.history[-1].loss < 0.95 * trainer.history[0].loss


def test_youtube_candidates_needs_a_choice() -> None:
    made = fitted()
    number = replace(made.schema, tasks=(Task(name="click", kind="regression"),))
    with pytest.raises(UserError, match=r"task 'click' is a regression; accepted: a binary task as the first"):
        model_of(youtube(), replace(made, schema=number))
    with pytest.raises(UserError, match=r"hidden = \[\]; accepted: at least one layer, each of at least 1 neuron"):
        registry.parse(youtube(hidden=[]))


# ------------------------------------------------------------------------------------------------ YouTube: ranking


def ranking(kind: Any = "regression", rate: float = 30.0, **heads: Any) -> tuple[dict[str, Any], Any]:
    made = fitted()
    schema = replace(made.schema, tasks=(Task(name="click", kind=kind),))
    table = {"name": "youtube_ranking", "representation": SMALL, "interactions": [tower("relu")]}
    return table | {"heads": {"kind": "watch_time"} | heads}, replace(made, schema=schema, base_rates={"click": rate})


WATCHED = [[120.0], [0.0], [0.0], [30.0], [0.0]]


def test_odds_of_the_best_constant_are_the_watch_time_over_the_rows_not_watched() -> None:
    """Intercept alone: e^b = sum T / (N - k) = 150 / 3, which is E[T] (1 + P) to first order: 30 * (1 + .4) = 42."""
    table, schema = ranking()
    model = model_of(table, schema)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "head.bias":
                parameter.zero_()
    batch = batch_of(labels=WATCHED)
    optimiser = torch.optim.LBFGS([model.head.bias], max_iter=100, tolerance_grad=1e-12)  # type: ignore[list-item]

    def step() -> float:
        optimiser.zero_grad()
        loss = model.losses(batch, model(batch))["click"]
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimiser.step(step)  # type: ignore[arg-type]
    assert float(model(batch).logits[0].detach().exp()) == pytest.approx(150 / 3, rel=1e-6)
    assert model.heads[0].link == "odds"


def test_watch_time_loss_by_hand_and_its_cap() -> None:
    for cap in (0.0, 50.0):
        table, schema = ranking(cap=cap)
        model = model_of(table, schema)
        batch = batch_of(labels=WATCHED, weights=[[1.0], [1.0], [2.0], [1.0], [0.0]])
        z = [float(v) for v in model(batch).logits[:, 0].detach()]
        counted = [min(t, cap or t) for (t,) in WATCHED]
        each = [t * math.log1p(math.exp(-v)) if t else math.log1p(math.exp(v)) for t, v in zip(counted, z, strict=True)]
        expected = (each[0] + each[1] + 2 * each[2] + each[3]) / 5
        assert float(model.losses(batch, model(batch))["click"].detach()) == pytest.approx(expected, rel=1e-9)


def test_one_second_for_every_watched_row_is_logistic_regression() -> None:
    number, binary = ranking(rate=0.25), ranking("binary", rate=0.25)
    models = [model_of(*number), model_of(*binary)]
    assert [m.heads[0].link for m in models] == ["odds", "sigmoid"]
    losses = [float(m.losses(batch_of(), m(batch_of()))["click"].detach()) for m in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_training_starts_at_the_mean_watch_time() -> None:
    table, schema = ranking(rate=30.0)
    model = registry.build(registry.parse(table), schema)
    assert float(model.head.bias.detach().exp()) == pytest.approx(30.0)  # type: ignore[operator,union-attr]
    with pytest.raises(UserError, match=r"the mean of task 'click' is -1; accepted: numbers of at least 0"):
        model_of(*ranking(rate=-1.0))
    with pytest.raises(UserError, match=r"cap = -1\.0; accepted: above 0, or 0"):
        registry.parse(ranking(cap=-1.0)[0])
