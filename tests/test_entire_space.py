"""ESMM over a long chain, its competitors, and heads that model every step of a chain directly."""

from __future__ import annotations

import itertools
import math
import tomllib
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import SMALL, Hand, batch_of, bce, fitted, model_of, same, sigmoid, tower
from test_multitask import TASKS, refused

from finerank.data.builder import BatchBuilder
from finerank.data.prepare import prepare
from finerank.datasets.worlds import ConversionOptions, conversions
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Model
from finerank.models.whole_chain import HIGHEST, ratio_logit
from finerank.recipe import Recipe
from finerank.schema import Task
from finerank.training.checkpoint import Checkpoints
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, Sampling, TrainingOptions
from finerank.training.stages import after_stages
from finerank.typed import to_toml

LABELS = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
WEIGHTS = [[1.0, y] for y, _ in LABELS]  # as `prepare` gives them: a conversion lives within clicks


def named(name: str, tasks: tuple[str, ...] = TASKS, seed: int = 0, **more: Any) -> Model:
    table = {"name": name, "representation": SMALL, "interactions": [tower("relu")]} | more
    return model_of(table, fitted(tasks), seed)


def batch(labels: list[list[float]] = LABELS, weights: list[list[float]] = WEIGHTS):  # type: ignore[no-untyped-def]
    return batch_of(labels=labels, weights=weights)


# ------------------------------------------------------------------------------------------------ four stages


def test_a_chain_of_four_stages_by_brute_force() -> None:
    """request -> impression -> click -> conversion: every outcome of every row, in decimals and in loops."""
    stages = ("request", "impression", "click", "conversion")
    model = named("esmm", stages, seed=3)
    depth = [1, 3, 4, 0, 2]  # how far each row came
    labels = [[float(s < d) for s in range(4)] for d in depth]
    weights = [[float(s == 0 or s <= d) for s in range(4)] for d in depth]  # nobody looks beyond the first no
    given = batch(labels, weights)
    out = model(given)
    names = [h.name for h in model.heads]
    assert names == [
        "request",
        "impression",
        "request&impression",
        "click",
        "request&impression&click",
        "conversion",
        "request&impression&click&conversion",
    ]
    assert [h.trained for h in model.heads] == [True, False, True, False, True, False, True]
    hand = Hand(model)
    losses = {name: 0.0 for name, h in zip(names, model.heads, strict=True) if h.trained}
    for n in range(5):
        x = hand.row(n, [hand.pooled(n)])
        p = [sigmoid(hand.tower(x, 0, s) + float(hand.p["head.bias"][s])) for s in range(4)]
        # the chance of having come exactly so far, over all outcomes of four coins of which a no ends the game
        reached = [0.0] * 5
        for coins in itertools.product([0, 1], repeat=4):
            chance = math.prod(q if c else 1 - q for c, q in zip(coins, p, strict=True))
            reached[next((i for i, c in enumerate(coins) if not c), 4)] += chance
        for s in range(4):
            whole = sum(reached[s + 1 :])
            name = "&".join(stages[: s + 1])
            got = float(out.logits[n, names.index(name)].detach())
            assert sigmoid(got) == pytest.approx(whole, rel=1e-9)
            assert sigmoid(float(out.logits[n, names.index(stages[s])].detach())) == pytest.approx(p[s], rel=1e-9)
            losses[name] += bce(float(depth[n] > s), whole) / 5
    found = model.losses(given, out)
    assert {k: float(v.detach()) for k, v in found.items()} == pytest.approx(losses, rel=1e-9)


# ------------------------------------------------------------------------------------------------ nothing shared


def test_separate_networks_have_no_parameter_in_common() -> None:
    model = named("esmm_ns").train()
    tables = model.embeddings()
    assert len(tables) == 2
    losses = model.losses(batch(), model(batch()))
    model.zero_grad()
    losses["click"].backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if ".of.1." in name:
            assert parameter.grad is None or not parameter.grad.any(), name
    found = [t.take_gradient() for t in tables.values()]
    assert [g is not None and bool(g[1].any()) for g in found] == [True, False]
    shared = named("esmm")
    assert len(shared.embeddings()) == 1


