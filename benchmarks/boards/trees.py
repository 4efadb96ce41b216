"""LightGBM on hand-made features of Online Retail: what a good analyst would do without any of this.

Every feature is known strictly before the request.

    product    price, category, how often sold, and in the last 30 days, days since the last and since the first sale
    customer   products and invoices so far, mean price, days since the last invoice
    both       bought of the category: how often, which share, how recently; words in common with what was bought before;
               price against the customer's mean; share of the product's sales that went to the customer's country

Settings by random search on the validation part, as many trials as the others have; early stopping on it as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl

from finerank.data.dataset import Dataset
from finerank.metrics.ranking import auc
from finerank.typed import read_toml, to_toml

DAY = 86_400_000_000
TRIALS, SEEDS = 8, 5
NUMBER = pl.int_range(1, pl.len() + 1)
"""1, 2, 3, ... of the rows of a group."""


def trees(at: Path, out: Path) -> None:
    """Search, train, and write the logits of the test rows by seed to `out`, unless they are there. at: the board's folder."""
    if (out / "found.json").exists():
        return
    data = Dataset.open(at / "bench" / "data")
    samples = pl.read_parquet(at / "raw" / "samples.parquet")
    table = features(samples, pl.read_parquet(at / "raw" / "events.parquet"))
    label = data.labels[:, 0].astype(int)
    assert np.array_equal(label, samples["bought"].to_numpy()), "the data set's rows are not in the order of the file"
    rows = {split: data.rows_of(data.requests_of(split)) for split in ("train", "validation", "test")}
    x = table.to_numpy().astype(np.float32)
    columns = {"feature_name": table.columns, "free_raw_data": False, "params": {"feature_pre_filter": False}}
    sets = {s: lightgbm.Dataset(x[r], label[r], **columns) for s, r in rows.items()}

    def fit(settings: dict[str, Any], seed: int) -> tuple[float, np.ndarray]:
        fixed = {
            "objective": "binary",
            "metric": "auc",
            "verbose": -1,
            "num_threads": 1,
            "seed": seed,
            "bagging_freq": 1,
        }
        stop = lightgbm.early_stopping(30, verbose=False)
        model = lightgbm.train(
            {**fixed, **settings}, sets["train"], 1_000, valid_sets=[sets["validation"]], callbacks=[stop]
        )
        return model.best_score["valid_0"]["auc"], np.asarray(model.predict(x[rows["test"]], raw_score=True))

    draw = np.random.default_rng(0)
    tried = []
    for _ in range(TRIALS):
        settings = {
            "learning_rate": float(10 ** draw.uniform(-2, -0.7)),
            "num_leaves": int(2 ** draw.uniform(3, 8)),
            "min_data_in_leaf": int(10 ** draw.uniform(1, 3)),
            "lambda_l2": float(10 ** draw.uniform(-2, 2)),
            "feature_fraction": float(draw.uniform(0.5, 1.0)),
            "bagging_fraction": float(draw.uniform(0.5, 1.0)),
        }
        tried.append((fit(settings, 1)[0], settings))
    best = max(tried, key=lambda t: t[0])[1]
    made = [fit(best, seed) for seed in range(1, SEEDS + 1)]
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "test.npy", np.stack([logits for _, logits in made]))
    tests = [float(auc(label[rows["test"]], logits)) for _, logits in made]
    found = {"settings": best, "trials": TRIALS, "validation": [v for v, _ in made], "test": tests}
    (out / "found.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def add_features(raw: Path) -> None:
    """The features become columns of the samples, and of the recipe as embedded buckets: for models of ids."""
    samples = pl.read_parquet(raw / "samples.parquet")
    made = features(samples, pl.read_parquet(raw / "events.parquet"))
    made = made.drop(set(made.columns) & set(samples.columns))
    pl.concat([samples, made], how="horizontal").write_parquet(raw / "samples.parquet")
    recipe = read_toml(raw / "recipe.toml")
    recipe["feature"] += [{"kind": "bucketed", "name": n, "level": "candidate", "buckets": 20} for n in made.columns]
    (raw / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")


def features(samples: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """One row per sample, in its order; nothing knows an event at or after the sample's time."""
    t = pl.col("time").dt.timestamp("us")
    rows = samples.with_row_index("row").with_columns(t=t)
    lives = samples.select("customer", "country").unique("customer")
    log = events.with_columns(t=t).sort("t").join(lives, on="customer", how="left", maintain_order="left")

    def before(by: list[str], **values: pl.Expr) -> pl.DataFrame:
        return as_of(rows, log.with_columns(**{n: v.over(by) for n, v in values.items()}), by, list(values))

    def since(frame: pl.DataFrame, column: str) -> pl.Series:
        return (rows["t"] - frame[column]) / DAY

    product = before(["product_id"], n=NUMBER, last=pl.col("t").cum_max(), first=pl.col("t").cum_min())
    sold = log.with_columns(n=NUMBER.over("product_id"))
    month = as_of(rows.with_columns(t=pl.col("t") - 30 * DAY), sold, ["product_id"], ["n"])["n"]
    customer = before(
        ["customer"], n=NUMBER, last=pl.col("t").cum_max(), paid=pl.col("price").cum_sum(),
        invoices=(pl.col("invoice") != pl.col("invoice").shift()).fill_null(value=True).cast(pl.Int64).cum_sum(),
    )  # fmt: skip
    kind = before(["customer", "category"], n=NUMBER, last=pl.col("t").cum_max())
    national = before(["product_id", "country"], n=NUMBER)
    mean_price = customer["paid"] / customer["n"]
    return pl.DataFrame(
        {
            "price": samples["price"],
            "category": samples["category"].cast(pl.Categorical).to_physical(),
            "product_sold": product["n"].fill_null(0),
            "product_sold_30_days": product["n"].fill_null(0) - month.fill_null(0),
            "product_last_sold": since(product, "last"),
            "product_age": since(product, "first"),
            "customer_products": customer["n"].fill_null(0),
            "customer_invoices": customer["invoices"].fill_null(0),
            "customer_last_seen": since(customer, "last"),
            "customer_mean_price": mean_price,
            "price_against_mean": (samples["price"] + 0.01).log() - (mean_price + 0.01).log(),
            "category_bought": kind["n"].fill_null(0),
            "category_share": kind["n"].fill_null(0) / (customer["n"].fill_null(0) + 1),
            "category_last_bought": since(kind, "last"),
            "sold_in_country_share": national["n"].fill_null(0) / (product["n"].fill_null(0) + 1),
            "words_in_common": words_in_common(rows, log),
            "hour": samples["hour"],
            "weekday": samples["weekday"],
        }
    )


def as_of(rows: pl.DataFrame, running: pl.DataFrame, by: list[str], values: list[str]) -> pl.DataFrame:
    """For every row the values of its group's last event before it, null if there is none. In the order of `row`."""
    last = running.unique([*by, "t"], keep="last", maintain_order=True).select("t", *by, *values)
    asked = rows.select("row", "t", *by).sort("t")
    joined = asked.join_asof(
        last, on="t", by=by, strategy="backward", allow_exact_matches=False, check_sortedness=False
    )  # both are sorted
    return joined.sort("row", maintain_order=True).select("row", *values)


def words_in_common(rows: pl.DataFrame, log: pl.DataFrame) -> pl.Series:
    """Mean, over the product's words, of the share of the customer's earlier products that have the word."""
    word = pl.col("words").str.split(" ").alias("word")
    heard = log.select("customer", "t", word).explode("word").with_columns(n=NUMBER.over("customer", "word"))
    asked = rows.select("row", "customer", "t", word).explode("word")
    each = (
        as_of(asked, heard, ["customer", "word"], ["n"])
        .group_by("row")
        .agg(pl.col("n").fill_null(0).mean())
        .sort("row")
    )
    total = as_of(rows, log.with_columns(n=NUMBER.over("customer")), ["customer"], ["n"])
    return each["n"] / (total["n"].fill_null(0) + 1)
