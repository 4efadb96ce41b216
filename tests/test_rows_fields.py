"""Models of single rows, whole, from the raw rows to the logit (`by_rows`): what each paper's equation says, in loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from by_rows import (
    CANDIDATES,
    REQUESTS,
    SMALL,
    TOWER,
    TRAINING,
    D,
    Pencil,
    Vector,
    batch_of,
    close,
    dataset,
    lively,
    relu,
    schema,
    softmax,
)

from finerank.schema import FIRST, OOV, Cross, Hashed, Schema

PAIRS = list(itertools.combinations(range(8), 2))
"""Of user, age, whether it is missing | item, category, tags, price, whether it is missing."""


def split(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """In the order in which weights of pairs lie: those within the request, those across, those within the candidate."""
    return sorted(pairs, key=lambda pair: sum(f > 2 for f in pair))


SPLIT = split(PAIRS)

Pass = Callable[[Pencil, int], float]
MODELS: dict[str, tuple[dict[str, Any], Pass]] = {}
"""By name: a small table of the model, and its logit of a row without the global bias."""


def by_hand(name: str, *interactions: Any, representation: dict[str, Any] | None = SMALL) -> Callable[[Pass], Pass]:
    def keep(loop: Pass) -> Pass:
        table = {"name": name.split()[0]} | ({"interactions": list(interactions)} if interactions else {})
        MODELS[name] = (table | ({} if representation is None else {"representation": representation}), loop)
        return loop

    return keep


def first(at: str = "interactions.1") -> str:
    return f"{at}.towers.0"


# ------------------------------------------------------------------------------------------------ pairs of fields


@by_hand("fm")
def fm(p: Pencil, n: int) -> float:
    e = p.vectors(n, "interactions.1")
    return p.linear(n) + sum(float(e[i] @ e[j]) for i, j in PAIRS)


@by_hand("deepfm", "linear", "fm", TOWER)
def deepfm(p: Pencil, n: int) -> float:
    return fm(p, n) + p.logit(first("interactions.2"), p.row(n))


@by_hand("ffm", "linear", {"kind": "ffm", "dim": 2}, representation=None)
def ffm(p: Pencil, n: int) -> float:
    """A vector for each other field, its own left out; the instance is brought to length 1 (ids have x = 1)."""
    at = "interactions.1.vectors"
    whole = p.vectors(n, at, f"{at}.embedding.tables.14.weight")

    def v(i: int, j: int) -> Vector:
        slot = [f for f in range(8) if f != i].index(j)
        return whole[i][2 * slot : 2 * slot + 2]

    length2 = 4 + sum(x * x for x in p.age(n) + p.price(n))
    return p.linear(n) + sum(float(v(i, j) @ v(j, i)) for i, j in PAIRS) / length2


@by_hand("fwfm", {"kind": "fwfm"})
def fwfm(p: Pencil, n: int) -> float:
    e = p.vectors(n, "interactions.0.vectors")
    linear = sum(float(p.p["interactions.0.linear.weight"][0][2 * i : 2 * i + 2] @ e[i]) for i in range(8))
    return linear + sum(
        r * float(e[i] @ e[j]) for r, (i, j) in zip(p.p["interactions.0.weights"][0], PAIRS, strict=True)
    )


@by_hand("nfm", "linear", {"kind": "bi_interaction", "hidden": [3]})
def nfm(p: Pencil, n: int) -> float:
    at, e = "interactions.1", p.vectors(n, "interactions.1.vectors")
    pooled = p.norm(f"{at}.norm", sum((e[i] * e[j] for i, j in PAIRS), np.zeros(D)))
    return p.linear(n) + p.logit(f"{at}.network", pooled)


@by_hand("afm", "linear", {"kind": "attentional_pairs", "factor": 3})
def afm(p: Pencil, n: int) -> float:
    at, e = "interactions.1", p.vectors(n, "interactions.1.vectors")
    products = [e[i] * e[j] for i, j in PAIRS]
    h = p.p[f"{at}.score.weight"][0]
    a = softmax([float(h @ relu(p.dense(f"{at}.attention", x))) for x in products])
    return p.linear(n) + float(p.p[f"{at}.last.weight"][0] @ sum(w * x for w, x in zip(a, products, strict=True)))


@by_hand("autofis_fm")
def autofis_fm(p: Pencil, n: int) -> float:
    at = "interactions.1.products"
    e = p.vectors(n, f"{at}.vectors")
    return p.linear(n) + sum(
        a * float(e[i] @ e[j]) for a, (i, j) in zip(p.p[f"{at}.gates.weight"][0], SPLIT, strict=True)
    )


@by_hand("autofis_deepfm", "linear", "autofis", TOWER)
def autofis_deepfm(p: Pencil, n: int) -> float:
    return autofis_fm(p, n) + p.logit(first("interactions.2"), p.row(n))


@by_hand("autofis_ipnn", {"kind": "autofis_inner", "tower": TOWER})
def autofis_ipnn(p: Pencil, n: int) -> float:
    at = "interactions.0.products"
    e = p.vectors(n, f"{at}.vectors")
    products = [a * float(e[i] @ e[j]) for a, (i, j) in zip(p.p[f"{at}.gates.weight"][0], SPLIT, strict=True)]
    return p.logit("interactions.0.tower.towers.0", np.concatenate([p.row(n), products]))


# ------------------------------------------------------------------------------------------------ products before a network


@by_hand("ipnn", {"kind": "pnn", "product": "inner", "hidden": [3, 2]})
def ipnn(p: Pencil, n: int) -> float:
    e = p.vectors(n, "interactions.0.vectors")
    products = [float(e[i] @ e[j]) for i, j in SPLIT]
    return p.logit("interactions.0.network", p.row(n, R=products[:3], N=products[3:]))


def factorised(p: Pencil, n: int) -> float:
    """l1 = relu(l_z + l_p + b): inner products by rank one, ‖Σ θ_i e_i‖²; outer ones of the sum, (Σ e)(Σ e)ᵀ."""
    at, e = "interactions.0.network", p.vectors(n, "interactions.0.vectors")
    l1 = p.dense(f"{at}.first", p.row(n))
    if f"{at}.theta_R" in p.p:
        for k, theta in enumerate(np.concatenate([p.p[f"{at}.theta_R"], p.p[f"{at}.theta_N"]], axis=1)):
            length = sum((t * x for t, x in zip(theta, e, strict=True)), np.zeros(D))
            l1[k] += float(length @ length)
    if f"{at}.superposed.weight" in p.p:
        s = sum(e, np.zeros(D))
        l1 += p.dense(f"{at}.superposed", np.array([s[a] * s[b] for a in range(D) for b in range(a, D)]))
    return p.logit(f"{at}.rest", relu(l1))


OUTER = {"kind": "pnn", "product": "outer", "form": "factorised", "hidden": [3, 2]}
by_hand("opnn", OUTER)(factorised)
by_hand("pnn", OUTER | {"product": "both"})(factorised)
by_hand("ipnn factorised", OUTER | {"product": "inner"})(factorised)


@by_hand("fnn", {"kind": "fnn", "hidden": [3, 2]})
def fnn(p: Pencil, n: int) -> float:
    """z = [w0, (w, v) of every field], two layers of tanh."""
    at = "interactions.0"
    table = f"{at}.weights.tables.1.weight"
    w_R = [*p.of_request(n, table), *(x * w for x, w in zip(p.age(n), p.p[f"{at}.numbers_R"], strict=True))]
    w_N = [*p.of_candidate(n, table), *(x * w for x, w in zip(p.price(n), p.p[f"{at}.numbers_N"], strict=True))]
    v = p.vectors(n, f"{at}.vectors")
    z = np.concatenate([p.p[f"{at}.bias"], *w_R, *v[:3], *w_N, *v[3:]])
    return float(p.tower(f"{at}.towers.0", z, np.tanh)[0])


@by_hand("fgcnn", {"kind": "fgcnn", "maps": [2, 3], "new": [1, 2], "height": 3, "classifier": {"hidden": [3, 2]}})
def fgcnn(p: Pencil, n: int) -> float:
    """Convolutions up and down the fields of vectors of their own, the greater of each two places, recombined to new fields;
    then a product network over all fields."""
    at = "interactions.0.generate"
    maps = np.array(p.vectors(n, f"{at}.vectors", f"{at}.vectors.embedding.tables.2.weight"))[None]  # [maps, fields, D]
    new: list[Vector] = []
    for k, count in enumerate((1, 2)):
        kernel, bias = p.p[f"{at}.convolutions.{k}.weight"], p.p[f"{at}.convolutions.{k}.bias"]
        fields = maps.shape[1]
        out = np.zeros((len(kernel), fields, D))
        for m, f, d in itertools.product(range(len(kernel)), range(fields), range(D)):
            places = [(c, h) for c in range(len(maps)) for h in range(3) if 0 <= f + h - 1 < fields]
            out[m, f, d] = bias[m] + sum(kernel[m, c, h, 0] * maps[c, f + h - 1, d] for c, h in places)
        out = np.tanh(p.norm(f"{at}.norms.{k}", out))
        maps = np.array([[np.max(one[f : f + 2], axis=0) for f in range(0, fields, 2)] for one in out])
        made = np.tanh(p.dense(f"{at}.recombine.{k}", maps.flatten()))
        new += list(made.reshape(count * maps.shape[1], D))
    e = [*p.vectors(n, "interactions.0.vectors"), *new]
    products = [float(e[i] @ e[j]) for i, j in split(list(itertools.combinations(range(len(e)), 2)))]
    return p.logit("interactions.0.classify", p.row(n, R=products[:3], N=[*np.concatenate(new), *products[3:]]))


@by_hand("fibinet", "linear", {"kind": "fibinet", "hidden": [3, 2]})
def fibinet(p: Pencil, n: int) -> float:
    """A matrix for every pair, once over the vectors and once over those that squeeze and excitation weigh."""
    at, e = "interactions.1", p.vectors(n, "interactions.1.vectors")
    z = np.array([float(np.mean(x)) for x in e])
    a = relu(p.dense(f"{at}.weighting.excite", relu(p.dense(f"{at}.weighting.squeeze", z))))
    weighed = [w * x for w, x in zip(a, e, strict=True)]
    of_fields = [(e[i] @ p.p[f"{at}.of_fields.weight"][k]) * e[j] for k, (i, j) in enumerate(SPLIT)]
    of_weighed = [(weighed[i] @ p.p[f"{at}.of_weighted.weight"][k]) * weighed[j] for k, (i, j) in enumerate(PAIRS)]
    return p.linear(n) + p.logit(f"{at}.network", np.concatenate([*of_fields, *of_weighed]))


# ------------------------------------------------------------------------------------------------ beside a network


@by_hand("xdeepfm", "linear", {"kind": "cin", "maps": [3, 2]}, TOWER)
def xdeepfm(p: Pencil, n: int) -> float:
    e = p.vectors(n, "interactions.1.vectors")
    maps, pooled = e, []
    for k in range(2):
        maps = [
            sum((w[i, j] * maps[i] * e[j] for i, j in itertools.product(range(len(maps)), range(8))), np.zeros(D))
            for w in p.p[f"interactions.1.weights.{k}"]
        ]
        pooled += [float(np.sum(x)) for x in maps]
    cin = float(p.p["interactions.1.last"][0] @ pooled)
    return p.linear(n) + cin + p.logit(first("interactions.2"), p.row(n))


AUTOINT = {"kind": "autoint", "layers": 2, "width": 3}


@by_hand("autoint", AUTOINT)
def autoint(p: Pencil, n: int) -> float:
    """Two heads of width 3, unscaled, each field attending to all and itself; ReLU behind the residual."""
    e = p.vectors(n, "interactions.0.vectors")
    for k in range(2):
        at = f"interactions.0.layers.{k}"
        q, key, v, res = ([p.dense(f"{at}.{what}", x) for x in e] for what in ("query", "key", "value", "residual"))
        out = []
        for m in range(8):
            heads = []
            for h in (slice(0, 3), slice(3, 6)):
                a = softmax([float(q[m][h] @ key[j][h]) for j in range(8)])
                heads.append(sum((a[j] * v[j][h] for j in range(8)), np.zeros(3)))
            out.append(relu(np.concatenate(heads) + res[m]))
        e = out
    return float(p.dense("interactions.0.last", np.concatenate(e))[0])


@by_hand("autoint_plus", AUTOINT, TOWER)
def autoint_plus(p: Pencil, n: int) -> float:
    return autoint(p, n) + p.logit(first(), p.row(n))


@by_hand("dcn", {"kind": "cross", "layers": 2}, TOWER)
def dcn(p: Pencil, n: int) -> float:
    x0 = x = p.row(n)
    for w, b in zip(p.p["interactions.0.weights"], p.p["interactions.0.biases"], strict=True):
        x = x0 * float(x @ w) + b + x
    return float(p.dense("interactions.0.last", x)[0]) + p.logit(first(), x0)


@by_hand("dcn_v2", {"kind": "cross_v2", "layers": 2, "hidden": [3, 2]})
def dcn_v2(p: Pencil, n: int) -> float:
    x0 = x = p.row(n)
    for k in range(2):
        x = x0 * p.dense(f"interactions.0.layers.{k}", x) + x
    return p.logit("interactions.0.network", x)


@by_hand("dcn_mix", {"kind": "cross_v2", "layers": 2, "rank": 2, "experts": 3, "hidden": [3, 2]})
def dcn_mix(p: Pencil, n: int) -> float:
    """x' = Σ_i G_i(x) x0 ∘ (U_i tanh(C_i tanh(V_iᵀ x)) + b) + x."""
    x0 = x = p.row(n)
    for k in range(2):
        at = f"interactions.0.layers.{k}"
        gate = softmax(p.dense(f"{at}.gate", x))  # type: ignore[arg-type]
        new = x
        for i in range(3):
            of = slice(2 * i, 2 * i + 2)
            low = np.tanh(p.p[f"{at}.down.weight"][of] @ x)
            low = np.tanh(p.p[f"{at}.core"][i] @ low)
            new = new + gate[i] * x0 * (p.p[f"{at}.up.weight"][:, of] @ low + p.p[f"{at}.bias"])
        x = new
    return p.logit("interactions.0.network", x)


