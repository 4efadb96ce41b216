"""Every way to make a feature of a column makes the whole trip: encoded, batched, pooled, learnt, exported, served.

Lists of each pooling, weighted or not, of request, candidate and past event; all that may become of a rank; powers, laws
of buckets and widths by rule beside them; a history of joined text whose events have several tags each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from test_export import World, _no_traces, _one_registry, bundle_of, check_raw_values_give_the_offline_logits, trained

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.layers.embedding import Embedding
from finerank.models.composition import Needs
from finerank.schema import (
    Bucketed,
    Categorical,
    Feature,
    Hashed,
    History,
    Level,
    MultiValued,
    Numeric,
    Ranked,
    Schema,
    Task,
    field_names,
)

__all__ = ["_no_traces", "_one_registry"]  # fixtures

POOLINGS = ("sum", "mean", "max")
RANKS = ("embedded", "joint", "segments", "none")


def lists_of(level: Level, tags: str, weights: str, ranked: str) -> list[Feature]:
    """Every list feature over three columns of a level."""
    short = level[0]
    out: list[Feature] = []
    for pooling in POOLINGS:
        common = {"level": level, "pooling": pooling, "separator": "|", "table": "tags", "dim": "log2"}
        out.append(MultiValued(name=f"{short}_{pooling}", column=tags, **common))  # type: ignore[arg-type]
        out.append(MultiValued(name=f"{short}_w{pooling}", column=tags, weights=weights, **common))  # type: ignore[arg-type]
    for i, rank in enumerate(RANKS):
        out.append(
            Ranked(
                name=f"{short}_{rank}",
                level=level,
                column=ranked,
                separator="|",
                rank=rank,  # type: ignore[arg-type]
                max_rank=3,
                segments=(1, 3),
                pooling=POOLINGS[i % 3],  # type: ignore[arg-type]
                encoding=Hashed(buckets=30),
                dim="quarter:3",
            )
        )
    return out


def with_lists(frame: pl.DataFrame) -> pl.DataFrame:
    """Weights of tags, and tags with ranks as joined text, some of them empty, odd or null."""
    joined = ["t1#1|t2#2|t3#3", "t2#9|t1", None, "", "t3#2|", "t4#1|t1#3|t2#2|t4#1"]
    return frame.with_columns(
        tag_weights=pl.col("tags").list.eval(pl.int_range(pl.len()) - 0.5),
        ranked=pl.Series([joined[s % 6] for s in frame["sequence"]]),
    ).with_columns(own=pl.struct("tags", "tag_weights").map_elements(own_weights, pl.String))


def own_weights(row: Mapping[str, Sequence[object] | None]) -> str | None:
    """Tags and their weights as one text."""
    if row["tags"] is None:
        return None
    return "|".join(f"{tag}:{weight}" for tag, weight in zip(row["tags"], row["tag_weights"] or (), strict=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    samples, events = tiny.frames(70, seed=5)
    requests = samples["request"].to_list()
    samples = with_lists(samples).with_columns(
        past_tags=pl.Series([None if r % 5 == 0 else [f"t{(r + i) % 7}" for i in range(r % 4)] for r in requests]),
        past_weights=pl.Series([None if r % 5 == 0 else [i + 0.5 for i in range(r % 4)] for r in requests]),
        past_ranked=pl.Series([[f"t{r % 7}#1", "t1#2", "t3"] for r in requests]),
        past_items=pl.Series(["^".join(f"i{(r + i) % 9}" for i in range(r % 4)) for r in requests]),
        past_words=pl.Series(["^".join(["t1|t2", "", "t3|"][: r % 4]) for r in requests]),
        past_padded=pl.Series(
            [
                None if r % 5 == 0 else [f"t{(r + i) % 7}" for i in range(r % 4)] + ["none"] * (3 - r % 4)
                for r in requests
            ]
        ),
        past_moods=pl.Series(["^".join(["m1:.5|m2:-2", "", "m1:1|"][: r % 4]) for r in requests]),
    )
    features: list[Feature] = [
        Categorical(name="user", level="request", dim=5),
        *lists_of("request", "past_tags", "past_weights", "past_ranked")[1::3],
        Categorical(name="item", level="candidate", dim="dcn"),
        *lists_of("candidate", "tags", "tag_weights", "ranked"),
        MultiValued(name="words", level="event", separator="|"),
        MultiValued(name="moods", level="event", separator="|", weight_separator=":"),
        MultiValued(
            name="padded",
            level="request",
            column="past_padded",
            padding="none",
            pooling="max",
            table="tags",
            dim="log2",
        ),
        MultiValued(name="own", level="candidate", separator="|", weight_separator=":", table="tags", dim="log2"),
        Numeric(name="powers", level="candidate", column="price", transform="powers"),
        Bucketed(name="criteo", level="candidate", column="price", law="criteo"),
        Bucketed(name="width", level="candidate", column="price", law="equal_width", buckets=7, dim="log2"),
    ]
    histories = (
        History(
            name="clicks", fields=("item", "powers", "criteo", "c_wmean", "c_max", "c_segments", "own"), max_length=50
        ),
        History(
            name="past",
            fields=("item", "words", "moods"),
            lists={"item": "past_items", "words": "past_words", "moods": "past_moods"},
            separator="^",
            max_length=3,
        ),
    )
    schema = Schema(features=tuple(features), histories=histories, tasks=(Task(name="click"),))
    folder = tmp_path_factory.mktemp("world") / "data"
    events = with_lists(events)
    data = prepare(folder, schema, samples.lazy(), events.lazy(), tiny.KEYS, Split(validation=0.2, test=0.3))
    return World(data, samples, events)


@pytest.mark.parametrize("name", ["din", pytest.param("dcn", marks=pytest.mark.slow)])
def test_every_feature_makes_the_trip(name: str, world: World, tmp_path: Path) -> None:
    trainer = trained(name, world.data)
    check_raw_values_give_the_offline_logits(world, trainer, bundle_of(trainer, tmp_path / "bundle"))


def test_every_list_pools_to_what_its_row_says(world: World) -> None:
    """Row by row from the raw columns, with Python's own arithmetic."""
    data = world.data
    embed = Embedding(data.fitted, width=4, std=1.0).eval()
    batch = BatchBuilder(data, Needs()).batch(np.arange(data.requests))
    with torch.no_grad():
        found = embed(batch)
        candidates = world.samples.to_dicts()
        requests = [candidates[i] for i in data.first[:-1].tolist()]
        for block, rows, features in (
            ("request", requests, lists_of("request", "past_tags", "past_weights", "past_ranked")[1::3]),
            ("candidate", candidates, lists_of("candidate", "tags", "tag_weights", "ranked")),
        ):
            declared = [f for f in data.fitted.schema.at(block) if not isinstance(f, Numeric)]  # type: ignore[arg-type]
            assert found[block].names == tuple(name for f in declared for name in field_names(f))
            for feature in features:
                assert isinstance(feature, MultiValued | Ranked)
                for name, top in (
                    ((feature.name, None),)
                    if feature.name[2:] != "segments"
                    else (
                        (f"{feature.name}.top1", 1),
                        (f"{feature.name}.top3", 3),
                    )
                ):
                    expected = [pooled(embed, data, feature, row, top) for row in rows]
                    np.testing.assert_allclose(found[block].column(name).numpy(), expected, atol=1e-5, err_msg=name)