@pytest.mark.parametrize("representation", ["pooled", "target_interest", "interest_evolution"])
def test_separate_networks_are_two_models_of_one_task(representation: str) -> None:
    """Their logits are those of two models, each with one task alone; losses and attention go by their output's name."""
    parts = {"representation": SMALL | {"kind": representation}, "interactions": [tower("relu"), "fm"]}
    both = model_of(parts | {"heads": "tasks", "separate": True}, fitted(TASKS)).train()
    past = batch_of(labels=LABELS, weights=WEIGHTS, negatives=[[(3, 3, 3)] * 3, [], [(4, 4, 4)] * 2])
    out = both(past)
    for k, task in enumerate(TASKS):
        one = model_of(parts | {"heads": "tasks"}, fitted((task,))).train()
        state = {}
        for name in one.state_dict():
            first, _, rest = name.partition(".")
            own = f"representation.of.{k}.{rest}" if first == "representation" else name
            if first == "interactions":
                i, _, rest = rest.partition(".")
                own = f"interactions.{i}.of.{k}.{rest}"
            state[name] = both.state_dict()[own]
        state["head.bias"] = both.state_dict()["head.bias"][k : k + 1]
        one.load_state_dict(state)
        alone = one(replace(past, labels=past.labels[:, k : k + 1], weights=past.weights[:, k : k + 1]))
        assert torch.allclose(out.logits[:, k], alone.logits[:, 0], rtol=1e-12)
        for key, term in alone.losses.items():
            assert torch.allclose(out.losses[f"{task}.{key}"], term)
        for key, weights in alone.attention.items():
            assert torch.allclose(out.attention[f"{key}.{task}"], weights)
            assert both.attends[f"{key}.{task}"] == key
    assert both.needs == one.needs


def test_separate_is_a_line_of_a_recipe() -> None:
    parsed = registry.parse({"name": "din", "separate": True})
    assert parsed.separate
    written = to_toml({"model": registry.parse({"name": "esmm_ns", "without": ["age"]}).table()})
    assert registry.parse(tomllib.loads(written)["model"]).separate
    assert "separate" not in registry.parse({"name": "din"}).table()
    assert refused({"name": "din", "separate": 1}) == "model.separate: got 1 (integer); accepted: true or false"


# ------------------------------------------------------------------------------------------------ competitors


def test_base_is_the_loss_of_clicked_rows() -> None:
    model = named("cvr_base")
    out = model(batch())
    p = torch.sigmoid(out.logits[:, 1]).tolist()
    clicked = [bce(z, q) for (y, z), q in zip(LABELS, p, strict=True) if y]
    assert len(clicked) == 3
    assert float(model.losses(batch(), out)["conversion"].detach()) == pytest.approx(sum(clicked) / 5, rel=1e-9)


def test_aman_takes_a_part_of_the_unclicked_as_negatives_and_none_is_base() -> None:
    aman, base = named("aman"), named("cvr_base")
    base.load_state_dict(aman.state_dict())
    out = aman(batch())
    names = [h.name for h in aman.heads]
    assert names == ["click", "conversion", "click&conversion"]
    assert torch.equal(out.logits[:, 1], out.logits[:, 2])  # what is said of a conversion is what was learnt
    p = torch.sigmoid(out.logits[:, 2]).tolist()
    every = [bce(y * z, q) for (y, z), q in zip(LABELS, p, strict=True)]
    assert float(aman.losses(batch(), out)["click&conversion"].detach()) == pytest.approx(sum(every) / 5, rel=1e-9)
    # the rows that are left when no un-clicked one is kept: BASE
    kept = torch.tensor([y for y, _ in LABELS], dtype=torch.float64)[:, None]
    only = replace(batch(), weights=batch().weights * kept)
    left = aman.losses(only, out)["click&conversion"]
    assert torch.allclose(left, base.losses(batch(), base(batch()))["conversion"], rtol=1e-12)


