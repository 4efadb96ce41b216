"""Typed configuration: errors that name the key, and round trips that lose nothing."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank import schema
from finerank.errors import UserError
from finerank.layers.attention import UnitOptions
from finerank.typed import amended, apply_overrides, build, differences, plain, read_toml, to_toml

quick = settings(derandomize=True, max_examples=100, deadline=None)


@dataclass(frozen=True, kw_only=True)
class Adam:
    kind: ClassVar[str] = "adam"
    lr: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Ftrl:
    kind: ClassVar[str] = "ftrl"
    alpha: float
    groups: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise UserError(f"alpha = {self.alpha}; accepted: above 0")


@dataclass(frozen=True, kw_only=True)
class Unit:
    hidden: tuple[int, ...] = (80, 40)
    softmax: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    seed: int
    optimiser: Adam | Ftrl = Adam()
    warm: Adam | None = None
    unit: str | Unit = "auto"
    stages: tuple[Adam | Ftrl, ...] = ()
    named: Mapping[str, Unit | int] = field(default_factory=dict)
    level: Literal["fast", "exact", 3] = "fast"
    note: str | float | int | bool | None = None
    pair: tuple[str, int] | None = None
    grid: tuple[tuple[int, ...], ...] = ()
    axes: tuple[int, ...] | tuple[str, ...] = ()
    free: Any = None
    derived: int = field(init=False, default=7)


# ------------------------------------------------------------------------------------------------ build


def test_another_kind_of_a_union_begins_anew_and_a_field_called_kind_does_not() -> None:
    run = Run(
        name="a", seed=1, optimiser=Adam(lr=2.0), named={"u": Unit(softmax=True), "n": 3}, free={"kind": "x", "k": 1}
    )
    same = build(Run, amended(run, {"optimiser": {"betas": [0.1, 0.2]}, "named": {"u": {"hidden": [3]}, "m": 4}}))
    assert same.optimiser == Adam(lr=2.0, betas=(0.1, 0.2))
    assert same.named == {"u": Unit(hidden=(3,), softmax=True), "n": 3, "m": 4}
    other = build(Run, amended(run, {"optimiser": {"kind": "ftrl", "alpha": 2.0}, "free": {"kind": "y"}}))
    assert other.optimiser == Ftrl(alpha=2.0)  # lr is no key of this one
    assert other.free == {"kind": "y"}
    with pytest.raises(UserError, match=r"optimiser: missing alpha"):
        build(Run, amended(run, {"optimiser": {"kind": "ftrl"}}))
    unit = UnitOptions(kind="mlp", hidden=(3,), softmax=True)
    assert build(UnitOptions, amended(unit, {"kind": "dot"})) == dataclasses.replace(unit, kind="dot")
    assert amended(None, {"a": 1}) == amended(3, {"a": 1}) == {"a": 1}
    assert amended(Adam(), 3) == 3


def test_a_table_without_kind_means_the_kind_of_the_default() -> None:
    assert build(Run, {"name": "a", "seed": 1, "optimiser": {"lr": 2}}).optimiser == Adam(lr=2.0)
    assert build(Run, {"name": "a", "seed": 1, "optimiser": {"kind": "ftrl", "alpha": 2}}).optimiser == Ftrl(alpha=2.0)
    given: dict[str, Any] = {"name": "a", "seed": 1, "optimiser": {"lr": 2}}
    build(Run, given)
    assert given["optimiser"] == {"lr": 2}  # what was given stays as it was


def test_build_by_hand() -> None:
    run = build(
        Run,
        {
            "name": "a",
            "seed": 3,
            "optimiser": {"kind": "ftrl", "alpha": 1, "groups": {"wide": 2}},
            "warm": {"betas": [0, 1]},
            "unit": {"hidden": []},
            "stages": [{"kind": "adam"}, {"kind": "ftrl", "alpha": 0.5}],
            "named": {"x": {"softmax": True}, "y": 2},
            "level": 3,
            "pair": ["a", 1],
            "grid": [[1], [2, 3]],
            "axes": ["row", "column"],
            "free": {"anything": [1, "two"]},
        },
    )
    assert run == Run(
        name="a",
        seed=3,
        optimiser=Ftrl(alpha=1.0, groups={"wide": 2.0}),
        warm=Adam(betas=(0.0, 1.0)),
        unit=Unit(hidden=()),
        stages=(Adam(), Ftrl(alpha=0.5)),
        named={"x": Unit(softmax=True), "y": 2},
        level=3,
        pair=("a", 1),
        grid=((1,), (2, 3)),
        axes=("row", "column"),
        free={"anything": [1, "two"]},
    )
    assert isinstance(run.optimiser, Ftrl)
    assert type(run.optimiser.alpha) is float
    assert type(run.optimiser.groups["wide"]) is float


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", None])
def test_scalars_of_a_union_keep_their_type(value: object) -> None:
    note = build(Run, {"name": "a", "seed": 1, "note": value}).note
    assert note == value
    assert type(note) is type(value)


GOOD = {"name": "a", "seed": 1}
ERRORS = [
    ({"sede": 1}, "recipe.sede: unknown key; did you mean 'seed'? accepted: "),
    ({"a b": 1}, 'recipe."a b": unknown key; accepted: '),
    ({"derived": 1}, "recipe.derived: unknown key; accepted: "),
    ({"seed": 1.0}, "recipe.seed: got 1.0 (float); accepted: an integer"),
    ({"seed": True}, "recipe.seed: got true (boolean); accepted: an integer"),
    ({"seed": "1"}, "recipe.seed: got '1' (string); accepted: an integer"),
    ({"name": 1}, "recipe.name: got 1 (integer); accepted: a string"),
    ({"seed": "z" * 99}, f"recipe.seed: got '{'z' * 56}... (string); accepted: an integer"),
    ({"warm": 1}, "recipe.warm: got 1 (integer); accepted: a table with kind = 'adam' or nothing (leave it out)"),
    ({"warm": {"lr": True}}, "recipe.warm.lr: got true (boolean); accepted: a number"),
    ({"warm": {"lr": 10**400}}, "accepted: a number below 1.8e308"),
    ({"warm": {"kind": "ftrl"}}, "recipe.warm.kind: got 'ftrl' (string); accepted: adam"),
    ({"warm": {"knid": "adam"}}, "recipe.warm.knid: unknown key; did you mean 'kind'? accepted: betas, kind, lr"),
    ({"warm": {"betas": [1]}}, "recipe.warm.betas: got [1] (array) of 1 entries; accepted: an array (a number, a"),
    ({"warm": {"betas": [1, "a"]}}, "recipe.warm.betas[1]: got 'a' (string); accepted: a number"),
    ({"stages": [{"lr": 1}]}, "recipe.stages[0].kind: missing; accepted: adam, ftrl"),
    ({"optimiser": {"alpha": 1}}, "recipe.optimiser.alpha: unknown key; accepted: betas, kind, lr"),
    ({"optimiser": {"kind": 1, "lr": 1}}, "recipe.optimiser.kind: got 1 (integer); accepted: adam, ftrl"),
    ({"optimiser": {"kind": "adma"}}, "recipe.optimiser.kind: got 'adma' (string); did you mean 'adam'? accepted"),
    ({"optimiser": {"kind": 1}}, "recipe.optimiser.kind: got 1 (integer); accepted: adam, ftrl"),
    ({"optimiser": {"kind": "ftrl"}}, "recipe.optimiser: missing alpha; accepted: alpha, groups"),
    ({"optimiser": {"kind": "ftrl", "alpha": 0}}, "recipe.optimiser: alpha = 0.0; accepted: above 0"),
    ({"optimiser": "adam"}, "recipe.optimiser: got 'adam' (string); accepted: a table with kind = 'adam', 'ftrl'"),
    ({"stages": [{"kind": "adam"}, {"kind": "ftrl", "alpha": -1}]}, "recipe.stages[1]: alpha = -1.0"),
    ({"stages": {}}, "recipe.stages: got {} (table); accepted: an array (each a table with kind = 'adam', 'ftrl')"),
    ({"stages": "ab"}, "recipe.stages: got 'ab' (string); accepted: an array"),
    ({"unit": 1}, "recipe.unit: got 1 (integer); accepted: a string or a table of hidden, softmax"),
    ({"unit": {"hidden": [1, 2.5]}}, "recipe.unit.hidden[1]: got 2.5 (float); accepted: an integer"),
    ({"named": {"my unit": {"softmax": 1}}}, 'recipe.named."my unit".softmax: got 1 (integer); accepted: true or false'),
    ({"level": "exakt"}, "recipe.level: got 'exakt' (string); did you mean 'exact'? accepted: 3, exact, fast"),
    ({"level": True}, "recipe.level: got true (boolean); accepted: 'fast', 'exact', 3"),
    ({"grid": [[1], 2]}, "recipe.grid[1]: got 2 (integer); accepted: an array (each an integer)"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors_name_place_value_and_what_is_accepted(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        build(Run, GOOD | data)
    assert message in str(refused.value)


def test_errors_of_the_whole() -> None:
    with pytest.raises(UserError, match=r"^recipe: missing name, seed; accepted: name, seed, optimiser"):
        build(Run, {"level": "fast"})
    with pytest.raises(UserError, match=r"^run: got \[\] \(array\); accepted: a table of name, seed, optimiser"):
        build(Run, [], "run")


def test_errors_of_the_schema_itself_carry_the_path() -> None:
    feature = {"kind": "categorical", "name": "a", "level": "candidate"}
    with pytest.raises(UserError, match=r"^recipe\.data: schema: feature 'a' is declared twice"):
        build(schema.Schema, {"features": [feature, feature]}, "recipe.data")
    deep = {"features": [feature, feature | {"name": "b", "encoding": {"kind": "vocabulary", "min_count": "2"}}]}
    with pytest.raises(UserError, match=r"^recipe\.features\[1\]\.encoding\.min_count: got '2' \(string\)"):
        build(schema.Schema, deep)


def test_programming_errors_are_not_user_errors() -> None:
    @dataclass(frozen=True)
    class Odd:
        x: complex

    with pytest.raises(TypeError, match="no plain form for the annotation"):
        build(Odd, {"x": 1})
    with pytest.raises(TypeError, match="complex has no plain form"):
        plain(Odd(1j))


# ------------------------------------------------------------------------------------------------ plain and back


def test_plain_by_hand() -> None:
    assert plain(Run(name="a", seed=1, stages=(Ftrl(alpha=2.0),), pair=("b", 2))) == {
        "name": "a",
        "seed": 1,
        "optimiser": {"kind": "adam", "lr": 0.001, "betas": [0.9, 0.999]},
        "unit": "auto",
        "stages": [{"kind": "ftrl", "alpha": 2.0, "groups": {}}],
        "named": {},
        "level": "fast",
        "pair": ["b", 2],
        "grid": [],
        "axes": [],
    }


def test_none_that_would_come_back_as_something_else() -> None:
    @dataclass(frozen=True)
    class Wide:
        dim: int | None = 8

    with pytest.raises(UserError, match=r"Wide\.dim: None cannot be written"):
        plain(Wide(None))


numbers = st.floats(allow_nan=False)
names = st.text(max_size=8)


def mapping(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, values, max_size=3)


def tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


adams = st.builds(Adam, lr=numbers, betas=st.tuples(numbers, numbers))
ftrls = st.builds(Ftrl, alpha=st.floats(min_value=1e-300), groups=mapping(numbers))
units = st.builds(Unit, hidden=tuples(st.integers()), softmax=st.booleans())
runs = st.builds(
    Run,
    name=names,
    seed=st.integers(),
    optimiser=adams | ftrls,
    warm=st.none() | adams,
    unit=names | units,
    stages=tuples(adams | ftrls),
    named=mapping(units | st.integers()),
    level=st.sampled_from(["fast", "exact", 3]),
    note=st.none() | names | st.integers() | numbers | st.booleans(),
    pair=st.none() | st.tuples(names, st.integers()),
    grid=tuples(tuples(st.integers())),
    axes=tuples(st.integers()) | tuples(names),
    free=st.none() | names | mapping(st.lists(st.integers(), max_size=2)),
)


def exact(value: Any) -> str:
    """Equality that tells 1 from 1.0 and from True, and 0.0 from -0.0."""
    return repr(value)


@quick
@given(runs)
def test_round_trip_of_runs(run: Run) -> None:
    assert exact(build(Run, plain(run))) == exact(run)
    assert exact(build(Run, tomllib.loads(to_toml(plain(run))))) == exact(run)


def drawn(cls: Any, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Instances of a class with every field drawn from its annotation, except where given."""
    return st.builds(cls, **({f.name: ... for f in dataclasses.fields(cls)} | given))  # type: ignore[arg-type]


