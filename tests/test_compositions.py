"""Any sensible combination of parts is a line in a recipe; any other is one clear sentence."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from by_hand import AGES, ITEMS, OF, PAST, PRICES, SMALL, UNIT, USERS, D, Hand, batch_of, fitted, model_of, same, tower

from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Heads, Interaction, Part, Representation
from finerank.schema import Columns, FittedSchema, Task

# ------------------------------------------------------------------------------------------------ combinations


def cross_by_hand(hand: Hand, x: np.ndarray) -> float:
    x0 = x
    for w, b in zip(hand.p["interactions.0.weights"], hand.p["interactions.0.biases"], strict=True):
        x = x0 * float(x @ w) + b + x
    return float(hand.p["interactions.0.last.weight"][0] @ x)


def test_interests_of_din_into_a_cross_network_is_one_line() -> None:
    model = model_of({"name": "din", "representation": SMALL | {"unit": UNIT}, "interactions": ["cross"]})
    hand, expected = Hand(model), []
    for n in range(5):
        row = hand.row(n, [], [hand.interest(n, hand.scores(n))])
        expected.append(cross_by_hand(hand, row) + hand.p["head.bias"][0])
    out = model(batch_of())
    assert same(out.logits[:, 0], expected)
    assert out.attention["clicks"].shape == (10,)
    assert model.needs.pairs == {"clicks"}


def test_a_composition_without_a_name() -> None:
    """The same parts, given by kind: the same numbers; it is called custom, and owes nothing to any named model."""
    table = {"representation": SMALL | {"unit": UNIT, "kind": "target_interest"}, "interactions": ["cross"]}
    parsed = registry.parse(table)
    assert (parsed.name, parsed.paper, parsed.requires, parsed.exemptions) == ("custom", "", (), {})
    named = model_of({"name": "din", "representation": SMALL | {"unit": UNIT}, "interactions": ["cross"]})
    assert torch.equal(model_of(table)(batch_of()).logits, named(batch_of()).logits)


def test_logits_of_several_interactions_add() -> None:
    table: dict[str, Any] = {
        "name": "base",
        "representation": SMALL,
        "interactions": ["cross", tower(), "fm", "linear"],
    }
    model = model_of(table)
    hand, found = Hand(model), model.representation(batch_of())
    w = hand.rows_of("interactions.3.weights.tables.1.weight")
    v_age, v_price = hand.p["interactions.2.numbers_R"][0], hand.p["interactions.2.numbers_N"][0]
    w_age, w_price = hand.p["interactions.3.numbers_R"][0], hand.p["interactions.3.numbers_N"][0]
    for n, (item, price) in enumerate(zip(ITEMS, PRICES, strict=True)):
        age, row = AGES[OF[n]], hand.row(n, [hand.pooled(n)])
        vectors = [
            hand.user(n),
            *hand.pooled(n).reshape(2, D),
            *hand.candidate(n).reshape(2, D),
            age * v_age,
            price * v_price,
        ]
        fm = sum(float(a @ b) for i, a in enumerate(vectors) for b in vectors[:i])
        category = int(batch_of().candidate.ids[n, 1])
        linear = w["user"][USERS[OF[n]]] + w["item"][item] + w["category"][category] + age * w_age + price * w_price
        expected = (
            cross_by_hand(hand, row) + hand.tower(row, interaction=1) + fm + float(linear[0]) + hand.p["head.bias"][0]
        )
        assert float(model(batch_of()).logits[n, 0].detach()) == pytest.approx(expected, rel=1e-10)
    assert found.fields().shape == (5, 5, D)


def test_amending_options_keeps_the_others_and_another_kind_starts_anew() -> None:
    amended = registry.parse(
        {"name": "dien", "representation": {"auxiliary": 0.5}, "interactions": [{"kind": "tower", "dropout": 0.1}]}
    )
    original = registry.composition("dien")
    assert amended.representation == replace(original.representation, auxiliary=0.5)
    assert amended.interactions == (replace(original.interactions[0], dropout=0.1),)  # Dice stays
    assert amended.heads == original.heads
    nested = registry.parse({"name": "din", "representation": {"unit": {"softmax": True}}})
    unit = registry.composition("din").representation.unit
    assert nested.representation.unit == replace(unit, softmax=True)
    product = registry.parse({"name": "din", "representation": {"unit": {"kind": "dot"}}})  # an option, no other part
    assert product.representation.unit == replace(unit, kind="dot")
    other = registry.parse({"name": "dien", "representation": "pooled"})
    assert other.representation == registry.part_class(Representation, other.representation).Options()


@pytest.mark.parametrize("tasks", [("click",), ("click", "conversion"), ("click", "cart", "buy")])
@pytest.mark.parametrize("heads", ["tasks", "entire_space"])
@pytest.mark.parametrize("interactions", [["tower"], ["cross"], ["cross", "tower", "linear"]])
@pytest.mark.parametrize("representation", ["plain", "pooled", "target_interest", "interest_evolution"])
def test_every_combination_of_parts_trains(
    representation: str, interactions: list[str], heads: str, tasks: tuple[str, ...]
) -> None:
    table = {"representation": SMALL | {"kind": representation}, "interactions": interactions, "heads": heads}
    model = model_of(table, fitted(tasks)).train()
    batch = batch_of(labels=[[float(n % 2)] * len(tasks) for n in range(5)], negatives=PAST)
    out = model(batch)
    count = len(tasks) if heads == "tasks" else 2 * len(tasks) - 1
    assert out.logits.shape == (5, count)
    loss = sum(model.losses(batch, out).values(), torch.zeros(()))
    loss.backward()
    for name, parameter in model.named_parameters():
        if name not in model.embeddings() and parameter.numel():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name


# ------------------------------------------------------------------------------------------------ widths

DIMS = {"user": 3, "item": 4, "category": 4}  # item and category lie in one weight, category first


@pytest.mark.parametrize("kind", ["plain", "pooled", "target_interest", "interest_evolution"])
def test_tables_of_other_widths_are_projected_each_by_its_own_matrix(kind: str) -> None:
    """Every field has D numbers; an item of the past goes through the matrix of the item; equal widths need none."""
    schema = fitted(dims=DIMS)
    table = SMALL | {"kind": kind} | ({"age": False} if kind == "target_interest" else {})
    model = model_of({"representation": table, "interactions": ["cross"]}, schema)
    p = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    at = "representation.embed"
    assert sorted(name for name in p if name.startswith(f"{at}.project")) == [
        f"{at}.project.of {t}.weight" for t in ("category", "item", "user")
    ]
    four = p[f"{at}.embedding.tables.4.weight"]
    v = {"user": p[f"{at}.embedding.tables.3.weight"], "category": four[:6], "item": four[6:]}
    found = model.representation(batch_of())

    def field(table: str, raw: np.ndarray) -> np.ndarray:
        return np.asarray(p[f"{at}.project.of {table}.weight"] @ raw)

    assert same(found.fields_R[:, 0], [field("user", v["user"][u]) for u in USERS])
    assert same(found.fields_N[:, 0], [field("item", v["item"][i]) for i in ITEMS])
    if kind == "pooled":
        sums = [
            (sum((v["item"][e[0]] for e in past), np.zeros(4)), sum((v["category"][e[1]] for e in past), np.zeros(4)))
            for past in PAST
        ]
        assert same(found.fields_R[:, 1], [field("item", s[0]) for s in sums])
        assert same(found.fields_R[:, 2], [field("category", s[1]) for s in sums])
    if kind == "target_interest":  # the unit sees item and category as they are, 4 + 4 wide
        weights = iter(found.attention["clicks"].tolist())
        expected = [sum((next(weights) * v["item"][e[0]] for e in PAST[r]), np.zeros(4)) for r in OF]
        assert same(found.fields_N[:, 2], [field("item", raw) for raw in expected])
        assert model.representation.units[0].first.weight.shape[1] == 4 * 8  # type: ignore[union-attr,index]
    assert torch.isfinite(model(batch_of()).logits).all()
    assert not any("project" in name for name in model_of({"name": "dcn"}).state_dict())


# ------------------------------------------------------------------------------------------------ errors


def refused(table: Mapping[str, Any], schema: FittedSchema | None = None) -> str:
    with pytest.raises(UserError) as error:
        registry.build(registry.parse(table), schema or fitted())
    return str(error.value)


def kinds(base: type[Part]) -> str:
    return ", ".join(sorted(options.kind for options in registry.options_of(base).__args__))


NAMES = ", ".join(registry.names())
# what a [model] table says (one line here: `;` ends a line of TOML), and what is answered
SENTENCES = [
    ('name = "dinn"', f"model.name = 'dinn' is not known; did you mean 'din'? accepted: {NAMES}"),
    ("name = 3", f"model.name: got 3; accepted: a text, one of {NAMES}"),
    ('heads = "tasks"', f"model: give a name ({NAMES}), or a representation and interactions"),
    (
        'name = "din"; intractions = []',
        "model.intractions: unknown key; did you mean 'interactions'? "
        "accepted: heads, interactions, name, representation, separate, stages, without",
    ),
    (
        'name = "din"; interactions = ["crss"]',
        f"model.interactions[0].kind: got 'crss' (string); did you mean 'cross'? accepted: {kinds(Interaction)}",
    ),
    ('name = "din"; interactions = [{layers = 2}]', "model.interactions[0].kind: missing; accepted: ..."),
    ('representation.age = true; interactions = ["cross"]', "model.representation.kind: missing; accepted: ..."),
    (
        'name = "din"; heads = "task"',
        f"model.heads.kind: got 'task' (string); did you mean 'tasks'? accepted: {kinds(Heads)}",
    ),
    (
        'name = "din"; interactions = []',
        "model.interactions: got []; accepted: a list of at least one interaction",
    ),
    (
        'name = "din"; interactions = "cross"',
        "model.interactions: got 'cross'; accepted: a list of at least one interaction",
    ),
    (
        'name = "din"; representation = 3',
        "model.representation: got 3; accepted: the kind of a part as a text, or a table of its options",
    ),
    (
        'name = "din"; representation.unit.hiden = [3]',
        "model.representation.unit.hiden: unknown key; did you mean 'hidden'? "
        "accepted: activation, hidden, inputs, kind, scale, softmax, start",
    ),
    (
        'name = "din"; representation.age = 1',
        "model.representation.age: got 1 (integer); accepted: true or false",
    ),
    (
        'name = "dien"; representation.cell = "augrr"',
        "model.representation.cell: got 'augrr' (string); did you mean 'augru'? "
        "accepted: agru, aigru, augru, augru_official, gru",
    ),
    (
        'name = "din"; representation.unit.hidden = []',
        "model.representation.unit: hidden = []; accepted: at least one layer, each of at least 1 neuron",
    ),
    (
        'name = "din"; representation.unit.inputs = ["key", "key"]',
        "model.representation.unit: inputs = ['key', 'key']; accepted: one block or more, each once",
    ),
    (
        'name = "base"; interactions = [{kind = "tower", hidden = [8, 0]}]',
        "model.interactions[0]: hidden = [8, 0]; accepted: layers, or none, each of at least 1 neuron",
    ),
    (
        'name = "base"; interactions = [{kind = "tower", dropout = 1.0}]',
        "model.interactions[0]: dropout = 1.0; accepted: from 0 (none) to below 1",
    ),
    (
        'name = "dcn"; interactions = [{kind = "cross", layers = -1}]',
        "model.interactions[0]: layers = -1; accepted: 0 (a linear layer alone) or more, usually 2 to 4",
    ),
    (
        'name = "fm"; representation.embedding.width = 0',
        "model.representation.embedding: width = 0; accepted: at least 1, usually 8 to 64",
    ),
    (
        'name = "fm"; representation.embedding.std = -1',
        "model.representation.embedding: std = -1.0; accepted: at least 0, usually 0.01",
    ),
    (
        'name = "fm"; interactions = [{kind = "fm", std = -1}]',
        "model.interactions[0]: std = -1.0; accepted: at least 0, usually 0.01",
    ),
    (
        'name = "dien"; representation.auxiliary = -1',
        "model.representation: auxiliary = -1.0; accepted: 0 (off) or more, 1 in the paper's code",
    ),
]


@pytest.mark.parametrize(("written", "sentence"), SENTENCES, ids=[written for written, _ in SENTENCES])
def test_what_cannot_be_read_is_told_in_one_sentence(written: str, sentence: str) -> None:
    told = refused(tomllib.loads(written.replace("; ", "\n")))
    assert told.startswith(sentence.removesuffix("...")) if sentence.endswith("...") else told == sentence


def test_fm_gives_one_output_only() -> None:
    assert refused({"name": "fm"}, fitted(("click", "conversion"))) == (
        "interaction 'fm' gives one output and the heads need 2; use a tower for several tasks, or separate = true in "
        "[model]: a network for each"
    )
    registry.build(registry.parse({"name": "fm", "separate": True}), fitted(("click", "conversion")))


@pytest.mark.parametrize("name", ["base", "din", "dien"])
def test_a_model_of_the_past_needs_a_history(name: str) -> None:
    assert refused({"name": name}, fitted(history=False)) == (
        f"model '{name}' needs history in the schema, and this schema has none; declare a [[history]] of the user's past events"
    )


@pytest.mark.parametrize("kind", ["target_interest", "interest_evolution"])
def test_a_part_that_attends_needs_a_history_too(kind: str) -> None:
    assert refused({"representation": kind, "interactions": ["tower"]}, fitted(history=False)) == (
        "the schema has no history, so there is nothing to attend to; declare a [[history]]"
    )


def test_esmm_needs_a_task_within_another() -> None:
    assert refused({"name": "esmm"}) == (
        "model 'esmm' needs two tasks in the schema, and this schema has none; "
        "declare a [[task]] that lives within another (within = its name)"
    )
    schema = fitted(("click", "watch"))
    tasks = (Task(name="click"), Task(name="watch", kind="regression", within="click"))
    assert refused({"name": "esmm"}, replace(schema, schema=replace(schema.schema, tasks=tasks))) == (
        "heads 'entire_space' multiply probabilities, and task 'watch' is a regression; "
        'accepted: binary tasks, or heads = "tasks"'
    )


def test_what_only_a_replaced_part_needed_is_needed_no_more() -> None:
    registry.build(registry.parse({"name": "esmm", "representation": "plain"}), fitted(("click", "buy"), history=False))
    registry.build(registry.parse({"name": "esmm", "heads": "tasks"}), fitted())
    assert "needs history" in refused(
        {"name": "esmm", "representation": {"pooling": "mean"}}, fitted(("click", "buy"), history=False)
    )


@pytest.mark.parametrize("kind", ["target_interest", "interest_evolution"])
def test_a_history_that_shares_no_table_with_the_candidate(kind: str) -> None:
    schema = replace(fitted(), histories={"clicks": Columns(ids=(("shop", "user"), ("age", "clicks.age")))})
    assert refused({"representation": kind, "interactions": ["tower"]}, schema) == (
        "history 'clicks' shares no table with the candidate, so nothing can attend to it; "
        "its fields: ['shop'], the candidate's: ['item', 'category']"
    )


def option_tables() -> Iterator[tuple[type[Part], str, tuple[str, ...], str]]:
    """(base, kind of the part, path of tables, key) of every option of every registered part."""

    def keys(options: type[Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
        hints = get_type_hints(options)
        for field in dataclasses.fields(options):
            yield path, field.name
            if dataclasses.is_dataclass(hints[field.name]):
                yield from keys(hints[field.name], (*path, field.name))

    for base in (Representation, Interaction, Heads):
        for options in registry.options_of(base).__args__:
            for path, key in keys(options, ()):
                yield base, options.kind, path, key


OPTIONS = list(option_tables())


def test_there_are_options_to_test() -> None:
    assert {kind for _, kind, _, _ in OPTIONS} >= {
        "pooled",
        "target_interest",
        "interest_evolution",
        "tower",
        "cross",
        "fm",
    }
    assert len(OPTIONS) > 25


@pytest.mark.parametrize(("base", "kind", "path", "key"), OPTIONS, ids=[".".join((k, *p, o)) for _, k, p, o in OPTIONS])
def test_every_option_is_found_when_misspelt(base: type[Part], kind: str, path: tuple[str, ...], key: str) -> None:
    wrong = f"{key}x"
    table: dict[str, Any] = {wrong: 1}
    for step in reversed(path):
        table = {step: table}
    table["kind"] = kind
    place = {Representation: "representation", Interaction: "interactions", Heads: "heads"}[base]
    with pytest.raises(UserError) as error:
        registry.parse({"name": "lr", place: [table] if base is Interaction else table})
    where = ".".join((f"model.{place}" + "[0]" * (base is Interaction), *path))
    assert str(error.value).startswith(f"{where}.{wrong}: unknown key; did you mean '{key}'? accepted: ")


def test_every_option_is_told_of_in_its_docstring_or_by_its_class() -> None:
    """Names in the docstring of the options or, for the options of a whole family, in the family's."""
    for base, kind, path, key in OPTIONS:
        options = next(o for o in registry.options_of(base).__args__ if o.kind == kind)
        for step in path:
            options = get_type_hints(options)[step]
        text = (inspect.getdoc(options) or "") + (
            inspect.getdoc(registry.part_class(base, options)) or "" if not path else ""
        )
        assert key in text, f"{kind}: {'.'.join((*path, key))} is in no docstring"
