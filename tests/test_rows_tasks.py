"""Models of several tasks, whole, from the raw rows to the logits of every head (`by_rows`): click, conversion of a click."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from by_rows import (
    CANDIDATES,
    KINDS,
    SMALL,
    TOWER,
    D,
    Pencil,
    Vector,
    batch_of,
    close,
    dataset,
    lively,
    past,
    relu,
    schema,
    sigmoid,
    softmax,
)

from finerank.schema import MISSING, Schema

AT = "interactions.0"
Pass = Callable[[Pencil, int], Sequence[float]]
MODELS: dict[str, tuple[dict[str, Any], Pass]] = {}
"""By name: a small table of the model, and its logits of a row."""


def by_hand(name: str, interaction: dict[str, Any], **representation: Any) -> Callable[[Pass], Pass]:
    def keep(loop: Pass) -> Pass:
        table = {"name": name.split()[0], "representation": SMALL | representation, "interactions": [interaction]}
        MODELS[name] = table, loop
        return loop

    return keep


def towers(p: Pencil, inputs: Sequence[Vector]) -> list[float]:
    """Each task's tower over its own input, and its bias."""
    return [float(p.tower(f"{AT}.towers", x, which=k)[0] + p.p["head.bias"][k]) for k, x in enumerate(inputs)]


def several(p: Pencil, at: str, x: Vector, count: int) -> list[Vector]:
    """Networks of one hidden layer over the same input, which lie behind each other."""
    return list(relu(p.dense(at, x)).reshape(count, -1))