counts = st.integers(min_value=1)
encodings = (
    drawn(schema.Vocabulary, min_count=counts, max_size=st.none() | counts)
    | drawn(schema.Hashed, buckets=counts)
    | drawn(schema.Growing, capacity=counts, admit_after=counts)
)
words = st.text(st.characters(exclude_characters="/\\.\0", exclude_categories=("Cs",)), min_size=1, max_size=6).filter(
    lambda word: word not in ("request", "candidate", "age")
)


def rising(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=4, unique=True).map(lambda found: tuple(sorted(found)))


FEATURES = get_args(schema.Feature)


@st.composite
def schemas(draw: st.DrawFn) -> schema.Schema:
    """A valid schema with every kind of feature, histories and tasks; names are any text."""
    word = words
    features = []
    for i, name in enumerate(draw(st.lists(word, min_size=1, max_size=7, unique=True))):
        cls: Any = draw(st.sampled_from(FEATURES))
        given: dict[str, Any] = {"name": st.just(name)}
        fields = {f.name for f in dataclasses.fields(cls)}
        if "encoding" in fields:
            given["encoding"] = encodings
        if "table" in fields:
            given["table"] = st.just(f"table {i}")
        if cls is schema.MultiValued:
            weights = draw(st.sampled_from([None, "in a column", "in the text"]))  # one of the two
            given["weights"] = st.just(f"weights {i}" if weights == "in a column" else None)
            given["weight_separator"] = (
                word.filter(lambda text: "·" not in text) if weights == "in the text" else st.none()
            )
        cuts = rising(st.floats(allow_nan=False, allow_infinity=False))
        law = draw(st.sampled_from(["quantile", "equal_width", "criteo"]))
        valid = {"law": st.just(law), "cuts": cuts if law == "quantile" else st.just(())}
        valid |= {"buckets": st.integers(min_value=2), "max_rank": st.integers(min_value=9)}
        # "·": a mark of weights may not hold the mark between values
        marks = st.none() | word.map(lambda text: f"{text}·")
        valid |= {"segments": st.sampled_from([(1,), (3, 9), (1, 2, 8)]), "separator": marks}
        valid |= {
            "dim": st.none() | counts | st.sampled_from(["log2", "quarter:2.5", "dcn"]),
            "std": st.none() | st.floats(0, 1e9),
            "of": st.lists(word, min_size=2, max_size=3).map(tuple),
        }
        given |= {key: strategy for key, strategy in valid.items() if key in fields}
        features.append(draw(drawn(cls, **given)))
    usable = [f.name for f in features if f.level != "request" and f.use == "input" and not isinstance(f, schema.Cross)]
    weighted = {f.name for f in features if isinstance(f, schema.MultiValued) and f.weights is not None}
    histories = []
    for name in draw(st.lists(word, max_size=2, unique=True)) if usable else []:
        fields_of = draw(st.lists(st.sampled_from(usable), min_size=1, unique=True))
        given = {"name": st.just(name), "fields": st.just(tuple(fields_of))}
        if draw(st.booleans()):  # every event column has its own list
            own = {name: f"column {i}" for i, name in enumerate(fields_of)}
            given |= {"columns": st.just(own), "lists": st.fixed_dictionaries(dict.fromkeys(fields_of, word))}
            given |= {"weights": st.fixed_dictionaries(dict.fromkeys(sorted(weighted & set(fields_of)), word))}
        else:
            columns = st.dictionaries(st.sampled_from(fields_of), word)
            given |= {"columns": columns, "lists": st.just({}), "weights": st.just({}), "padding": st.none()}
        given |= {"where": mapping(names | st.integers() | st.booleans()), "delay": st.floats(0, 1e9)}
        given |= {"separator": st.none() | word, "max_length": counts, "age_cuts": rising(st.integers())}
        histories.append(draw(drawn(schema.History, **given)))
    tasks: list[schema.Task] = []
    for name in draw(st.lists(word, min_size=1, max_size=3, unique=True)):
        within = st.sampled_from([None, *[task.name for task in tasks]])
        label = st.none() | word.map("label {}".format)  # no column of a feature
        tasks.append(draw(drawn(schema.Task, name=st.just(f"task {name}"), within=within, column=label)))
    return schema.Schema(features=tuple(features), histories=tuple(histories), tasks=tuple(tasks))