def test_the_sampling_of_a_recipe_keeps_the_share_that_aman_asks_for(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", requests=400, tasks=2)
    sampling = Sampling(negatives=0.1, task="click", correction="none")
    options = TrainingOptions(sampling=sampling, keep_memory=False, threads=1)
    trainer = Trainer(registry.composition("aman"), data, options)
    assert trainer.sampled is not None
    training = np.repeat(data.split == 0, np.diff(data.first))
    clicked = data.labels[:, 0] == 1
    assert trainer.sampled.keep[training & clicked].all()
    assert trainer.sampled.keep[training & ~clicked].mean() == pytest.approx(0.1, abs=0.04)
    given = next(trainer.feed.batches(next(trainer.feed.steps(data.requests_of("train"), options.batch, 0)), 0))
    seen, factors = trainer.sampled.seen(given, trainer.model(given))
    assert bool((factors == 1).all())
    assert torch.equal(seen.logits, trainer.model(given).logits)


@pytest.mark.parametrize("clip", [10.0, 1.2])
def test_unbias_weighs_clicked_rows_by_their_rarity(clip: float) -> None:
    model = named("unbias", heads={"clip": clip})
    out = model(batch())
    click, p = torch.sigmoid(out.logits[:, 0]).tolist(), torch.sigmoid(out.logits[:, 1]).tolist()
    weights = [min(0.25 / c, clip) for c in click]
    expected = sum(w * bce(z, q) for w, (y, z), q in zip(weights, LABELS, p, strict=True) if y) / 5
    losses = model.losses(batch(), out)
    assert float(losses["conversion"].detach()) == pytest.approx(expected, rel=1e-9)
    losses["conversion"].backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():  # weights have no gradient
        assert ".of.0." not in name or parameter.grad is None or not parameter.grad.any(), name


def test_unbias_with_a_constant_click_rate_is_base() -> None:
    model, base = named("unbias"), named("cvr_base")
    state = model.state_dict()
    for name, value in state.items():
        if ".of.0." in name:
            value.zero_()
    state["head.bias"][0] = math.log(0.25 / 0.75)
    model.load_state_dict(state)
    base.load_state_dict(state)
    ours, theirs = (m.losses(batch(), m(batch())) for m in (model, base))
    assert float(ours["conversion"].detach()) == pytest.approx(float(theirs["conversion"].detach()), rel=1e-12)


def test_the_click_network_of_unbias_is_trained_first_and_alone(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", tasks=2)
    options = TrainingOptions(epochs=2, tables=Adam(lr=0.05), keep_memory=False, threads=1)
    small = {"representation": SMALL, "interactions": [tower("relu")]}
    trainer = after_stages(registry.parse({"name": "unbias"} | small), data, options, tmp_path / "run")
    kept = Checkpoints(tmp_path / "run/stages/propensities/best").load()
    assert kept is not None
    torch.manual_seed(options.seed)
    fresh = registry.build(registry.parse({"name": "unbias"} | small), data.fitted).state_dict()
    moved = 0
    for name, mine in trainer.model.state_dict().items():
        learnt = kept.tensors[f"model.{name}"]
        if ".of.1." in name:  # of conversions: neither trained nor handed over
            assert torch.equal(learnt, fresh[name]), name
            assert torch.equal(mine, fresh[name]), name
        elif ".of.0." in name:
            assert torch.equal(mine, learnt), name
            moved += not torch.equal(mine, fresh[name])
    assert moved > 4
    bias = trainer.model.head.bias.tolist()  # type: ignore[union-attr, operator]
    assert bias == [float(kept.tensors["model.head.bias"][0]), float(fresh["head.bias"][1])]
    trainer.fit()
    assert not torch.equal(trainer.model.state_dict()["head.bias"], torch.tensor(bias))


def test_unbias_without_networks_of_its_own_has_no_first_stage(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", tasks=2)
    shared = {"name": "unbias", "separate": False}
    with pytest.raises(UserError, match=r"'propensities' trains networks of their own .* separate = false; drop it"):
        after_stages(registry.parse(shared), data)
    assert after_stages(registry.parse(shared | {"stages": []}), data).stages == {}


def test_unbias_of_a_third_step_weighs_by_the_product_of_the_steps_before() -> None:
    model = named("unbias", ("click", "cart", "buy"), heads={"clip": 1e9})
    labels, weights = [[1.0, 1.0, 0.0]] * 5, [[1.0, 1.0, 1.0]] * 5
    out = model(batch(labels, weights))
    p = torch.sigmoid(out.logits).tolist()
    expected = sum(0.25**2 / (r[0] * r[1]) * bce(0.0, r[2]) for r in p) / 5
    found = model.losses(batch(labels, weights), out)["buy"]
    assert float(found.detach()) == pytest.approx(expected, rel=1e-8)


def test_division_divides_clips_and_counts() -> None:
    model = named("division")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("rest.1.layers.2.weight"):
                parameter /= 20
        logits = model(batch()).logits
        model.head.bias[1] += (logits[:, 0] - logits[:, 2]).median()
    out = model(batch())
    assert [h.name for h in model.heads] == ["click", "conversion", "click&conversion"]
    assert [h.trained for h in model.heads] == [True, False, True]
    over = 0
    for click, ratio, whole in out.logits.tolist():
        quotient = sigmoid(whole) / sigmoid(click)
        over += quotient > 1
        assert sigmoid(ratio) == pytest.approx(min(quotient, 1 - 1e-6), rel=1e-9)
    assert 0 < over < 5
    assert float(model.head.monitor(out.logits)["overflow.conversion"].sum()) == over


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratio_logit_is_exact_where_probabilities_are_not(dtype: torch.dtype) -> None:
    values = [-60.0, -15.0, -2.0, -1e-3, 0.0, 0.5, 3.0, 20.0, 60.0]
    with localcontext() as context:
        context.prec = 60
        for a, b in itertools.product(values, values):
            got = float(ratio_logit(torch.tensor(b, dtype=dtype), torch.tensor(a, dtype=dtype)))
            if b >= a:
                assert got == pytest.approx(HIGHEST)
                continue
            p, q = (
                1 / (1 + Decimal(-x).exp())
                for x in (Decimal(float(torch.tensor(a, dtype=dtype))), Decimal(float(torch.tensor(b, dtype=dtype))))
            )
            exact = float((q / p).ln() - (1 - q / p).ln())
            assert got == pytest.approx(min(exact, HIGHEST), rel=2e-5 if dtype == torch.float32 else 1e-10, abs=2e-5)


def test_heads_of_chains_refuse_what_has_no_probability() -> None:
    schema = fitted(("click", "watch"))
    tasks = (Task(name="click"), Task(name="watch", kind="regression", within="click"))
    schema = replace(schema, schema=replace(schema.schema, tasks=tasks))
    for heads, what in (
        ("whole_chain", "are probabilities of chains"),
        ("inverse_propensity", "weigh by probabilities"),
    ):
        assert refused({"name": "base", "heads": heads}, schema) == (
            f"heads '{heads}' {what}, and task 'watch' is a regression; accepted: binary tasks, or heads = \"tasks\""
        )
    assert refused({"name": "unbias", "heads": {"clip": 0.0}}) == (
        "model.heads: clip = 0.0; accepted: a weight above 0, usually 5 to 20"
    )


def test_an_exported_ratio_says_what_the_model_says(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", tasks=2)
    torch.manual_seed(0)
    model = registry.build(registry.composition("division"), data.fitted).eval()
    given = BatchBuilder(data, model.needs).batch(data.requests_of("test"))
    ratio, whole, click = (model(given).logits[:, i] for i in (1, 2, 0))
    assert same(ratio.double(), ratio_logit(whole, click).double().detach().numpy())


# ------------------------------------------------------------------------------------------------ known truth


@pytest.mark.slow
def test_esmm_knows_conversions_where_nobody_clicked_and_base_does_not(tmp_path: Path) -> None:
    """Clicked rows convert at about .6, the others at .32; both models know users and items alone."""
    world = conversions(
        ConversionOptions(
            rows=100_000,
            users=1_000,
            items=1_000,
            click_bias=-3.5,
            conversion_bias=-1.0,
            relation=0.9,
            user_relation=0.9,
        )
    )
    recipe = Recipe.parse({**world.recipe, "data": {**world.recipe["data"], "samples": "in memory"}})
    data = prepare(tmp_path, recipe.schema, world.samples.lazy(), None, recipe.data.keys, recipe.data.split)
    options = TrainingOptions(
        epochs=20, patience=3, monitor="logloss", tables=Adam(lr=0.005), dense=Adam(lr=0.002), threads=1
    )
    off: dict[str, tuple[float, float, float]] = {}
    for name in ("esmm", "cvr_base"):
        given = {
            "name": name,
            "representation": {"kind": "plain", "embedding": {"width": 8}},
            "interactions": [{"kind": "tower", "hidden": [32], "activation": "relu"}],
        }
        trainer = Trainer(registry.parse(given), data, options)
        trainer.fit()
        found = predict(trainer.model, trainer.builder, data.requests_of("test"))
        at = [h.name for h in found.heads].index("conversion")
        rows = world.samples[-len(found.rows) :]  # in order of time, as the split is
        assert np.array_equal(rows["click"].to_numpy(), found.labels[:, 0])
        there = rows["click"].to_numpy() == 0
        p, true = 1 / (1 + np.exp(-found.logits[there, at].astype(float))), rows["true_conversion"].to_numpy()[there]
        off[name] = float(np.abs(p - true).mean()), float(p.mean()), float(true.mean())
    (esmm, mean, true_mean), (base, base_mean, _) = off["esmm"], off["cvr_base"]
    assert esmm < 0.14 < 0.17 < base
    assert abs(mean - true_mean) < 0.06 < 0.08 < base_mean - true_mean