def mixed(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    return sum((w * v for w, v in zip(weights, vectors, strict=True)), np.zeros(len(vectors[0])))


def gates(p: Pencil, at: str, x: Vector, count: int) -> list[list[float]]:
    """`count` softmaxes of linear gates over the same input."""
    return [softmax(logits) for logits in p.dense(at, x).reshape(count, -1)]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ experts


@by_hand("shared_bottom", {"kind": "shared_bottom", "bottom": [3], "tower": [2]})
def shared_bottom(p: Pencil, n: int) -> Sequence[float]:
    return towers(p, [relu(p.dense(f"{AT}.bottom.first", p.row(n)))] * 2)


def mixtures(p: Pencil, n: int, own_gates: bool) -> Sequence[float]:
    x = p.row(n)
    experts = several(p, f"{AT}.experts.first", x, 2)
    found = gates(p, f"{AT}.gates.linear", x, 2 if own_gates else 1)
    return towers(p, [mixed(found[k if own_gates else 0], experts) for k in range(2)])


EXPERTS = {"kind": "mmoe", "experts": 2, "expert": [3], "tower": [2]}
by_hand("mmoe", EXPERTS)(partial(mixtures, own_gates=True))
by_hand("omoe", EXPERTS | {"gates": "one"})(partial(mixtures, own_gates=False))
by_hand("moe", EXPERTS | {"gates": "one", "tower": []})(partial(mixtures, own_gates=False))


@by_hand("ml_mmoe", {"kind": "ml_mmoe", "experts": 2, "expert": [3], "tower": [2]})
def ml_mmoe(p: Pencil, n: int) -> Sequence[float]:
    """Experts over mixtures of experts; the gates of both layers read the row."""
    x = p.row(n)
    lower = several(p, f"{AT}.experts.first", x, 2)
    into = [mixed(w, lower) for w in gates(p, f"{AT}.gates.0.linear", x, 2)]
    upper = [relu(p.dense(f"{AT}.above.0.layers.0", v, which=j)) for j, v in enumerate(into)]
    return towers(p, [mixed(w, upper) for w in gates(p, f"{AT}.gates.1.linear", x, 2)])


@by_hand("cgc", {"kind": "ple", "levels": 1, "own": 2, "shared": 2, "expert": [3], "tower": [2]})
def cgc(p: Pencil, n: int) -> Sequence[float]:
    """Two experts of each task's own and two shared ones."""
    x = p.row(n)
    *own, s, t = several(p, f"{AT}.experts.first", x, 6)
    found = gates(p, f"{AT}.gates", x, 2)
    return towers(p, [mixed(found[k], [*own[2 * k : 2 * k + 2], s, t]) for k in range(2)])


@by_hand("ple", {"kind": "ple", "levels": 2, "own": 2, "shared": 1, "expert": [3], "tower": [2]})
def ple(p: Pencil, n: int) -> Sequence[float]:
    """Of two levels; the shared experts of the second read what a gate over all experts of the first gives."""
    x = p.row(n)
    *own, s = several(p, f"{AT}.experts.first", x, 5)
    found = gates(p, f"{AT}.gates", x, 2)
    of_task = [mixed(found[k], [*own[2 * k : 2 * k + 2], s]) for k in range(2)]
    (over_all,) = gates(p, f"{AT}.shared_gate", x, 1)
    shared = mixed(over_all, [*own, s])
    reads = [of_task[0]] * 2 + [of_task[1]] * 2 + [shared]
    *own, s = (relu(p.dense(f"{AT}.above.0.experts.layers.0", v, which=j)) for j, v in enumerate(reads))
    out = []
    for k in range(2):
        w = softmax(p.dense(f"{AT}.above.0.gates", of_task[k], which=k))  # type: ignore[arg-type]
        out.append(mixed(w, [*own[2 * k : 2 * k + 2], s]))
    return towers(p, out)


# ------------------------------------------------------------------------------------------------ routes, stitches, ties


def routed(p: Pencil, at: str, u: list[Vector]) -> list[Vector]:
    """v_i = Σ_j z_ij W_ij u_j, or Σ_j z_ij u_j without matrices; z as served: no noise, from -0.1 to 1.1, cut at 0 and 1."""
    z = [[min(1.0, max(0.0, sigmoid(a) * 1.2 - 0.1)) for a in row] for row in p.p[f"{at}.gates.log_alpha"]]
    W = p.p.get(f"{at}.weight")
    return [mixed(z[i], [v if W is None else W[i, j] @ v for j, v in enumerate(u)]) for i in range(2)]


@by_hand("snr_trans", {"kind": "snr", "route": "trans", "networks": 2, "width": 3, "tower": [2]})
@by_hand("snr_aver", {"kind": "snr", "route": "aver", "networks": 2, "width": 3, "tower": [2]})
def snr(p: Pencil, n: int) -> Sequence[float]:
    u = several(p, f"{AT}.first.first", p.row(n), 2)
    u = [relu(p.dense(f"{AT}.above.0.layers.0", v, which=i)) for i, v in enumerate(routed(p, f"{AT}.routes.0", u))]
    return towers(p, routed(p, f"{AT}.routes.1", u))


@by_hand("cross_stitch", {"kind": "cross_stitch", "hidden": [3, 2]})
def cross_stitch(p: Pencil, n: int) -> Sequence[float]:
    u = several(p, f"{AT}.first", p.row(n), 2)
    u = [mixed(a, u) for a in p.p[f"{AT}.stitches.0"]]
    u = [relu(p.dense(f"{AT}.layers.0", v, which=k)) for k, v in enumerate(u)]
    u = [mixed(a, u) for a in p.p[f"{AT}.stitches.1"]]
    return [float(p.dense(f"{AT}.layers.1", v, which=k)[0] + p.p["head.bias"][k]) for k, v in enumerate(u)]


@by_hand("l2_constrained", {"kind": "l2_constrained", "hidden": [3, 2]})
def l2_constrained(p: Pencil, n: int) -> Sequence[float]:
    """Two networks; only the loss ties them."""
    u = several(p, f"{AT}.nets.first", p.row(n), 2)
    u = [relu(p.dense(f"{AT}.nets.rest.layers.0", v, which=k)) for k, v in enumerate(u)]
    return [float(p.dense(f"{AT}.last.layers.0", v, which=k)[0] + p.p["head.bias"][k]) for k, v in enumerate(u)]


@by_hand("tensor_factorization", {"kind": "tucker", "hidden": [3, 2], "ranks": [2, 2, 2]})
def tensor_factorization(p: Pencil, n: int) -> Sequence[float]:
    """W_k = S x1 U1 x2 U2 x3 U3, multiplied out for each task and hidden layer."""
    x, out = p.row(n), []
    for k in range(2):
        v = x
        for layer, into in enumerate((f"{AT}.first.weight", f"{AT}.into.0.weight")):
            at = f"{AT}.cores.{layer}"
            parts = (p.p[f"{at}.core"], p.p[into], p.p[f"{at}.outputs"], p.p[f"{at}.tasks"][k])
            W = np.einsum("abc,ai,bo,c->oi", *parts)
            v = relu(W @ v + p.p[f"{at}.bias"][k])
        out.append(float(p.dense(f"{AT}.last", v, which=k)[0] + p.p["head.bias"][k]))
    return out


# ------------------------------------------------------------------------------------------------ chains of probabilities


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def chain(a: float, b: float) -> list[float]:
    """Click; conversion of a click; both, a product."""
    return [a, b, logit(sigmoid(a) * sigmoid(b))]


def ratio(a: float, both: float) -> list[float]:
    """Click; what divides both by it, below 1; both."""
    return [a, logit(min(sigmoid(both) / sigmoid(a), 1 - 1e-6)), both]


@by_hand("aitm", {"kind": "aitm", "hidden": [3, 2]})
def aitm(p: Pencil, n: int) -> Sequence[float]:
    """The second task weighs what the first hands over against its own."""
    u = several(p, f"{AT}.nets.first", p.row(n), 2)
    first, second = (relu(p.dense(f"{AT}.nets.rest.layers.0", v, which=k)) for k, v in enumerate(u))
    told = relu(p.dense(f"{AT}.transfers.0.info.layers.0", first))
    parts = [p.dense(f"{AT}.transfers.0.h", v).reshape(3, -1) for v in (told, second)]
    w = softmax([float(query @ key) / math.sqrt(2) for query, key, _ in parts])
    a, both = towers(p, [first, mixed(w, [value for _, _, value in parts])])
    return ratio(a, both)


@by_hand("esmm", TOWER)
def esmm(p: Pencil, n: int) -> Sequence[float]:
    """Two towers over one embedding, histories summed."""
    a, b = (p.logit(f"{AT}.towers.{k}", p.row(n, p.pooled(n))) + float(p.p["head.bias"][k]) for k in range(2))
    return chain(a, b)


@by_hand("esmm_din", TOWER, unit={"hidden": [3, 2]})
def esmm_din(p: Pencil, n: int) -> Sequence[float]:
    q, interests = p.candidate(n), []
    for h, (name, kind) in enumerate(KINDS.items()):
        total = np.zeros(3 * D)
        for e in past(n, kind):
            k = p.event(e)
            x = np.concatenate([q, k, q - k, q * k, p.time_between(n, e, name)])
            total = total + p.logit(f"representation.units.{h}", x) * k
        interests.append(total)
    x = p.row(n, fields_N=interests)
    a, b = (p.logit(f"{AT}.towers.{k}", x) + float(p.p["head.bias"][k]) for k in range(2))
    return chain(a, b)


def apart(p: Pencil, n: int, heads: Callable[[float, float], Sequence[float]]) -> Sequence[float]:
    """Two networks that share nothing, tables included."""
    found = []
    for k in range(2):
        own = p.of(k)
        found.append(own.logit(f"{AT}.towers.0", own.row(n, own.pooled(n))) + float(p.p["head.bias"][k]))
    return heads(*found)


APART: dict[str, Callable[[float, float], Sequence[float]]] = {
    "cvr_base": lambda a, b: [a, b],
    "unbias": lambda a, b: [a, b],
    "esmm_ns": chain,
    "aman": lambda a, b: [a, b, b],
    "division": ratio,
}
for name, heads in APART.items():
    by_hand(name, TOWER)(partial(apart, heads=heads))


@pytest.mark.parametrize("name", MODELS)
def test_whole_model_from_the_raw_rows(name: str) -> None:
    table, loop = MODELS[name]
    data, _ = dataset(two_tasks)
    model = lively(table, data)
    pencil = Pencil(model, data)
    close(model(batch_of(data, model)).logits, [loop(pencil, n) for n in range(len(CANDIDATES))])


def two_tasks() -> Schema:
    return schema(tasks=2)


# ------------------------------------------------------------------------------------------------ positions


def positioned() -> Schema:
    return schema(train_only=True)


def test_pal_is_deepfm_times_what_is_seen() -> None:
    """Served: the click of what is seen. Judged: times ProbSeen of the position, which is 1 at the first."""
    data, _ = dataset(positioned)
    table = {"name": "pal", "representation": SMALL, "interactions": ["linear", "fm", TOWER]}
    model = lively(table, data, ("head.seen",))
    p, batch = Pencil(model, data), batch_of(data, model)
    served, judged = [], []
    for n, (*_, position) in enumerate(CANDIDATES):
        e = p.vectors(n, "interactions.1")
        pairs = sum(float(e[i] @ e[j]) for i in range(8) for j in range(i + 1, 8))
        z = p.linear(n) + pairs + p.logit("interactions.2.towers.0", p.row(n)) + float(p.p["head.bias"][0])
        value = float(p.p["head.seen.values.0.weight"][p.symbols["position"](str(position)), 0])
        seen = 1.0 if position == 1 else sigmoid(1.0 + value)
        served.append(z)
        judged.append(math.log(seen * sigmoid(z) / (1 - seen * sigmoid(z))))
    logits = model(batch).logits
    close(logits[:, 0], served)
    close(model.head.logged(logits, batch)[:, 0], judged)  # type: ignore[operator,union-attr]


def test_position_tower_adds_a_logit_of_the_position() -> None:
    """Served as if the position were missing, judged at the true one."""
    data, _ = dataset(positioned)
    heads = {"hidden": [3], "width": 2}
    table = {"name": "position_tower", "representation": SMALL, "interactions": [TOWER], "heads": heads}
    model = lively(table, data)
    p, batch = Pencil(model, data), batch_of(data, model)
    served, judged = [], []
    for n, (*_, position) in enumerate(CANDIDATES):
        main = p.logit(f"{AT}.towers.0", p.row(n)) + float(p.p["head.bias"][0])
        for row, out in ((MISSING, served), (p.symbols["position"](str(position)), judged)):
            out.append(main + p.logit("head.tower.mlp", p.p["head.tower.values.0.weight"][row]))
    logits = model(batch).logits
    close(logits[:, 0], served)
    close(model.head.logged(logits, batch)[:, 0], judged)  # type: ignore[operator,union-attr]