@quick
@given(schemas())
def test_round_trip_of_every_declaration(declared: schema.Schema) -> None:
    assert exact(build(schema.Schema, plain(declared))) == exact(declared)
    assert exact(build(schema.Schema, tomllib.loads(to_toml(plain(declared))))) == exact(declared)


# ------------------------------------------------------------------------------------------------ TOML

values = st.recursive(
    st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=25,
)
documents = st.dictionaries(st.text(max_size=12) | st.sampled_from(["a", "b-1", "A_"]), values, max_size=5)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(documents)
def test_toml_reads_back_exactly(document: dict[str, Any]) -> None:
    text = to_toml(document)
    assert tomllib.loads(text) == document
    assert json.dumps(tomllib.loads(text), sort_keys=True) == json.dumps(document, sort_keys=True)  # 1 is not 1.0


def test_toml_by_hand() -> None:
    document = {
        "seed": 1,
        "big": 1e16,
        "small": -0.0,
        "edge": [float("inf"), float("-inf")],
        "text": 'a "b" \\ \n\t\x00\x7fé',
        "model": {"name": "din", "unit": {"hidden": [80, 40]}, "empty": {}},
        "feature": [{"name": "a b", "encoding": {"kind": "hashed"}}, {"name": "c", "long": {"values": ["x" * 40] * 3}}],
        "mixed": [1, {"a": 1}],
        "": True,
    }
    assert to_toml(document) == (
        "seed = 1\n"
        "big = 1e+16\n"
        "small = -0.0\n"
        "edge = [inf, -inf]\n"
        'text = "a \\"b\\" \\\\ \\n\\t\\u0000\\u007fé"\n'
        "mixed = [1, {a = 1}]\n"
        '"" = true\n'
        "\n"
        "[model]\n"
        'name = "din"\n'
        "unit = {hidden = [80, 40]}\n"
        "empty = {}\n"
        "\n"
        "[[feature]]\n"
        'name = "a b"\n'
        'encoding = {kind = "hashed"}\n'
        "\n"
        "[[feature]]\n"
        'name = "c"\n'
        "\n"
        "[feature.long]\n"
        f'values = ["{"x" * 40}", "{"x" * 40}", "{"x" * 40}"]\n'
    )
    assert tomllib.loads(to_toml(document)) == document
    nan = tomllib.loads(to_toml({"x": float("nan")}))["x"]
    assert nan != nan
    assert to_toml({}) == ""
    with pytest.raises(TypeError, match="NoneType has no TOML form"):
        to_toml({"x": [None]})