def test_weights_in_the_text_and_padding_change_nothing_but_the_form(world: World) -> None:
    """Weights in the text weigh like those of a column, and lists that were filled up are the lists that they were."""
    embed = Embedding(world.data.fitted, width=4, std=1.0).eval()
    batch = BatchBuilder(world.data, Needs()).batch(np.arange(world.data.requests))
    with torch.no_grad():
        found = embed(batch)
    for block, name, other in (("candidate", "own", "c_wmean"), ("request", "padded", "r_max")):
        made = found[block].column(name).numpy()
        assert made.any()
        np.testing.assert_array_equal(made, found[block].column(other).numpy())


def pooled(
    embed: Embedding, data: Dataset, feature: MultiValued | Ranked, row: dict[str, object], top: int | None
) -> np.ndarray:
    table = feature.table or feature.name
    vectors = embed.of(embed.widths[table]).table(table).numpy()
    given = row[str(feature.column)]
    values = given.split("|") if isinstance(given, str) else list(given or [])  # type: ignore[call-overload]
    weights = [1.0] * len(values)
    if isinstance(feature, MultiValued) and feature.weights:
        weights = list(row[feature.weights] or [])  # type: ignore[call-overload]
    entries = []
    for value, weight in zip(values, weights, strict=True):
        tag, rank = value, 0
        if isinstance(feature, Ranked):
            tag, _, text = value.rpartition("#") if "#" in value else (value, "", "")
            rank = int(text) if text in ("1", "2", "3") else 0
        if not tag or (top is not None and not 1 <= rank <= top):
            continue
        known = f"{tag}#{rank}" if isinstance(feature, Ranked) and feature.rank == "joint" else tag
        vector = vectors[data.encoder.tables[table].lookup(known)].copy()
        if isinstance(feature, Ranked) and feature.rank == "embedded":
            ranks = f"{feature.name}.rank"
            vector += embed.of(embed.widths[ranks]).table(ranks).numpy()[3 + rank]
        entries.append((vector * weight, abs(weight)))
    if not entries:
        return np.zeros(vectors.shape[1])
    stacked = np.array([v for v, _ in entries])
    match feature.pooling:
        case "sum":
            return stacked.sum(0)
        case "max":
            return stacked.max(0)
        case _:
            return stacked.sum(0) / sum(w for _, w in entries)


def test_events_of_joined_text_have_their_tags(world: World) -> None:
    data = world.data
    batch = BatchBuilder(data, Needs()).batch(np.arange(data.requests))
    past, columns = batch.histories["past"], data.fitted.histories["past"]
    assert [c.name for c in columns.lists] == ["words", "moods"]
    names, lists = data.encoder.tables["words"].names, past.events.lists["words"]
    tags = [[names[int(s)] for s in lists.ids[lists.segments == i, 0]] for i in range(len(lists.lengths))]
    samples = world.samples.to_dicts()
    for r in range(data.requests):
        row = samples[int(data.first[r])]
        events = torch.nonzero(past.segments == r).flatten()
        texts = row["past_words"].split("^") if row["past_items"] else []
        assert [tags[int(lists.index[t])] for t in events] == [[w for w in text.split("|") if w] for text in texts]
