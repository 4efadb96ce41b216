"""MIND: news impressions with what was shown, what was clicked, and the reader's past. Wu et al., ACL 2020.

Folders `train` and `dev` (as published: MINDsmall_train, MINDsmall_dev, or MINDlarge_...), in each
`behaviors.tsv`  impression id, user, time (M/D/YYYY h:m:s AM), history (news ids, oldest first), impressions (id-0 or id-1)
`news.tsv`       id, category, subcategory, title, abstract, url, title entities, abstract entities (JSON)
Tab-separated, no header, no quoting. Microsoft Research License.

An impression is a request, what was shown are its candidates. The past comes as lists: the last `history` clicks, with
category and subcategory; and as a long-term profile, the subcategories of the whole past by how often, as `tag#rank`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, register
from finerank.datasets.protocol import declare, total
from finerank.datasets.raw import fields, find, marked, sound, told
from finerank.errors import UserError
from finerank.schema.checks import at_least

BEHAVIORS = ("impression", "user_id", "time", "history", "shown")
NEWS = ("news_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
FOLDERS = {part: (part, f"MINDsmall_{part}", f"MINDlarge_{part}") for part in ("train", "dev")}


@dataclass(frozen=True, kw_only=True)
class MindOptions:
    """Protocol.

    history     the most recent clicks that are kept
    interests   subcategories of the long-term profile
    validation  share of the training impressions, the last ones, that are for validation; without `dev` also for test
    min_count   rarer news, entities and users count as one
    """

    history: int = 50
    interests: int = 20
    validation: float = 0.1
    min_count: int = 2

    def __post_init__(self) -> None:
        at_least(1, min_count=self.min_count)
        if self.history < 1 or self.interests < 1 or not 0 < self.validation < 0.5:
            raise UserError(
                f"mind: history = {self.history}, interests = {self.interests}, validation = {self.validation}; accepted: at "
                "least 1, at least 1, a share between 0 and 0.5"
            )


def convert(folder: Path, options: MindOptions) -> Converted:
    """See the module."""
    found = {part: at for part, names in FOLDERS.items() if (at := _folder(folder, names))}
    if "train" not in found:
        raise UserError(f"{folder}: has no folder {' or '.join(FOLDERS['train'])}; name the folder that holds it")
    logs = {part: _impressions(find(at, "behaviors.tsv")) for part, at in found.items()}
    read = [_news(find(at, "news.tsv")) for at in found.values()]
    news = pl.concat([sound(each) for each in read]).unique("news_id", keep="first", maintain_order=True).collect()
    counts = total(*(told(log) for log in logs.values())) | total(*(told(each, "news") for each in read))

    parts = {
        part: sound(log).with_columns(request=pl.lit(f"{part}-") + pl.col("impression")) for part, log in logs.items()
    }
    parts["train"] = parts["train"].with_columns(
        split=_split(parts["train"], options.validation, test="dev" not in parts)
    )
    if "dev" in parts:
        parts["dev"] = parts["dev"].with_columns(split=pl.lit("test"))
    rows = pl.concat([_with_past(part, news, options) for part in parts.values()])
    samples = (
        rows.with_columns(pl.col("shown").str.split(" "))
        .explode("shown")
        .with_columns(
            news_id=pl.col("shown").str.head(-2),
            click=pl.col("shown").str.tail(1).cast(pl.Int8),
            hour=pl.col("time").dt.hour(),
            weekday=pl.col("time").dt.weekday(),
        )
        .join(news.lazy(), on="news_id", how="left", maintain_order="left")
        .drop("shown", "impression")
    )
    more = samples.select(pl.len(), pl.col("category").is_null().sum().alias("strange")).collect(engine="streaming")
    counts |= {"rows": more["len"].item(), "rows, unknown news": more["strange"].item()}
    notes = (
        "Test is dev, validation the last impressions of train."
        if "dev" in found
        else "There is no dev: the last impressions of train are for test, those before them for validation.",
        "News that news.tsv does not have stay, without category.",
    )
    return Converted(samples=samples, recipe=_recipe(options), counts=counts, notes=notes)


def _folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _impressions(path: Path) -> pl.LazyFrame:
    frame = fields(path, dict.fromkeys(BEHAVIORS, pl.String), "\t", optional=("history",)).with_columns(
        pl.col("time").str.to_datetime("%m/%d/%Y %I:%M:%S %p", time_unit="us", strict=False)
    )
    labelled = pl.col("shown").str.contains(r"^\S+-[01]( \S+-[01])*$")
    return marked(frame, "malformed", ~labelled | pl.col("time").is_null())


def _news(path: Path) -> pl.LazyFrame:
    """id, category, subcategory, and the Wikidata ids of the entities in title and abstract."""
    frame = fields(path, dict.fromkeys(NEWS, pl.String), "\t", optional=NEWS[1:])
    columns = ("title_entities", "abstract_entities")
    parsed = frame.with_columns(
        pl.col(name).map_elements(_entities, return_dtype=pl.List(pl.String), skip_nulls=True) for name in columns
    )
    bad = pl.any_horizontal(pl.col(name).list.contains("").fill_null(False) for name in columns)
    return marked(parsed.select("news_id", "category", "subcategory", *columns, "fault"), "malformed", bad)


def _entities(cell: str) -> list[str]:
    """Wikidata ids; [""] for what is no list of entities."""
    try:
        return [str(entity["WikidataId"]) for entity in json.loads(cell)]
    except (ValueError, KeyError, TypeError):
        return [""]


def _split(train: pl.LazyFrame, share: float, test: bool) -> pl.Expr:
    """By time; impressions of one second stay together."""
    times = train.select(pl.col("time").sort()).collect(engine="streaming")["time"]
    first = {
        part: times[max(0, len(times) - max(1, round(n * share * len(times))))] for part, n in (("a", 1), ("b", 2))
    }
    last = pl.col("time") >= pl.lit(first["a"], dtype=times.dtype)
    if not test:
        return pl.when(last).then(pl.lit("validation")).otherwise(pl.lit("train"))
    before = pl.col("time") >= pl.lit(first["b"], dtype=times.dtype)
    return pl.when(last).then(pl.lit("test")).when(before).then(pl.lit("validation")).otherwise(pl.lit("train"))


def _with_past(frame: pl.LazyFrame, news: pl.DataFrame, options: MindOptions) -> pl.LazyFrame:
    """The history as lists: its last news, their categories and subcategories; and the profile of all of it."""
    past = pl.col("history").str.split(" ").fill_null(pl.lit([], dtype=pl.List(pl.String)))
    frame = frame.with_columns(history=past)
    names = news["news_id"]

    def of(column: str) -> pl.Expr:
        return pl.element().replace_strict(names, news[column], default=None, return_dtype=pl.String)

    every = pl.col("history").list.eval(of("subcategory"))
    recent = pl.col("history").list.tail(options.history)
    return frame.with_columns(
        interests=every.map_batches(
            lambda lists: _ranked(lists, options.interests), return_dtype=pl.List(pl.String), is_elementwise=True
        ),
        history=recent,
        history_category=recent.list.eval(of("category")),
        history_subcategory=recent.list.eval(of("subcategory")),
    )


def _ranked(lists: pl.Series, most: int) -> pl.Series:
    """Each list of tags -> its most frequent tags as `tag#rank`, rank 1 the most frequent; ties: the text that sorts first."""
    frame = lists.rename("tag").to_frame().with_row_index("at")
    counted = frame.explode("tag").drop_nulls("tag").group_by("at", "tag").len()
    ranked = counted.sort("at", "len", "tag", descending=[False, True, False]).with_columns(
        rank=pl.int_range(1, pl.len() + 1).over("at")
    )
    named = ranked.filter(pl.col("rank") <= most).select("at", name=pl.format("{}#{}", "tag", "rank"))
    joined = frame.select("at").join(
        named.group_by("at", maintain_order=True).agg("name"), on="at", how="left", maintain_order="left"
    )
    return joined["name"].fill_null(pl.lit([], dtype=pl.List(pl.String))).rename(lists.name)


def _recipe(options: MindOptions) -> str:
    encoding = {"kind": "vocabulary", "min_count": options.min_count}
    return f"""\