@by_hand("deep_crossing", {"kind": "residual_units", "hidden": [3, 4]})
def deep_crossing(p: Pencil, n: int) -> float:
    at = "interactions.0"
    fields_R = [relu(e + b) for e, b in zip(p.of_request(n), p.p[f"{at}.bias_R"], strict=True)]
    fields_N = [relu(e + b) for e, b in zip(p.of_candidate(n), p.p[f"{at}.bias_N"], strict=True)]
    x = np.concatenate([*fields_R, p.age(n), *fields_N, p.price(n)])
    for k in range(2):
        x = x + p.dense(f"{at}.units.{k}.second", relu(p.dense(f"{at}.units.{k}.first", x)))
    return float(p.dense(f"{at}.last", x)[0])


@by_hand("fpenn", "linear", {"kind": "fpenn", "width": 2, "tower": TOWER}, representation=None)
def fpenn(p: Pencil, n: int) -> float:
    """At the mean: a field-aware machine and a network over the same vectors."""
    at, table = "interactions.1", "interactions.1.embedding.tables.28.weight"
    ages = [x * v for x, v in zip(p.age(n), p.p[f"{at}.numbers.request"], strict=True)]
    prices = [x * v for x, v in zip(p.price(n), p.p[f"{at}.numbers.candidate"], strict=True)]
    user, *fields = [e[:14] for e in (*p.of_request(n, table), *p.of_candidate(n, table))]
    whole = [user, *ages, *fields, *prices]

    def v(i: int, j: int) -> Vector:
        slot = [f for f in range(8) if f != i].index(j)
        return whole[i][2 * slot : 2 * slot + 2]

    quadratic = sum(float(v(i, j) @ v(j, i)) for i, j in PAIRS)
    return p.linear(n) + quadratic + p.logit(f"{at}.tower.towers.0", np.concatenate(whole))