def test_read_toml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with pytest.raises(UserError, match=r"recipe\.toml: no such file; accepted: the path of a TOML file"):
        read_toml(path)
    path.write_text("seed = 1\nname = din\n")
    with pytest.raises(UserError, match=r"recipe\.toml: not valid TOML: Invalid value \(at line 2, column 8\)"):
        read_toml(path)
    path.write_bytes(b'seed = 1\nname = "\xff"')
    with pytest.raises(UserError, match="byte 17 is not UTF-8"):
        read_toml(path)
    path.write_text(f"x = {'[' * 5000}")
    with pytest.raises(UserError, match="nested too deeply"):
        read_toml(path)
    path.write_text(f"x = {'9' * 5000}")
    with pytest.raises(UserError, match="not valid TOML"):
        read_toml(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_toml(tmp_path)
    path.write_text("seed = 1\nname = '商品'\n", encoding="utf-8")
    assert read_toml(path) == {"seed": 1, "name": "商品"}


def test_differences_name_the_keys_as_set_does() -> None:
    one = {
        "a": {"x": 1, "y": 1.0, "z": []},
        "f": [{"name": "id", "dim": 4}, {"name": "a.b"}],
        "s": [{"n": 1}, {"n": 2}],
    }
    other = {"a": {"x": True, "y": 1, "w": {}}, "f": [{"name": "id", "dim": 8}], "s": [{"n": 1}, {"n": "x" * 99}]}
    assert differences(one, one) == []
    assert differences(one, other) == [
        ("a.x", "1", "true"),
        ("a.y", "1.0", "1"),
        ("a.z", "[]", "nothing"),
        ("f.id.dim", "4", "8"),
        ('f."a.b".name', '"a.b"', "nothing"),
        ("s[1].n", "2", '"' + "x" * 56 + "..."),
        ("a.w", "nothing", "{}"),
    ]
    assert apply_overrides({"f": one["f"]}, ["f.id.dim=8", 'f."a.b".dim=1', "f[1].dim=2"])["f"][1]["dim"] == 2


# ------------------------------------------------------------------------------------------------ overrides

BASE: dict[str, Any] = {
    "training": {"lr": 0.1, "hidden": [200, 80]},
    "feature": [{"name": "user_id"}, {"name": "product_id", "dim": 4}, {"name": "a.b"}],
    "empty": [],
}


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("training.lr=0.01", ("training", "lr"), 0.01),
        (" training.lr = 1 ", ("training", "lr"), 1),
        ("training.hidden=[1, 2]", ("training", "hidden"), [1, 2]),
        ("training.hidden.1=40", ("training", "hidden"), [200, 40]),
        ("training.hidden[0]=40", ("training", "hidden"), [40, 80]),
        ("model.name=din", ("model", "name"), "din"),
        ('model.name="1"', ("model", "name"), "1"),
        ("model.name=a=b", ("model", "name"), "a=b"),
        ("model.name=", ("model", "name"), ""),
        ("model.flag=true", ("model", "flag"), True),
        ("model.day=2024-01-02", ("model", "day"), "2024-01-02"),
        ("model.text=1\nlr = 2", ("model", "text"), "1\nlr = 2"),
        ("model.unit.blocks={kind = 'x'}", ("model", "unit", "blocks"), {"kind": "x"}),
        ("feature.product_id.dim=8", ("feature", 1, "dim"), 8),
        ("feature[1].dim=8", ("feature", 1, "dim"), 8),
        ("feature.1.dim=8", ("feature", 1, "dim"), 8),
        ('feature."a.b".dim=8', ("feature", 2, "dim"), 8),
        ("feature.user_id.encoding.kind=hashed", ("feature", 0, "encoding", "kind"), "hashed"),
        ("feature.user_id={name = 'u'}", ("feature", 0), {"name": "u"}),
        ("商品.x=1", ("商品", "x"), 1),
    ],
)
def test_overrides(override: str, path: tuple[Any, ...], expected: object) -> None:
    before = repr(BASE)
    place: Any = apply_overrides(BASE, [override])
    for step in path:
        place = place[step]
    assert place == expected
    assert type(place) is type(expected)
    assert repr(BASE) == before


