"""The canonical texts and the hashes, against a written table and fixed known answers: they may never change."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pytest
import xxhash

from finerank.errors import UserError
from finerank.runtime.hashing import hash64, hash_integers, hash_texts, mix, mix_array, seed_of, splitmix64, uniform
from finerank.runtime.values import canonical, cross_text, list_weights, number, split_rank

# ------------------------------------------------------------------------------------------------ canonical

CANONICAL = [
    (None, None), (math.nan, None), ("", None), (np.float32("nan"), None),
    (True, "true"), (False, "false"), (np.True_, "true"),
    (0, "0"), (7, "7"), (-3, "-3"), (2**63 - 1, "9223372036854775807"), (-(2**63), "-9223372036854775808"),
    (2**64, "18446744073709551616"), (np.int8(-5), "-5"), (np.uint64(2**64 - 1), "18446744073709551615"),
    (1.0, "1"), (-0.0, "0"), (-2.0, "-2"), (np.float64(3.0), "3"), (2.0**53 - 1, "9007199254740991"),
    (2.0**53, "9007199254740992.0"), (-(2.0**53), "-9007199254740992.0"), (1e300, "1e+300"),
    (0.5, "0.5"), (0.1, "0.1"), (np.float32(0.1), "0.10000000149011612"), (5e-324, "5e-324"),
    (math.inf, "inf"), (-math.inf, "-inf"),
    ("1", "1"), ("01", "01"), ("1.0", "1.0"), ("-0", "-0"), (" ", " "), ("true", "true"), ("NaN", "NaN"),
    ("手机", "手机"), ("e\u0301", "e\u0301"), ("\u00e9", "\u00e9"), ("👩‍👩‍👧", "👩‍👩‍👧"), ("שלום", "שלום"), (np.str_("x"), "x"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), CANONICAL)
def test_canonical_text_is_as_written_down(value: object, text: str | None) -> None:
    got = canonical(value)
    assert got == text
    assert got is None or type(got) is str


HUGE = pytest.param(10**5000, id="huge")
TIMES = [datetime.datetime(2020, 1, 1), np.datetime64("2020-01-01")]


@pytest.mark.parametrize("value", [{}, [1], b"x", *TIMES, 1j, "\ud800", "a\udfffb", HUGE])
def test_values_without_a_text_are_refused_by_type(value: object) -> None:
    with pytest.raises(UserError, match=r"got .*(accepted|decode)"):
        canonical(value)


def test_number_takes_numbers_and_plain_text() -> None:
    assert [number(v) for v in (3, True, np.float32(0.5), "1.5e3", " -2 ", "1", -0.0)] == [3, 1, 0.5, 1500, -2, 1, 0]
    assert [number(v) for v in (None, "", math.nan, "nan")] == [None] * 4
    for bad in ("abc", "1_000", "١", "inf", "1e999", math.inf, 10**400, [1], " ", "0x10"):
        with pytest.raises(UserError, match="accepted"):
            number(bad)


def test_rank_is_split_at_the_last_mark() -> None:
    cases = {
        "military#1": ("military", 1), "c#d#12": ("c#d", 12), "军事#3": ("军事", 3), "plain": ("plain", 0), "a#": ("a", 0),
        "a#21": ("a", 0), "a#20": ("a", 20), "a#0": ("a", 0), "a#-1": ("a", 0), "a#02": ("a", 2), "a#1.0": ("a", 0),
        "#4": (None, 4), "a#٣": ("a", 0), "a#" + "9" * 5000: ("a", 0),
    }  # fmt: skip
    assert {text: split_rank(text, 20) for text in cases} == cases


def test_cross_is_missing_when_a_part_is() -> None:
    assert cross_text((1.0, "b", True)) == "1\x02b\x02true"
    assert cross_text((1, None)) is None
    assert cross_text(("", "x")) is None


def test_list_weights_must_be_numbers_of_float32() -> None:
    assert list_weights(np.array([0.5, -1.0])).dtype == np.float32
    for bad in (math.nan, 1e39):
        with pytest.raises(UserError, match="weight"):
            list_weights(np.array([1.0, bad]))


# ------------------------------------------------------------------------------------------------ hashes


def test_splitmix64_gives_the_published_numbers() -> None:
    # the test vectors that go with the reference code: the first outputs from the seeds 1234567 and 0
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * golden) % 2**64 for i in range(5)], dtype=np.uint64)
    assert splitmix64(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]  # fmt: skip
    zero = np.array([0, golden, 2 * golden % 2**64], dtype=np.uint64)
    assert splitmix64(zero).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_hash64_known_answers() -> None:
    # literals: encoded data and models in the field depend on them
    assert hash64("item", "手机") == xxhash.xxh3_64_intdigest("item\x01手机".encode()) == HASHES["手机"]
    assert hash64("item", "42") == int(splitmix64(np.array([42 ^ seed_of("item")], dtype=np.uint64))[0]) == HASHES["42"]
    assert {text: hash64("item", text) for text in HASHES} == HASHES
    assert seed_of("item") == xxhash.xxh3_64_intdigest(b"item\x01") == SEED


def test_only_canonical_int64_texts_hash_as_integers() -> None:
    for text in ("01", "+1", "-0", "1.0", " 1", "1\n", "", "-", "9223372036854775808", "-9223372036854775809", "١"):
        assert hash64("t", text) == xxhash.xxh3_64_intdigest(f"t\x01{text}".encode()), text
    for value in (0, 1, -1, 2**63 - 1, -(2**63)):
        assert hash64("t", str(value)) == int(hash_integers("t", np.array([value]))[0])


def test_vectorised_twins_equal_the_single_hash() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.integers(-(2**63), 2**63 - 1, 500), np.arange(-50, 50)])
    texts = [str(v) for v in values.tolist()]
    assert hash_integers("t", values).tolist() == hash_texts("t", texts).tolist() == [hash64("t", t) for t in texts]
    mixed = ["a", "7", "", "07", "-3", "9223372036854775808", "0", "é"]
    assert hash_texts("t", mixed).tolist() == [hash64("t", t) for t in mixed]
    assert hash_texts("t", []).tolist() == []
    small = np.array([[1, -2], [3, 4]], dtype=np.int32)
    assert hash_integers("t", small).tolist() == hash_integers("t", small.astype(np.int64)).tolist()
    assert (
        len({hash64(table, text) for table in ("a", "b", "ab") for text in ("1", "x", "bx")}) == 9
    )  # apart in each table


def test_collisions_of_hashed_buckets_are_what_chance_gives() -> None:
    # MODELS.md 2.43: an id shares its bucket with probability 1 - (1 - 1/M)^(n - 1)
    n, buckets = 20_000, 50_000
    for hashes in (hash_integers("t", np.arange(n)), hash_texts("t", [f"id-{i}" for i in range(n)])):
        counts = np.bincount((hashes % np.uint64(buckets)).astype(np.int64), minlength=buckets)
        shared = counts[counts > 1].sum() / n
        assert shared == pytest.approx(1 - (1 - 1 / buckets) ** (n - 1), abs=0.01)


# ------------------------------------------------------------------------------------------------ randomness


def test_mix_known_answers_and_order() -> None:
    assert {args: mix(*args) for args in MIXES} == MIXES
    assert mix(1, 2) != mix(2, 1)
    assert mix(-1) == mix(2**64 - 1)
    assert len({mix(a, b) for a in range(30) for b in range(30)}) == 900


def test_mix_array_is_mix_of_each_value() -> None:
    values = np.array([0, 1, -1, 2**40, -(2**63)])
    assert mix_array(9, values).tolist() == [mix(9, v) for v in values.tolist()]
    assert mix_array(9, values.astype(np.uint64)).tolist() == mix_array(9, values).tolist()
    assert mix_array(9, np.array([-1, 5], dtype=np.int16)).tolist() == [mix(9, -1), mix(9, 5)]
    with pytest.raises(TypeError):
        mix_array(9, np.array([1.0]))


def test_uniform_is_uniform_and_keys_are_independent() -> None:
    n = 200_000
    u = uniform(mix(3, 1), np.arange(n))
    assert u.min() >= 0
    assert u.max() < 1
    assert uniform(7, np.arange(3)).tolist() == UNIFORMS
    # chi-square on 100 cells: 99 degrees of freedom, 1 in 10,000 above 161 (and as many below 53)
    for sample in (
        u,
        uniform(0, np.arange(n)),
        uniform(1, np.arange(n) * 2**20),
        (u + uniform(mix(3, 2), np.arange(n))) % 1,
    ):
        chi2 = ((np.bincount((sample * 100).astype(int), minlength=100) - n / 100) ** 2).sum() / (n / 100)
        assert 53 < chi2 < 161
    pairs = np.bincount((u[:-1] * 10).astype(int) * 10 + (u[1:] * 10).astype(int), minlength=100)  # neighbours
    assert 53 < ((pairs - n / 100) ** 2).sum() / (n / 100) < 161
    # keys and counters that differ in the same bit must not give the same numbers in another order
    assert not set(uniform(0, np.arange(1000)).tolist()) & set(uniform(1, np.arange(1000)).tolist())


SEED = 12708375777058653613
HASHES = {
    "42": 10919666690559710258,
    "0": 8227204232888381739,
    "-1": 6954061651657183267,
    "9223372036854775807": 73780282398540955,
    "01": 5273711274489331851,
    "1.0": 339148097391066914,
    "": 12708375777058653613,
    "true": 16967532918178463858,
    "手机": 909153484998901779,
    "a\x02b": 5335290094709535188,
}
MIXES: dict[tuple[int, ...], int] = {
    (): 11400714819323198485,
    (0,): 7960286522194355700,
    (1,): 16834447057089888969,
    (0, 0): 5095610196844313600,
    (1, 2): 9550467469912592448,
    (2, 1): 3379748236207159976,
    (42, 7, 9223372036854775808): 9940507563881075225,
}
UNIFORMS = [0.5940964974252599, 0.8962506218100144, 0.3292336845598751]