@by_hand("lr", representation=None)
def lr(p: Pencil, n: int) -> float:
    return p.linear(n)


def crossed() -> Schema:
    """With the AND of two ids, hashed."""
    cross = Cross(name="user_category", level="candidate", of=("user", "category"), encoding=Hashed(buckets=20))
    whole = schema()
    return replace(whole, features=(*whole.features, cross))


@by_hand("wide_deep", {"kind": "linear", "numbers": False}, TOWER, representation={"crosses": False} | SMALL)
def wide_deep(p: Pencil, n: int) -> float:
    """The wide part reads ids and crosses of them, the network what is no cross."""
    request, _, category, *_ = CANDIDATES[n]
    both = f"{REQUESTS[request][1]}\x02{category}"
    wide = float(p.value("interactions.0.weights.tables.1.weight", "user_category", both)[0])
    return p.linear(n, numbers=False) + wide + p.logit(first(), p.row(n))


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", MODELS)
def test_whole_model_from_the_raw_rows(name: str) -> None:
    table, loop = MODELS[name]
    data, _ = dataset(crossed if name == "wide_deep" else schema)
    model = lively(table, data)
    pencil = Pencil(model, data)
    bias = float(pencil.p["head.bias"][0])
    close(model(batch_of(data, model)).logits[:, 0], [loop(pencil, n) + bias for n in range(len(CANDIDATES))])


def test_what_only_later_rows_hold_is_out_of_vocabulary() -> None:
    """What the passes above rest on: a row of its own for every value of the training rows and of the pasts they know."""
    data, _ = dataset(schema)
    symbol = {name: table.symbol for name, table in data.fitted.tables.items()}
    seen = [c for c in CANDIDATES if c[0] in TRAINING]
    for table, values in (
        ("user", {REQUESTS[c[0]][1] for c in seen}),
        ("item", {c[1] for c in seen}),
        ("category", {c[2] for c in seen}),
        ("tags", {tag for c in seen for tag in c[3]}),
    ):
        rows = [symbol[table](value) for value in values]
        assert sorted(rows) == list(range(FIRST, FIRST + len(values)))
    assert [symbol[table](value) for table, value in (("item", "kite"), ("category", "sky"), ("tags", "new"))] == [
        OOV
    ] * 3