def test_later_overrides_win_and_the_rest_stays() -> None:
    result = apply_overrides(BASE, ["training.lr=1", "training.lr=2", "feature.user_id.name=u", "feature.u.dim=3"])
    assert result == BASE | {
        "training": {"lr": 2, "hidden": [200, 80]},
        "feature": [{"name": "u", "dim": 3}, *BASE["feature"][1:]],
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "feature.product.dim=8",
            "feature has no entry 'product'; did you mean 'product_id'? accepted: a.b, product_id",
        ),
        ("feature[3].dim=8", "feature has no entry '3'; accepted: a.b, product_id, user_id, or an index below 3"),
        ("training.hidden.x=8", "training.hidden has no entry 'x'; accepted: an index below 2"),
        ("empty.0=8", "empty has no entry '0'; accepted: nothing, for it is empty"),
        ("training.lr.x=8", "training.lr is 0.1 (float); accepted: the key of a table or array"),
        ("training.lr", "accepted: key=value with a dotted key, such as training.epochs=3"),
        ("=1", "accepted: key=value"),
        ("a..b=1", "accepted: key=value"),
        (".a=1", "accepted: key=value"),
        ("a.=1", "accepted: key=value"),
        ('a."b=1', "accepted: key=value"),
    ],
)
def test_overrides_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        apply_overrides(BASE, [override])
    assert str(refused.value).startswith(f"--set {override}: ")
    assert message in str(refused.value)


def test_a_mistyped_override_is_found_by_build() -> None:
    with pytest.raises(UserError, match=r"recipe\.unit\.hiden: unknown key; did you mean 'hidden'\?"):
        build(Run, apply_overrides({"name": "a", "seed": 1}, ["unit.hiden=[1]"]))
