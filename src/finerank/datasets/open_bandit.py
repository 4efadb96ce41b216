"""Open Bandit (ZOZOTOWN, Saito et al., NeurIPS 2021 Datasets): which fashion item, at which of three places, was clicked.

`{random,bts}/{all,men,women}.csv` (or one folder deeper, `random/all/all.csv`), with a header whose first name is empty:
timestamp, item_id, position (1 to 3), click, propensity_score (in some releases action_prob), user_feature_0..3 (hashed),
user-item_affinity_0... one per item; `item_context.csv` beside it: item_id, item_feature_0 (a number), 1..3 (hashed).
CC BY 4.0.

The policy `random` shows items uniformly, so that its positions are unbiased; `bts` (Bernoulli Thompson sampling) does not.
Position and propensity are known of what was shown, and unknown of what is to be ranked: they are train-only.
The hashes of item features differ between the policies while the items are the same, so that one item_context, that of
the first policy read, serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, register
from finerank.datasets.protocol import declare, total
from finerank.datasets.raw import fields, find, first_line, marked, sound, told
from finerank.errors import UserError

USER = tuple(f"user_feature_{i}" for i in range(4))
ITEM = tuple(f"item_feature_{i}" for i in range(4))
AFFINITY = "user-item_affinity_"
PROPENSITY = ("propensity_score", "action_prob")


@dataclass(frozen=True, kw_only=True)
class OpenBanditOptions:
    """Protocol.

    policy    random (default): uniform, the one to learn positions from · bts · both: one log, with a column `policy`
    campaign  all (80 items) · men (34) · women (46)
    """

    policy: Literal["random", "bts", "both"] = "random"
    campaign: Literal["all", "men", "women"] = "all"


def convert(folder: Path, options: OpenBanditOptions) -> Converted:
    """See the module."""
    policies = ("random", "bts") if options.policy == "both" else (options.policy,)
    paths = {
        policy: find(folder, f"{policy}/{options.campaign}.csv", f"{policy}/*/{options.campaign}.csv")
        for policy in policies
    }
    items = _items(find(paths[policies[0]].parent, "item_context.csv"))
    logs = [_lines(path).with_columns(policy=pl.lit(policy)) for policy, path in paths.items()]
    counts = total(*(told(log) for log in logs)) | told(items, "item_context")
    known = sound(items)
    rows = pl.concat([sound(log) for log in logs])
    strange = rows.join(known, on="item_id", how="anti").select(pl.len()).collect().item()
    samples = rows.join(known, on="item_id", how="left", maintain_order="left")
    notes = ["Time order: the last tenth is for test, the tenth before it for validation."]
    if strange:
        notes.append(
            f"{strange} kept lines show an item that item_context.csv does not have: its features are missing."
        )
    if options.policy == "both":
        notes.append(
            "Items are described by the random policy's item_context.csv; the other's hashes name nothing else."
        )
    return Converted(
        samples=samples, recipe=_recipe(options), counts=counts | {"kept, unknown item": strange}, notes=tuple(notes)
    )


def _lines(path: Path) -> pl.LazyFrame:
    """One row per impression; its affinities become the row's own, and the list of items with one."""
    header = first_line(path).split(",")
    propensity = next((name for name in PROPENSITY if name in header), None)
    if propensity is None:
        raise UserError(
            f"{path}: the first line names no column {' or '.join(PROPENSITY)}; is it the file as published?"
        )
    felt = [name for name in header if name.startswith(AFFINITY)]
    if not felt or header[-len(felt) :] != felt:
        raise UserError(f"{path}: the first line does not end in columns {AFFINITY}...; is it the file as published?")
    types: dict[str, type[pl.DataType]] = {"timestamp": pl.String, "item_id": pl.Int64, "position": pl.Int64}
    types |= {"click": pl.Int64, propensity: pl.Float64} | dict.fromkeys((*USER, felt[0]), pl.String)
    frame = fields(path, types, header=True, optional=USER, rest=felt[0])
    frame = frame.with_columns(
        vector=pl.col(felt[0]).str.split(",").list.eval(pl.element().cast(pl.Float32, strict=False))
    )
    vector = pl.col("vector")
    positive = vector.list.eval((pl.element() > 0).arg_true())
    items = pl.Series([name.removeprefix(AFFINITY) for name in felt]).cast(pl.Int64)  # by place in the vector
    place = pl.col("item_id").replace_strict(items, range(len(items)), default=None, return_dtype=pl.Int64)
    frame = frame.select(
        "click",
        "position",
        "item_id",
        *USER,
        time=pl.col("timestamp")
        .str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="us", strict=False)
        .dt.replace_time_zone(None),
        propensity=propensity,
        affinity=vector.list.get(place, null_on_oob=True),
        affine_items=positive.list.eval(pl.element().replace_strict(range(len(items)), items, default=None)),
        affine_weights=vector.list.gather(positive),
        numbers=~vector.list.eval(pl.element().is_null()).list.any(),
        fault="fault",
    ).with_columns(hour=pl.col("time").dt.hour())
    shown = pl.col("position").is_between(1, 3) & (pl.col("propensity") > 0) & (pl.col("propensity") <= 1)
    whole = shown & pl.col("click").is_in([0, 1]) & pl.col("time").is_not_null() & pl.col("numbers")
    return marked(frame, "malformed", ~whole).drop("numbers")


def _items(path: Path) -> pl.LazyFrame:
    types: dict[str, type[pl.DataType]] = {"item_id": pl.Int64, ITEM[0]: pl.Float64} | dict.fromkeys(
        ITEM[1:], pl.String
    )
    frame = fields(path, types, header=True, optional=ITEM)
    return marked(frame, "repeated", ~pl.col("item_id").is_first_distinct())


def _recipe(options: OpenBanditOptions) -> str:
    user = declare(("hour", *USER), "request") + (declare(["policy"], "request") if options.policy == "both" else "")
    drawn_to = {"weights": "affine_weights", "pooling": "sum", "table": "item_id"}
    train_only = declare(["position"], "candidate", use="train_only")
    train_only += declare(["propensity"], "candidate", "numeric", use="train_only", transform="none")
    return f"""\
# Open Bandit, policy {options.policy}, campaign {options.campaign}. Few rows are clicked (below 1 %): a small model, FM.

[data]
samples = "samples.parquet"

[data.keys]
time = "time"

[data.split]
by = "time"
validation = 0.1
test = 0.1

# ---- the user, and the items that the user is drawn to (how much)

{user}{declare(["affine_items"], "request", "multivalued", **drawn_to)}\
# ---- the item, and how much the user is drawn to it

{declare(("item_id", *ITEM[1:]), "candidate")}{declare((ITEM[0], "affinity"), "candidate", "numeric", transform="standard")}\
# ---- known only of what was shown: never in the served graph

{train_only}\
[[task]]
name = "click"

[model]
name = "fm"

[training]
epochs = 3
monitor = "logloss"
batch = {{rows = 1024}}
"""


OPEN_BANDIT = register(
    Adapter(
        name="open_bandit",
        options=OpenBanditOptions,
        files=("random/all.csv", "bts/all.csv", "item_context.csv beside each"),
        convert=convert,
        about="Open Bandit, 26 million fashion impressions under two policies, with positions and propensities; CC BY 4.0.",
    )
)