# MIND: DIN over the clicked news. Judge it per impression: gauc is the mean of AUC, MRR and NDCG are within an impression too.
# user_id is left out: half of dev's readers are unknown to train, and the past says who they are.

[data]
samples = "samples.parquet"

[data.keys]
request = "request"
user = "user_id"
time = "time"

[data.split]
by = "column"

[[feature]]
kind = "categorical"
name = "hour"
level = "request"

[[feature]]
kind = "categorical"
name = "weekday"
level = "request"

# ---- what the reader read most: subcategory#rank, from the whole past

[[feature]]
kind = "ranked"
name = "interests"
level = "request"
max_rank = {options.interests}

{declare(("news_id",), "candidate", encoding=encoding)}{declare(("category", "subcategory"), "candidate")}\
{declare(("title_entities", "abstract_entities"), "candidate", "multivalued", encoding=encoding, table="entity")}\
# ---- the last clicks, oldest first

[[history]]
name = "clicked"
fields = ["news_id", "category", "subcategory"]
lists = {{news_id = "history", category = "history_category", subcategory = "history_subcategory"}}
max_length = {options.history}

[[task]]
name = "click"

[model]
name = "din"

[training]
epochs = 2
monitor = "gauc"
batch = {{rows = 2048}}
"""


MIND = register(
    Adapter(
        name="mind",
        options=MindOptions,
        files=("train/behaviors.tsv", "train/news.tsv", "dev/behaviors.tsv", "dev/news.tsv"),
        convert=convert,
        about="MIND, a week of news impressions with titles, entities and histories; Microsoft Research License.",
    )
)
