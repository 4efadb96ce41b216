"""MovieLens 1M and 20M as click-through data: will the user rate this movie highly?

F. M. Harper, J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.

Every rating is a row; whoever rated, chose to see: it is no log of impressions. The label is the rating, cut as DIN (G. Zhou
et al., KDD 2018) or AutoInt (W. Song et al., CIKM 2019) cut it. The history is all that the user rated strictly before,
liked or not, with genres and the rating itself; the paper does not say whether DIN's holds liked movies alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, published, register
from finerank.datasets.raw import MALFORMED, Columns, commented, fields, find, lines, marked, raw_lines, sound, told
from finerank.errors import UserError
from finerank.runtime.hashing import hash_integers, mix

Label = Literal["at_least_4", "without_3"]
UNRATED = "(no genres listed)"
DIN_TEST_USERS = 38_493 / 138_493


@dataclass(frozen=True, kw_only=True)
class Options:
    """The protocol's choices, of MovieLens 1M.

    label             at_least_4 (default): positive from 4 up, as DIN · without_3: positive above 3, negative below, 3 makes
                      no row (it stays an event), as AutoInt
    split             time (default): the last ratings are for test · user: whole users · random: single rows, as AutoInt; then
                      a row's neighbours in the history are rows of test
    validation, test  shares
    seed              of the random split and of the users'
    longest           ratings of a history, the newest
    """

    label: Label = "at_least_4"
    split: Literal["time", "user", "random"] = "time"
    validation: float = 0.1
    test: float = 0.1
    seed: int = 1
    longest: int = 50

    def __post_init__(self) -> None:
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1) or self.longest < 1:
            raise UserError(
                f"movielens: validation = {self.validation}, test = {self.test}, longest = {self.longest}; accepted: "
                "shares above 0 that leave some rows for training, and a length of at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Options20M(Options):
    """The protocol's choices, of MovieLens 20M; see `Options`. The default is DIN's: 38,493 of 138,493 users for test."""

    split: Literal["time", "user", "random"] = "user"
    validation: float = 0.02
    test: float = DIN_TEST_USERS


def convert_1m(folder: Path, options: Options) -> Converted:
    """See `Adapter.convert`. Fields are separated by `::`; movies.dat is latin-1."""
    user: Columns = {"gender": pl.String, "age": pl.String, "occupation": pl.String, "zip": pl.String}
    ratings = fields(find(folder, "ratings.dat"), RATING, "::")
    users = fields(find(folder, "users.dat"), {"user_id": pl.Int64, **user}, "::")
    movies = pl.LazyFrame({"line": [line.decode("latin-1").strip() for line in raw_lines(find(folder, "movies.dat"))]})
    movies = movies.filter(pl.col("line") != "")
    return _convert(ratings, _movies(movies, r"^(\d+)::.*::([^:]*)$"), users, options, tuple(user), "1M")


def convert_20m(folder: Path, options: Options20M) -> Converted:
    """See `Adapter.convert`. Files with a header; titles with commas are quoted."""
    columns: Columns = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}
    ratings = fields(find(folder, "ratings.csv"), columns, header=True).rename(dict(zip(columns, RATING, strict=True)))
    movies = lines(find(folder, "movies.csv")).slice(1)
    return _convert(ratings, _movies(movies, r"^(\d+),.*,([^,]*)$"), None, options, (), "20M")


RATING: Columns = {
    "user_id": pl.Int64,
    "movie_id": pl.Int64,
    "rating": pl.Float64,
    "time": pl.Int64,
}


def _movies(movies: pl.LazyFrame, pattern: str) -> pl.LazyFrame:
    """movie_id and genres ("Drama|War"; null for none). The title is what stands between, whatever it holds."""
    genres = pl.col("line").str.extract(pattern, 2)
    return movies.select(
        movie_id=pl.col("line").str.extract(pattern, 1).cast(pl.Int64, strict=False),
        genres=genres.replace([UNRATED, ""], None),
        fault=pl.when(genres.is_null()).then(pl.lit(MALFORMED)),
    )


def _convert(
    ratings: pl.LazyFrame,
    movies: pl.LazyFrame,
    users: pl.LazyFrame | None,
    options: Options,
    user: tuple[str, ...],
    size: str,
) -> Converted:
    ratings = marked(ratings, MALFORMED, ~pl.col("rating").is_between(0.5, 5))
    counts = told(ratings, "ratings") | told(movies, "movies") | ({} if users is None else told(users, "users"))
    events = sound(ratings).collect().sort("time", "user_id", maintain_order=True)
    if not events.height:
        raise UserError(
            f"movielens: no rating of {counts['ratings: read']} lines could be read; is this the right file?"
        )
    movie = sound(movies).collect().unique("movie_id", keep="last")
    events = events.join(movie, on="movie_id", how="left", maintain_order="left")
    if missing := events.join(movie, on="movie_id", how="anti").height:
        counts["ratings of a movie that movies does not have (kept, without genres)"] = missing
    samples = events.with_columns(label=(pl.col("rating") >= 4).cast(pl.Int8))
    if users is not None:
        samples = samples.join(
            sound(users).collect().unique("user_id", keep="last"), on="user_id", how="left", maintain_order="left"
        )
        if strangers := samples["gender"].null_count():
            counts["ratings of a user that users does not have (kept, without attributes)"] = strangers
    if options.label == "without_3":
        # half stars: AutoInt's data have none; below 3 and above 3 as it says
        undecided = samples.filter(pl.col("rating") == 3).height
        samples = samples.filter(pl.col("rating") != 3).with_columns(label=(pl.col("rating") > 3).cast(pl.Int8))
        counts["ratings of 3 (events, no rows)"] = undecided
    samples = samples.drop("rating")
    split = f'by = "time"\nvalidation = {options.validation}\ntest = {options.test}'
    if options.split != "time":
        split = 'by = "column"\ncolumn = "split"'
        samples = samples.with_columns(_split(samples, options))
    counts["rows"] = samples.height
    counts["positive"] = int(samples["label"].sum())
    notes = [
        f"label {options.label}, split by {options.split}; history: everything rated strictly before, liked or not"
    ]
    if options.split == "random":
        notes.append(
            "a random split trains on ratings later than those of the test; a server cannot, so expect less of one"
        )
    recipe = commented(f"Deep Interest Network on MovieLens {size}.")
    # of a user whom training never saw, the id says nothing
    known = user if options.split == "user" else ("user_id", *user)
    features = "".join(REQUEST_FEATURE.replace("@", name) for name in known)
    return Converted(
        samples=samples,
        events=events,
        recipe=recipe
        + RECIPE.replace("@split", split).replace("@features", features).replace("@longest", str(options.longest)),
        models=published("movielens_20m") if size == "20M" else None,
        counts=counts,
        notes=tuple(notes),
    )


def _split(samples: pl.DataFrame, options: Options) -> pl.Series:
    """The part of each row: exact shares of the users, or of the rows, in an order by hash."""
    rows = pl.int_range(samples.height, eager=True)
    unit = samples["user_id"] if options.split == "user" else rows
    names = unit.unique().sort()
    place = pl.Series(hash_integers(f"split {mix(options.seed)}", names.to_numpy())).rank("ordinal") - 1
    test = max(1, round(options.test * len(names)))
    validation = test + max(1, round(options.validation * len(names)))
    part = pl.select(
        pl.when(place < test)
        .then(pl.lit("test"))
        .when(place < validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    ).to_series()
    chosen = pl.DataFrame({"unit": names, "split": part})
    return unit.rename("unit").to_frame().join(chosen, on="unit", how="left", maintain_order="left")["split"]


REQUEST_FEATURE = """[[feature]]
kind = "categorical"
name = "@"
level = "request"

