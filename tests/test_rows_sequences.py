"""Models of a past, whole, from the raw rows and events to the logit (`by_rows`): two histories, events with several tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformer_by_hand
from by_rows import (
    CANDIDATES,
    KINDS,
    LENGTH,
    REQUESTS,
    SMALL,
    TOWER,
    D,
    Pencil,
    Vector,
    batch_of,
    close,
    dataset,
    lively,
    one_history,
    past,
    schema,
    softmax,
)

from finerank.schema import Schema

K = 3 * D
Pass = Callable[[Pencil, int], float]
MODELS: dict[str, tuple[dict[str, Any], Pass]] = {}
"""By name: a small table of the model, and its logit of a row without the global bias."""


def by_hand(name: str, *interactions: Any, **representation: Any) -> Callable[[Pass], Pass]:
    def keep(loop: Pass) -> Pass:
        table = {"name": name.split()[0], "representation": SMALL | representation}
        MODELS[name] = (table | ({"interactions": list(interactions)} if interactions else {}), loop)
        return loop

    return keep


def tower(p: Pencil, x: Vector) -> float:
    return p.logit("interactions.0.towers.0", x)


# ------------------------------------------------------------------------------------------------ pooled and attended


@by_hand("base", TOWER)
@by_hand("deepmcp", TOWER, hidden=[3, 2])
def base(p: Pencil, n: int) -> float:
    return tower(p, p.row(n, p.pooled(n)))


@by_hand("youtube_ranking", TOWER)
def youtube_ranking(p: Pencil, n: int) -> float:
    return tower(p, p.row(n, p.pooled(n, mean=True)))


@by_hand("din", TOWER, unit={"hidden": [3, 2]})
def din(p: Pencil, n: int) -> float:
    """One weight an event from [q, k, q - k, q∘k, how long ago], without softmax; a unit for each history."""
    q, interests = p.candidate(n), []
    for h, (name, kind) in enumerate(KINDS.items()):
        interest = np.zeros(K)
        for e in past(n, kind):
            k = p.event(e)
            x = np.concatenate([q, k, q - k, q * k, p.time_between(n, e, name)])
            interest = interest + p.logit(f"representation.units.{h}", x) * k
        interests.append(interest)
    return tower(p, p.row(n, fields_N=interests))


# ------------------------------------------------------------------------------------------------ recurrent


def gru(p: Pencil, at: str, inputs: list[Vector], attention: list[float] | None = None) -> list[Vector]:
    """u and r gate, c is new: h' = (1 - u) h + u c; under attention u is a u (AUGRU)."""
    W, b, U = p.p[f"{at}.input.weight"], p.p[f"{at}.input.bias"], p.p[f"{at}.state.weight"]
    h, states = np.zeros(len(U) // 3), []
    for t, x in enumerate(inputs):
        of_x, of_h = (W @ x + b).reshape(3, -1), (U @ h).reshape(3, -1)
        u, r = (1 / (1 + np.exp(-of_x[g] - of_h[g])) for g in (0, 1))
        c = np.tanh(of_x[2] + r * of_h[2])
        u = u if attention is None else attention[t] * u
        h = (1 - u) * h + u * c
        states.append(h)
    return states


@by_hand("rnn", TOWER)
def rnn(p: Pencil, n: int) -> float:
    last = [
        [np.zeros(K), *gru(p, f"representation.cells.{h}", [p.event(e) for e in past(n, kind)])][-1]
        for h, kind in enumerate(KINDS.values())
    ]
    return tower(p, p.row(n, last))


def evolved(p: Pencil, n: int, events: list[Vector], extract: str, match: str, evolve: str) -> Vector:
    """DIEN: states of interest, softmax of hᵀ W q, AUGRU over them; its last state."""
    states = gru(p, extract, events)
    a = softmax([float(h @ p.p[f"{match}.weight"] @ p.candidate(n)) for h in states])
    return [np.zeros(K), *gru(p, evolve, states, a)][-1]


@by_hand("dien", TOWER)
def dien(p: Pencil, n: int) -> float:
    interests = []
    for h, kind in enumerate(KINDS.values()):
        at = [f"representation.{part}.{h}" for part in ("extract", "match", "evolve")]
        interests.append(evolved(p, n, [p.event(e) for e in past(n, kind)], *at))
    return tower(p, p.row(n, fields_N=interests))


# ------------------------------------------------------------------------------------------------ transformers


def block(p: Pencil, at: str, act: str, x: Vector, others: list[Vector]) -> Vector:
    return transformer_by_hand.block(p.p, at, 2, act, x, others)[0]


@by_hand("bst", TOWER, heads=2, feed=2)
def bst(p: Pencil, n: int) -> float:
    """Each element beside the time from it to the request, the candidate last, whose own row is read."""
    out = []
    for h, (name, kind) in enumerate(KINDS.items()):
        events = [np.concatenate([p.event(e), p.time_between(n, e, name)]) for e in past(n, kind)]
        x = np.concatenate([p.candidate(n), p.p[f"representation.places.{h}"][0]])
        out.append(block(p, f"representation.blocks.{h}.0", "leaky_relu", x, [*events, x]))
    return tower(p, p.row(n, fields_N=out))


def lstm(p: Pencil, at: str, rows: list[Vector]) -> list[Vector]:
    W, b, U = (p.p[f"{at}.{name}"] for name in ("input.weight", "input.bias", "state.weight"))
    h = c = np.zeros(len(U) // 4)
    out = []
    for x in rows:
        i, f, g, o = (W @ x + U @ h + b).reshape(4, -1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        out.append(h)
    return out


@by_hand("dsin", TOWER, heads=2, feed=2)
def dsin(p: Pencil, n: int) -> float:
    """More than half an hour parts sessions, of which the newest is number 0."""
    out, at = [], "representation"
    for i, kind in enumerate(KINDS.values()):
        sessions: list[list[Vector]] = []
        before = -np.inf
        for e in past(n, kind):
            if e[1] - before > 1_800:
                sessions.append([])
            sessions[-1].append(p.event(e))
            before = e[1]
        interests = []
        for number, members in enumerate(sessions):
            of_session = p.p[f"{at}.of_session.{i}"][len(sessions) - 1 - number, 0]
            of_place = p.p[f"{at}.of_place.{i}"][:, 0]
            rows = [x + of_session + of_place[t] + p.p[f"{at}.of_unit.{i}"] for t, x in enumerate(members)]
            interests.append(np.mean([block(p, f"{at}.blocks.{i}", "relu", x, rows) for x in rows], axis=0))
        back = lstm(p, f"{at}.back.{i}", interests[::-1])[::-1]
        met = [np.concatenate(both) for both in zip(lstm(p, f"{at}.forth.{i}", interests), back, strict=True)]
        for name, rows, width in (("own", interests, K), ("met", met, 2 * K)):
            asked = p.p[f"{at}.ask_{name}.{i}.weight"] @ p.candidate(n)
            a = softmax([float(asked @ row) for row in rows])
            out.append(sum((w * row for w, row in zip(a, rows, strict=True)), np.zeros(width)))
    return tower(p, p.row(n, fields_N=out))


def plain_norm(x: Vector) -> Vector:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def silu(x: Vector) -> Vector:
    return x / (1 + np.exp(-x))


@by_hand("hstu", TOWER)
def hstu(p: Pencil, n: int) -> float:
    """Two layers of two heads over events and candidate; an element sees what is before it and itself."""
    now, out = REQUESTS[CANDIDATES[n][0]][2], []
    for h, kind in enumerate(KINDS.values()):
        events = past(n, kind)
        rows, times = [*map(p.event, events), p.candidate(n)], [*(e[1] for e in events), now]
        for layer in range(2):
            at = f"representation.units.{h}.{layer}"
            made = [silu(p.dense(f"{at}.project", plain_norm(x))).reshape(4, -1) for x in rows]
            after = []
            for i, x in enumerate(rows):
                taken = np.zeros(K)
                for j in range(i + 1):
                    between = times[i] - times[j]
                    powers = sum(2**s <= between for s in range(30))  # 1, 2, 4, ... seconds
                    bias = p.p[f"{at}.position"][i - j] + p.p[f"{at}.time"][powers]
                    for head in (slice(0, 3), slice(3, 6)):
                        a = silu(made[i][2][head] @ made[j][3][head] + bias) / (LENGTH + 1)
                        taken[head] += a * made[j][1][head]
                after.append(x + p.dense(f"{at}.out", plain_norm(taken) * made[i][0]))
            rows = after
        out.append(rows[-1])
    return tower(p, p.row(n, fields_N=out))


# ------------------------------------------------------------------------------------------------ searched


def exact(p: Pencil, n: int, h: int, name: str, found: list[Any]) -> Vector:
    """Two heads of softmax(<W_b z, W_a q>) z over what was found, z an event beside the time to the request."""
    z = [np.concatenate([p.event(e), p.time_between(n, e, name)]) for e in found]
    asked = (p.p[f"representation.ask.{h}.weight"] @ p.candidate(n)).reshape(2, -1)
    told = [(p.p[f"representation.answer.{h}.weight"] @ x).reshape(2, -1) for x in z]
    out = []
    for head in range(2):
        a = softmax([float(t[head] @ asked[head]) for t in told])
        out.append(sum((w * x for w, x in zip(a, z, strict=True)), np.zeros(K + D)))
    return np.concatenate(out)


def searched(p: Pencil, n: int, search: Callable[[int, list[Any]], list[Any]]) -> float:
    out = []
    for h, (name, kind) in enumerate(KINDS.items()):
        events = past(n, kind)
        out.append(exact(p, n, h, name, search(h, events)))
        at = [f"representation.recent.{h}.{part}" for part in ("extract", "match", "evolve")]
        out.append(evolved(p, n, [p.event(e) for e in events[-2:]], *at))
    return tower(p, p.row(n, fields_N=out))


@by_hand("sim", TOWER, recent=2)
def sim(p: Pencil, n: int) -> float:
    """Hard: the events of the candidate's category."""
    return searched(p, n, lambda _, events: [e for e in events if e[4] == CANDIDATES[n][2]])


@by_hand("sim_soft", TOWER, recent=2, top=2)
def sim_soft(p: Pencil, n: int) -> float:
    """Soft: the two events of greatest <W_b e, W_a q>."""

    def nearest(h: int, events: list[Any]) -> list[Any]:
        q = p.p[f"representation.search_ask.{h}.weight"] @ p.candidate(n)
        W = p.p[f"representation.search_answer.{h}.weight"]
        return sorted(events, key=lambda e: -float(q @ W @ p.event(e)))[:2]

    return searched(p, n, nearest)


# ------------------------------------------------------------------------------------------------ late crossing, catalogues


def cosine(p: Pencil, n: int, histories: int) -> float:
    """tanh networks of either side, which meet in a cosine of temperature 0.1."""
    at = "interactions.0.networks"
    request = np.concatenate([*p.of_request(n), *p.pooled(n)[:histories], p.age(n)])
    u = p.tower(f"{at}_R.0", request, np.tanh, last=True)
    v = p.tower(f"{at}_N.0", np.concatenate([p.candidate(n), p.price(n)]), np.tanh, last=True)
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v)) / 0.1


LATE = {"kind": "late_crossing", "hidden": [3, 2]}
by_hand("dssm", LATE)(lambda p, n: cosine(p, n, 2))
by_hand("two_tower", LATE | {"in_batch": 1.0})(lambda p, n: cosine(p, n, 1))


@by_hand("youtube_candidates", hidden=[3, 2])
def youtube_candidates(p: Pencil, n: int) -> float:
    """The request alone against the vector of the item; an example is of age 0 once it is served."""
    request = np.concatenate([*p.of_request(n), p.age(n), p.pooled(n, mean=True)[0], [0.0]])
    u = p.tower("representation.tower", request, last=True)
    return float(u @ p.value("representation.catalogue.vectors.weight", "item", CANDIDATES[n][1]))


@by_hand("bert4rec", heads=2, feed=2)
def bert4rec(p: Pencil, n: int) -> float:
    """[mask] behind the past, at place 0; what it says of the candidate. The oldest of a full past makes room for it."""
    at, places = "representation", p.p["representation.places"]
    items = [e[3] for e in past(n, "click")][1 - LENGTH :]
    vectors = [p.value(f"{at}.catalogue.vectors.weight", "item", item) for item in items]
    rows = [v + places[len(items) - t] for t, v in enumerate(vectors)]
    rows.append(p.p[f"{at}.mask"][0] + places[0])
    for layer in range(2):
        rows = [block(p, f"{at}.blocks.{layer}", "gelu", x, rows) for x in rows]
    u = np.array([transformer_by_hand.gelu(v) for v in p.dense(f"{at}.last", rows[-1])])
    item = CANDIDATES[n][1]
    bias = float(p.value(f"{at}.catalogue.biases.weight", "item", item)[0])
    return float(u @ p.value(f"{at}.catalogue.vectors.weight", "item", item)) + bias


# ------------------------------------------------------------------------------------------------ all of them


def clicks_alone() -> Schema:
    """For models of one sequence."""
    return one_history(schema())


ONE = ("two_tower", "youtube_candidates", "bert4rec")
IDLE = {
    "deepmcp": ("representation.user", "representation.ad", "representation.items"),
    "sim_soft": ("representation.judge", "representation.search"),
}
"""What training alone reads; that a search orders events by has no slope either."""


@pytest.mark.parametrize("name", MODELS)
def test_whole_model_from_the_raw_rows(name: str) -> None:
    table, loop = MODELS[name]
    data, _ = dataset(clicks_alone if name in ONE else schema)
    model = lively(table, data, IDLE.get(name, ()))
    pencil = Pencil(model, data)
    bias = float(pencil.p["head.bias"][0])
    close(model(batch_of(data, model)).logits[:, 0], [loop(pencil, n) + bias for n in range(len(CANDIDATES))])
