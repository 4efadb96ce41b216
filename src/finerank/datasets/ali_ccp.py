"""Ali-CCP: impressions of Taobao with clicks, and purchases within clicks; the data set of ESMM (Ma et al., SIGIR 2018).

`sample_skeleton_{train,test}.csv`  sample id, click, purchase, index of the common features, n, n items
`common_features_{train,test}.csv`  index, n, n items: the user's part, shared by all samples of an index
Without header. Items are separated by \\x01; an item is field \\x02 feature id \\x03 value. 84 million samples in two
halves by time, each in order of time, without times.

Fields that occur several times in a line are kept as lists with weights (what the user did in category 109_14, shop
110_14, brand 127_14, intention 150_14; the item's intentions 210; the crosses 508, 509, 702, 853). Keeping the last item
alone, as some conversions do, throws most of the user's past away.

All of it streams: lines are cut by expressions, 42 million samples are written as row groups; in memory is what of the
common features is kept (`longest` bounds it).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, published, register
from finerank.datasets.protocol import declare, total
from finerank.datasets.raw import fields, find, marked, sound, told
from finerank.errors import UserError

USER = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
PAST = ("109_14", "110_14", "127_14", "150_14")
ITEM = ("205", "206", "207", "216")
INTENTIONS = "210"
CROSSES = ("508", "509", "702", "853")
CONTEXT = "301"
SKELETON = {
    "sample": pl.String,
    "click": pl.Int64,
    "purchase": pl.Int64,
    "common": pl.String,
    "n": pl.Int64,
    "items": pl.String,
}
COMMON = {"common": pl.String, "n": pl.Int64, "items": pl.String}
_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_ITEMS = rf"^[0-9_]+\x02\d+\x03{_NUMBER}(?:\x01[0-9_]+\x02\d+\x03{_NUMBER})*$"


@dataclass(frozen=True, kw_only=True)
class AliCcpOptions:
    """Protocol.

    validation  share of the training half, its end, that is for validation
    longest     entries of a user's list that are kept, those with the greatest values; the whole lists hold hundreds
    min_count   rarer ids count as one: the usual 10
    """

    validation: float = 0.1
    longest: int = 50
    min_count: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1 or self.longest < 1 or self.min_count < 1:
            raise UserError(
                f"ali_ccp: validation = {self.validation}, longest = {self.longest}, min_count = {self.min_count}; accepted: a "
                "share between 0 and 1, and whole numbers from 1 up"
            )


def convert(folder: Path, options: AliCcpOptions) -> Converted:
    """See the module."""
    halves, counts = [], []
    for half in ("train", "test"):
        commons = _common(find(folder, f"common_features_{half}.csv"), options.longest)
        skeleton = _skeleton(find(folder, f"sample_skeleton_{half}.csv"), commons)
        counted = told(skeleton)
        counts += [counted, told(commons, "common features")]
        rows = sound(skeleton).with_row_index("row")
        if half == "train":
            cut = round((1 - options.validation) * counted["kept"])
            part = pl.when(pl.col("row") < cut).then(pl.lit("train")).otherwise(pl.lit("validation"))
        else:
            part = pl.lit("test")
        rows = rows.with_columns(split=part).with_columns(request=pl.col("split") + "-" + pl.col("common"))
        halves.append(rows.join(sound(commons), on="common", how="left", maintain_order="left").drop("row", "common"))
    notes = (
        "Halves as published; validation is the end of the training half. Samples of one common index are one request.",
        f"Of a user's lists the {options.longest} entries with the greatest values are kept.",
    )
    return Converted(
        samples=pl.concat(halves),
        recipe=_recipe(options),
        models=published("ali_ccp"),
        counts=total(*counts),
        notes=notes,
    )


# ------------------------------------------------------------------------------------------------ lines


def _common(path: Path, longest: int) -> pl.LazyFrame:
    """The user's part by `common`; an index that comes again is dropped."""
    frame = _well_formed(fields(path, COMMON))
    frame = frame.select("common", *map(_one, USER), *(e for f in PAST for e in _list(f, longest)), "fault")
    return marked(frame, "repeated", ~pl.col("common").is_first_distinct())