"""

RECIPE = """
[data]
samples = "samples.parquet"
events = "events.parquet"

[data.keys]
user = "user_id"
time = "time"

[data.split]
@split

@features[[feature]]
kind = "categorical"
name = "movie_id"
level = "candidate"

[[feature]]
kind = "multivalued"
name = "genres"
level = "candidate"
separator = "|"
pooling = "mean"

[[feature]]
kind = "categorical"
name = "rating"
level = "event"

[[history]]
name = "rated"
fields = ["movie_id", "genres", "rating"]
max_length = @longest

[[task]]
name = "label"

[model]
name = "din"

[training]
epochs = 3
patience = 1
monitor = "auc"
"""

_LICENCE = (
    "GroupLens, University of Minnesota: for research, no redistribution and no commercial use without permission."
)

register(
    Adapter(
        name="movielens_1m",
        options=Options,
        files=("ratings.dat", "users.dat", "movies.dat"),
        convert=convert_1m,
        about=f"A million ratings of 3,900 movies, 2000-2003. {_LICENCE}",
    )
)
register(
    Adapter(
        name="movielens_20m",
        options=Options20M,
        files=("ratings.csv", "movies.csv"),
        convert=convert_20m,
        about=f"Twenty million ratings of 27,000 movies, 1995-2015. {_LICENCE}",
    )
)
