"""What tests of parts over fields share: the vectors of a row by hand, one part alone, and the family in every variant."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from by_hand import AGES, CATEGORIES, ITEMS, OF, PRICES, SMALL, Hand, batch_of, features_of, model_of
from torch import Tensor

from finerank.models.composition import Model
from finerank.schema import Columns, FittedSchema

PAIRS = list(itertools.combinations(range(5), 2))  # user, age | item, category, price


def vectors(hand: Hand, n: int, at: str = "interactions.1.vectors") -> list[np.ndarray]:
    """What every part of fields reads of row n: the request's fields and numbers, then the candidate's."""
    v_age, v_price = hand.p[f"{at}.numbers_R"][0], hand.p[f"{at}.numbers_N"][0]
    user, row = hand.user(n), hand.tables()
    return [user, AGES[OF[n]] * v_age, row["item"][ITEMS[n]], row["category"][CATEGORIES[n]], PRICES[n] * v_price]


def of_part(model: Model, index: int = 1) -> Tensor:
    """[N, K]: what one interaction adds."""
    out: Tensor = model.interactions[index](features_of(model, batch_of()))
    return out


def fm_like(model: Model, index: int = 1) -> Tensor:
    """[N, 1]: the machine over the same vectors."""
    fm = model_of({"name": "fm", "representation": SMALL})
    with torch.no_grad():
        for name in ("numbers_R", "numbers_N"):
            getattr(fm.interactions[1], name).copy_(getattr(model.interactions[index].vectors, name))  # type: ignore[arg-type]
    out: Tensor = fm.interactions[1](features_of(model, batch_of()))
    return out


def one_sided(schema: FittedSchema) -> FittedSchema:
    """Every id a candidate's, no numbers: what a data set without requests looks like."""
    features = tuple(replace(f, level="candidate") for f in schema.schema.features if f.name not in ("age", "price"))
    ids = (*schema.request.ids, *schema.candidate.ids)
    return replace(
        schema,
        schema=replace(schema.schema, features=features, histories=()),
        request=Columns(),
        candidate=Columns(ids=ids),
        histories={},
    )


def without_numbers(schema: FittedSchema) -> FittedSchema:
    features = tuple(f for f in schema.schema.features if f.name not in ("age", "price"))
    return replace(
        schema,
        schema=replace(schema.schema, features=features),
        request=Columns(ids=schema.request.ids),
        candidate=Columns(ids=schema.candidate.ids),
    )


FAMILY: dict[str, dict[str, Any]] = {
    "fwfm": {"kind": "fwfm"},
    "fwfm LW": {"kind": "fwfm", "linear": "LW"},
    "fwfm FeLV": {"kind": "fwfm", "linear": "FeLV"},
    "nfm": {"kind": "bi_interaction", "hidden": [3]},
    "afm": {"kind": "attentional_pairs", "factor": 3},
    "ffm": {"kind": "ffm", "dim": 3},
    "ipnn": {"kind": "pnn", "hidden": [4, 3]},
    "ipnn factorised": {"kind": "pnn", "form": "factorised", "hidden": [4]},
    "opnn": {"kind": "pnn", "product": "outer", "hidden": [4]},
    "pnn factorised": {"kind": "pnn", "product": "both", "form": "factorised", "hidden": [4]},
    "dcn_v2": {"kind": "cross_v2", "layers": 2, "hidden": [3]},
    "dcn_mix": {"kind": "cross_v2", "layers": 2, "rank": 2, "experts": 2, "hidden": [3]},
    "cin": {"kind": "cin", "maps": [4, 3]},
    "cin split": {"kind": "cin", "maps": [4, 3], "split_half": True, "activation": "relu"},
    "autoint": {"kind": "autoint", "layers": 2, "width": 3},
    "fibinet all": {"kind": "fibinet", "bilinear": "all", "hidden": [3]},
    "fibinet each": {"kind": "fibinet", "bilinear": "each", "hidden": [3]},
    "fibinet interaction": {"kind": "fibinet", "hidden": [3]},
    "deep_crossing": {"kind": "residual_units", "hidden": [3, 4]},
    "autoint scaled": {"kind": "autoint", "layers": 1, "width": 3, "scaled": True},
    "fibinet hadamard": {"kind": "fibinet", "products": "hadamard", "excitation": "sigmoid", "hidden": [3]},
    "deep_crossing post_relu": {"kind": "residual_units", "hidden": [3], "post_relu": True},
    "outer pairs": {"kind": "pnn", "product": "both", "hidden": [3]},
    "dcn_mix sigmoid": {"kind": "cross_v2", "layers": 2, "rank": 2, "experts": 2, "gate": "sigmoid", "hidden": []},
    "cin relu": {"kind": "cin", "maps": [4, 2], "activation": "relu"},
    "ffm raw": {"kind": "ffm", "dim": 3, "normalise": False},
    "fgcnn": {"kind": "fgcnn", "maps": [2, 2], "new": [1, 2], "classifier": {"hidden": [3]}},
}


LATE: dict[str, dict[str, Any]] = {
    "dssm": {"kind": "late_crossing", "hidden": [3]},
    "dssm dot": {"kind": "late_crossing", "hidden": [3], "similarity": "dot"},
}


def table(kind: str) -> dict[str, Any]:
    """The part alone over plain fields."""
    plain = {"kind": "plain", **SMALL}
    return {"representation": plain, "interactions": [(FAMILY | LATE)[kind]]}


Vector = np.ndarray


def alone(options: dict[str, Any]) -> dict[str, Any]:
    """The interaction alone over plain fields: it is interaction 0."""
    return {"representation": {"kind": "plain", **SMALL}, "interactions": [options]}


def mlp(hand: Hand, at: str, x: Vector, hidden: int) -> float:
    """ReLU layers and a last one without."""
    for k in range(hidden):
        x = np.maximum(hand.dense(f"{at}.layers.{2 * k}", x), 0)
    return float(hand.dense(f"{at}.layers.{2 * hidden}", x)[0])
