"""Who looks at whom: the grammar of `pairs`, tables that meet on their own, and one sentence for every mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_din import fitted

from finerank.errors import UserError
from finerank.models import registry
from finerank.models.pairs import Paired, arranged, histories_of, pair_up, parsed, weight_names
from finerank.models.plain import EmbeddingOptions, FieldEmbedding
from finerank.runtime.inputs import history_of
from finerank.schema import Categorical, Columns, FittedSchema, MultiValued

# ------------------------------------------------------------------------------------------------ the grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a#b|c#d", [(("a",), "b"), (("c",), "d")]),
        ("  a # b|c\t#d ", [(("a",), "b"), (("c",), "d")]),
        ("a + b#h | c#h.f", [(("a", "b"), "h"), (("c",), "h.f")]),
        ("n_news_tags_top3#n_user_tags_20", [(("n_news_tags_top3",), "n_user_tags_20")]),
        ("商品#点击", [(("商品",), "点击")]),
    ],
)
def test_what_the_grammar_reads(text: str, expected: Any) -> None:
    assert parsed(text) == expected


NAME = (
    st.text(st.characters(exclude_characters="|#+", exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
)
ITEM = st.tuples(st.lists(NAME, min_size=1, max_size=3).map(tuple), NAME)


@given(st.lists(ITEM, min_size=1, max_size=4), st.sampled_from(["", " ", "\t "]))
def test_what_is_written_is_read_back(items: list[tuple[tuple[str, ...], str]], blank: str) -> None:
    text = "|".join(blank + f"{blank}+{blank}".join(query) + f"{blank}#{blank}{past}{blank}" for query, past in items)
    assert parsed(text) == items


ACCEPTED = "accepted: auto, or candidate#history or candidate#history.field, several joined by '|'"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "item 1 is empty"),
        ("a#b|", "item 2 is empty"),
        ("a#b| |c#d", "item 2 is empty"),
        ("a", "item 1, 'a', has 0 signs '#'"),
        ("a#b|c#d#e", "item 2, 'c#d#e', has 2 signs '#'"),
        ("#b", "item 1, '#b', lacks a name"),
        ("a#", "item 1, 'a#', lacks a name"),
        ("a+#b", "item 1, 'a+#b', lacks a name"),
    ],
)
def test_what_the_grammar_refuses(text: str, told: str) -> None:
    """When the recipe is read, with the place in the recipe."""
    with pytest.raises(UserError) as error:
        registry.parse({"name": "din", "representation": {"pairs": text}})
    assert str(error.value) == f"model.representation: pairs = {text!r}: {told}; {ACCEPTED}"


# ------------------------------------------------------------------------------------------------ names


def paired(pairs: str, schema: FittedSchema | None = None, age: bool = True) -> list[Paired]:
    schema = schema or fitted()
    return pair_up(schema, FieldEmbedding(schema, EmbeddingOptions(width=2)), age, pairs)


def test_tables_meet_whatever_the_columns_are_called() -> None:
    assert paired("auto") == [
        Paired("clicks", ("item", "category", "tags"), ("item", "category", "tags"), ("shop", "age")),
        Paired("profile", ("tags",), ("topic",), ()),  # topic reads the table of tags
    ]
    assert histories_of(fitted()) == ("clicks", "profile")


def test_the_field_of_the_same_name_comes_first() -> None:
    """A candidate with a second item (the one it was found by): items of the past meet the item."""
    schema = fitted()
    seed = Categorical(name="seed", level="candidate", table="item")
    columns = replace(schema.candidate, ids=(("seed", "item"), *schema.candidate.ids))
    features = (schema.schema.features[0], seed, *schema.schema.features[1:])
    two = replace(schema, schema=replace(schema.schema, features=features), candidate=columns)
    assert paired("auto", two)[0].query == ("item", "category", "tags")
    past = replace(schema.histories["clicks"], ids=(("item", "item"), ("category", "item")))
    other = replace(two, histories={"clicks": past})
    assert paired("auto", other)[0].query == ("item", "seed", "tags")  # no name fits: the first of that table


def test_what_is_named_is_asked_for_and_the_rest_is_context() -> None:
    assert paired("category+item#clicks") == [
        Paired("clicks", ("category", "item"), ("category", "item"), ("tags", "shop", "age"))
    ]
    assert paired("item#clicks.shop | tags # clicks.tags", age=False) == [
        Paired("clicks", ("item",), ("shop",), ("item", "category")),
        Paired("clicks", ("tags",), ("tags",), ("item", "category")),
    ]
    assert paired("item#profile") == [Paired("profile", ("item",), ("topic",), ())]  # it has no other field
    assert histories_of(fitted(), "item#profile") == ("profile",)


def test_pairs_apart_and_joined() -> None:
    pairs = paired("item+category#clicks")
    apart = arranged(pairs, apart=True, joined=False)
    assert [(p.query, p.names) for p in apart] == [(("item",), ("item",)), (("category",), ("category",))]
    assert {p.context for p in apart} == {("tags", "shop", "age")}
    assert arranged(pairs, apart=True, joined=True) == pairs
    assert weight_names(apart) == ["clicks.item", "clicks.category"]
    assert weight_names(pairs) == ["clicks"]


def test_a_key_tells_its_history() -> None:
    names = ["clicks", "clicks.old", "past"]
    found = [history_of(name, names) for name in ("clicks", "clicks.item", "clicks.old.item", "clicks.old", "clickss")]
    assert found == ["clicks", "clicks", "clicks.old", "clicks.old", None]
    two = [Paired("a", ("x",), ("b",), ()), Paired("a", ("x",), ("c",), ()), Paired("a.b", ("x",), ("d",), ())]
    with pytest.raises(UserError, match=r"'a\.b' would name two weights"):
        weight_names(two)


def refused(schema: FittedSchema | None = None, **representation: Any) -> str:
    with pytest.raises(UserError) as error:
        registry.build(registry.parse({"name": "din", "representation": representation}), schema or fitted())
    return str(error.value)


CANDIDATE = "accepted: category, item, tags"
MISTAKES = [
    ("itm#clicks", f"'itm' is no field of the candidate; did you mean 'item'? {CANDIDATE}"),
    (
        "user#clicks",
        f"'user' is no field of the candidate but a request-level categorical (input); {CANDIDATE}",
    ),
    (
        "dwell#clicks",
        f"'dwell' is a number, which has no vector to attend with (bucketed, it has); {CANDIDATE}",
    ),
    ("item#click", "'click' is no history; did you mean 'clicks'? accepted: clicks, profile"),
    ("tags#tags", "'tags' is no history; declare a [[history]] with lists = {tags = ...}; accepted: clicks, profile"),
    (
        "item#clicks.itm",
        "'itm' is no field of history 'clicks'; did you mean 'item'? accepted: category, item, shop, tags",
    ),
    (
        "item#clicks.user",
        "'user' is no field of history 'clicks' but a request-level categorical (input); "
        "accepted: category, item, shop, tags",
    ),
    (
        "item#clicks.dwell",
        "'dwell' is a number, which has no vector to attend with (bucketed, it has); accepted: category, item, shop, tags",
    ),
    ("item#clicks.age", "'age' is no field of history 'clicks'; accepted: category, item, shop, tags"),
    ("item+tags#clicks.item", "2 features ask and one field answers; give the field one feature"),
]


@pytest.mark.parametrize(("pairs", "told"), MISTAKES, ids=[pairs for pairs, _ in MISTAKES])
def test_a_wrong_name_is_told_with_its_pair(pairs: str, told: str) -> None:
    assert refused(pairs=pairs) == f"pairs: {pairs}: {told}"


@pytest.mark.parametrize(
    ("pairs", "twice"),
    [
        ("item#clicks|item#clicks", "clicks.item"),
        ("item+tags#clicks | tags#clicks.tags", "clicks.tags"),
        ("tags#profile|item#profile.topic", "profile.topic"),
        ("item+item#clicks", "clicks.item"),
    ],
)
def test_nobody_answers_twice(pairs: str, twice: str) -> None:
    assert (
        refused(pairs=pairs) == f"pairs = {pairs!r}: {twice!r} answers twice; name each history, or field of it, once"
    )


def test_a_feature_whose_table_no_field_of_the_past_shares() -> None:
    schema = fitted()
    own = MultiValued(name="words", level="candidate")
    more = replace(
        schema,
        schema=replace(schema.schema, features=(*schema.schema.features, own)),
        candidate=replace(schema.candidate, ids=(*schema.candidate.ids, ("words", "shop.words"))),
        tables=schema.tables | {"shop.words": schema.tables["shop"]},  # type: ignore[operator]
    )
    assert refused(more, pairs="words#clicks") == (
        "pairs: words#clicks: no field of 'clicks' shares the table of 'words'; name the field that answers as "
        "clicks.field; accepted: item, category, tags, shop"
    )


def test_options_that_do_not_go_together() -> None:
    assert refused(share="concat") == (
        "share = 'concat' puts the pairs of each event side by side, and events of ['clicks', 'profile'] do not stand side "
        "by side; accepted: pairs of one history (lists of equal lengths can be its fields), or share = 'loop'"
    )
    assert refused(pairs="item#clicks", entries=3) == (
        "entries = 3, and no list of the candidate attends; set it to 0, or pair a list"
    )
    assert refused(entries=-1) == (
        "model.representation: entries = -1; accepted: 0 (the pooled list asks) or more, usually 3"
    )
    assert refused(decay=-1) == (
        "model.representation: decay = -1.0; accepted: seconds after which an event counts 1/e, or 0 for no decay"
    )
    assert refused(pairs="tags#profile", decay=60) == (
        "decay = 60.0, and no event has a time: list columns do not say when; set it to 0, or give the history an event log"
    )
    assert refused(recency="context", unit={"kind": "dot"}) == (
        "model.representation: recency = 'context' and unit.kind = 'dot'; accepted: 'add', or kind 'mlp'"
    )


def test_two_lists_do_not_ask_entry_by_entry_together() -> None:
    schema = fitted()
    tags = schema.candidate.lists[0]
    both = replace(schema.candidate, lists=(tags, replace(tags, name="more")))
    past = Columns(lists=(tags, replace(tags, name="more")))
    more = MultiValued(name="more", level="candidate", table="tags")
    two = replace(
        schema,
        schema=replace(schema.schema, features=(*schema.schema.features, more)),
        candidate=both,
        histories={"clicks": past},
    )
    assert refused(two, entries=2) == (
        "entries = 2, and ['tags', 'more'] ask together, of which only one list can be taken apart; set mode = 'separate', "
        "or name pairs with one list each"
    )
    registry.build(registry.parse({"name": "din", "representation": {"entries": 2, "mode": "separate"}}), two)
