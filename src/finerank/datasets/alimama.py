"""Alimama display advertising (TaobaoAd): will the user click the ad? Eight days of impressions, 22 days of behaviour before.

Published by Alimama on Tianchi; used by DIN's authors (H. Zhou et al., KDD 2018) in a larger form.

raw_sample.csv holds impressions, ad_feature.csv and user_profile.csv what is known of ads and users, behavior_log.csv (700
million lines) what users did, by category and brand alone: it becomes the event log, streamed, for the users of the samples.
The last day of the impressions, 13 May 2017 in Beijing, is for test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, register
from finerank.datasets.raw import MALFORMED, Columns, commented, fields, find, marked, sound, told
from finerank.errors import UserError
from finerank.runtime.hashing import uniform
from finerank.schema.checks import at_least

BEIJING = 8 * 3600
DAY = 86_400
FIRST = 1_494_000_000  # 2017-05-06 00:00 in Beijing
DAYS = 8
NULL = "NULL"  # how the files write a missing brand


@dataclass(frozen=True, kw_only=True)
class Options:
    """The protocol's choices.

    validation  day (default): the last day but one, so six days train · random: a twentieth of the first seven days, by the
                hash of user and second, so that all seven train as in TaobaoAd_x1
    users       all (default) · profiled: impressions of users without a profile make no row, as in TaobaoAd_x1 (some 5 %)
    min_count   of the ids of ads, brands, categories and advertisers: rarer ones are out of vocabulary
    """

    validation: Literal["day", "random"] = "day"
    users: Literal["all", "profiled"] = "all"
    min_count: int = 10

    def __post_init__(self) -> None:
        at_least(1, min_count=self.min_count)


SAMPLE: Columns = {
    "user": pl.Int64, "time_stamp": pl.Int64, "adgroup_id": pl.Int64, "pid": pl.String, "nonclk": pl.Int8, "clk": pl.Int8
}  # fmt: skip
AD: Columns = {
    "adgroup_id": pl.Int64, "cate_id": pl.Int64, "campaign_id": pl.Int64, "customer": pl.Int64,
    "brand": pl.String, "price": pl.Float64,
}  # fmt: skip
PROFILE = (
    "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level", "occupation",
    "new_user_class_level",
)  # fmt: skip
EVENT: Columns = {
    "user": pl.Int64, "time_stamp": pl.Int64, "btag": pl.String, "cate": pl.Int64, "brand": pl.String
}  # fmt: skip


def convert(folder: Path, options: Options) -> Converted:
    """See `Adapter.convert`."""
    rows = fields(find(folder, "raw_sample.csv"), SAMPLE, header=True)
    rows = marked(rows, MALFORMED, ~pl.col("clk").is_in([0, 1]) | (pl.col("clk") + pl.col("nonclk") != 1))
    rows = marked(rows, "outside 6 - 13 May 2017", ~pl.col("time_stamp").is_between(FIRST, FIRST + DAYS * DAY - 1))
    ads = fields(find(folder, "ad_feature.csv"), AD, header=True, optional=("brand", "price"))
    profile: Columns = {"userid": pl.Int64} | dict.fromkeys(PROFILE, pl.String)
    users = fields(find(folder, "user_profile.csv"), profile, header=True, optional=PROFILE)
    log = fields(find(folder, "behavior_log.csv"), EVENT, header=True, optional=("cate", "brand"))
    log = marked(log, "unknown btag", ~pl.col("btag").is_in(["pv", "ipv", "cart", "fav", "buy"]))
    counts: dict[str, int] = {}
    for what, frame in (("raw_sample", rows), ("ad_feature", ads), ("user_profile", users), ("behavior_log", log)):
        counts |= told(frame, what)

    brand = pl.col("brand").replace(NULL, None)
    ad = sound(ads).with_columns(brand).unique("adgroup_id", keep="last").collect()
    user = sound(users).unique("userid", keep="last").rename({"userid": "user"}).collect().with_columns(profiled=True)
    samples = sound(rows).drop("nonclk").collect(engine="streaming")
    samples = samples.join(ad.with_columns(known=True), on="adgroup_id", how="left", maintain_order="left")
    samples = samples.join(user, on="user", how="left", maintain_order="left")
    if unknown := samples["known"].null_count():
        counts["impressions of an unknown ad (kept, without its features)"] = unknown
    if strangers := samples["profiled"].null_count():
        counts[f"impressions of a user without a profile ({'kept' if options.users == 'all' else 'dropped'})"] = (
            strangers
        )
    if options.users == "profiled":
        samples = samples.filter("profiled")
    if not samples.height:
        raise UserError(
            f"{folder}: no impression is left of {counts['raw_sample: read']} lines; is this the right folder?"
        )
    stamp = pl.col("time_stamp")
    samples = samples.drop("known", "profiled").sort("time_stamp", maintain_order=True).with_columns(
        day=(stamp - FIRST) // DAY,
        hour=(stamp + BEIJING) % DAY // 3600,
    )  # fmt: skip
    validation = samples["day"] == DAYS - 2
    if options.validation == "random":
        moment = samples["user"].to_numpy() * 4_000_000_000 + samples["time_stamp"].to_numpy()
        validation = pl.Series(uniform(0, moment) < 0.05)
    samples = samples.with_columns(
        split=pl.when(pl.col("day") == DAYS - 1)
        .then(pl.lit("test"))
        .when(validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    ).drop("day")
    viewers = samples.select("user").unique().lazy()
    # semi join and renaming are streamed while the events are written: the log never is in memory
    events = sound(log).with_columns(brand).rename({"cate": "cate_id"}).join(viewers, on="user", how="semi")
    counts["rows"], counts["clicks"] = samples.height, int(samples["clk"].sum())
    chosen = "the day before" if options.validation == "day" else "a twentieth of the rows before"
    notes = (
        f"the last day, 13 May 2017, is for test, {chosen} for validation; events know categories and brands, no ads",
    )
    recipe = commented("Deep Interest Network on Alimama's display ads.")
    recipe += RECIPE.replace("@min_count", str(options.min_count))
    return Converted(samples=samples, events=events, recipe=recipe, counts=counts, notes=notes)


def _categorical(name: str, level: str, more: str = "") -> str:
    return f'[[feature]]\nkind = "categorical"\nname = "{name}"\nlevel = "{level}"\n{more}\n'


_RARE = 'encoding = {kind = "vocabulary", min_count = @min_count}\n'

RECIPE = f"""
[data]
samples = "samples.parquet"
events = "events.parquet"

[data.keys]
user = "user"
time = "time_stamp"

[data.split]
by = "column"
column = "split"

{"".join(_categorical(name, "request") for name in PROFILE)}\
{_categorical("hour", "request")}\
{_categorical("pid", "request")}\
{"".join(_categorical(name, "candidate", _RARE) for name in ("adgroup_id", "campaign_id", "customer", "cate_id", "brand"))}\
{_categorical("btag", "event")}\
[[feature]]
kind = "bucketed"
name = "price"
level = "candidate"
buckets = 20

[[history]]
name = "behaviour"
fields = ["cate_id", "brand", "btag"]
max_length = 50

[[task]]
name = "clk"

[model]
name = "din"

[training]
epochs = 2
patience = 1
monitor = "auc"
"""

register(
    Adapter(
        name="alimama",
        options=Options,
        files=("raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv"),
        convert=convert,
        about="26 million ad impressions and 700 million actions on Taobao, May 2017 (Alibaba Tianchi; for research).",
    )
)