def _skeleton(path: Path, commons: pl.LazyFrame) -> pl.LazyFrame:
    frame = _well_formed(fields(path, SKELETON))
    binary = pl.col("click").is_in([0, 1]) & pl.col("purchase").is_in([0, 1])
    frame = marked(frame, "malformed", ~binary)
    frame = marked(frame, "purchase without click", (pl.col("click") == 0) & (pl.col("purchase") == 1))
    known = sound(commons).select("common", known=pl.lit(True))
    frame = frame.join(known, on="common", how="left", maintain_order="left")
    frame = marked(frame, "unknown common features", pl.col("known").is_null())
    return frame.select(
        "click",
        "purchase",
        "common",
        *map(_one, (*ITEM, CONTEXT)),
        *(e for f in (INTENTIONS, *CROSSES) for e in _list(f)),
        *map(_dense, CROSSES),
        "fault",
    )


def _well_formed(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Lines whose list does not hold n items of the given form are malformed."""
    items = pl.col("items")
    whole = items.str.contains(_ITEMS) & (items.str.count_matches("\x01", literal=True) + 1 == pl.col("n"))
    frame = marked(frame, "malformed", ~whole)
    return frame.with_columns(items="\x01" + items + "\x01")


def _one(field: str) -> pl.Expr:
    """The id of a field that occurs once; null where it does not occur."""
    return pl.col("items").str.extract(rf"\x01{field}\x02(\d+)\x03").cast(pl.UInt32, strict=False).alias(field)


def _found(field: str, what: str) -> pl.Expr:
    """All ids, or all values, of a field in a line; an empty list where it does not occur."""
    item = pl.col("items").str.extract_all(rf"\x01{field}\x02[^\x01]+")
    if what == "id":
        return item.list.eval(pl.element().str.extract(r"\x02(\d+)\x03").cast(pl.UInt32, strict=False))
    return item.list.eval(pl.element().str.extract(r"\x03(.+)$").cast(pl.Float32, strict=False))


def _list(field: str, longest: int | None = None) -> tuple[pl.Expr, pl.Expr]:
    """Two columns: the ids of a field, and their values as `<field>_weight`; in the line's order."""
    ids, weights = _found(field, "id"), _found(field, "value")
    if longest is not None:
        kept = weights.list.eval(pl.element().arg_sort(descending=True).head(longest).sort())
        ids, weights = ids.list.gather(kept), weights.list.gather(kept)
    return ids.alias(field), weights.alias(f"{field}_weight")


def _dense(field: str) -> pl.Expr:
    """The sum of a field's values as `D<field>`; null where it does not occur."""
    values = _found(field, "value")
    return pl.when(values.list.len() > 0).then(values.list.sum()).alias(f"D{field}")


# ------------------------------------------------------------------------------------------------ recipe


def _recipe(options: AliCcpOptions) -> str:
    encoding = {"kind": "vocabulary", "min_count": options.min_count}

    def lists(names: tuple[str, ...], level: str) -> str:
        return "".join(
            declare([f], level, "multivalued", weights=f"{f}_weight", pooling="sum", encoding=encoding) for f in names
        )

    return f"""\
# Ali-CCP: ESMM, that is pCTR and pCTCVR over all impressions, and by them pCVR without its bias of selection.
# Names are the fields' numbers as published. The lists stand for what the user did, so ESMM's pooled history is not needed.

[data]
samples = "samples.parquet"

[data.keys]
request = "request"
user = "101"

[data.split]
by = "column"

# ---- the user: 101 id, 121 to 129 profile

{declare(USER, "request", encoding=encoding)}\
# ---- what the user did before: 109 categories, 110 shops, 127 brands, 150 intentions, with how much

{lists(PAST, "request")}\
# ---- the item: 205 id, 206 category, 207 shop, 216 brand, 210 intentions

{declare(ITEM, "candidate", encoding=encoding)}{lists((INTENTIONS,), "candidate")}\
# ---- the user's past with the item's category, shop, brand, intentions; ids and how much

{lists(CROSSES, "candidate")}{declare([f"D{f}" for f in CROSSES], "candidate", "numeric", transform="log1p")}\
# ---- where

{declare((CONTEXT,), "candidate", encoding=encoding)}[[task]]
name = "click"

[[task]]
name = "purchase"
within = "click"

[model]
name = "esmm"
representation = {{kind = "plain", embedding = {{width = 18}}}}

[training]
epochs = 1
monitor = "auc"
batch = {{rows = 4096}}
"""


ALI_CCP = register(
    Adapter(
        name="ali_ccp",
        options=AliCcpOptions,
        files=(
            "sample_skeleton_train.csv", "common_features_train.csv",
            "sample_skeleton_test.csv", "common_features_test.csv",
        ),
        convert=convert,
        about="Ali-CCP, 84 million impressions with clicks and purchases within clicks; Alibaba, research only.",
    )
)  # fmt: skip
