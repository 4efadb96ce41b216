"""The items on a plane, as one user's request sees them: where they lie by their embedding, coloured by their score.

After DIN (section 6.7), with principal components in place of t-SNE: nothing to tune, and the share of the variance that
the plane keeps is known and shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from finerank.errors import UserError, nearest
from finerank.explain.past import batch_of, head_of
from finerank.models.composition import Model
from finerank.runtime.link import predicted
from finerank.schema import FIRST
from finerank.training.loop import Trainer


@dataclass(frozen=True)
class Spot:
    """One value: its name, its place, its score for the request, its group (another field's value) and its count."""

    name: str
    x: float
    y: float
    score: float
    group: str
    count: int


@dataclass(frozen=True)
class EmbeddingMap:
    """The most frequent values of a field. kept: the share of the variance in the plane."""

    field: str
    kept: float
    spots: tuple[Spot, ...]


def embedding_map(
    trainer: Trainer, field: str, request: int, group: str | None = None, top: int = 300, head: str | None = None
) -> EmbeddingMap:
    """The plane of a candidate id field's table, its values scored for one request as they were last offered.

    group  a second candidate id field whose value labels each spot (a category); default none
    head   which of the model's heads scores them; default the first
    """
    data = trainer.dataset
    _, h = head_of(trainer.model, head)
    names = [name for name, _ in data.fitted.candidate.ids]
    for given in (field, group):
        if given is not None and given not in names:
            raise UserError(f"no candidate id field {given!r}; {nearest(given, names)}")
    j = names.index(field)
    table = data.fitted.candidate.ids[j][1]
    end = int(data.first[request + 1])
    symbols = np.asarray(data.candidate.ids[:end, j]).astype(np.int64)
    count = np.bincount(symbols, minlength=data.encoder.tables[table].size)
    last = np.full(len(count), -1)
    np.maximum.at(last, symbols, np.arange(end))
    frequent = np.argsort(-count, kind="stable")
    frequent = frequent[(frequent >= FIRST) & (count[frequent] > 0)][:top]
    if len(frequent) < 3:
        raise UserError(f"field {field!r} has {len(frequent)} values up to this request; a map wants three or more")
    batch = batch_of(trainer.builder, request, last[frequent])
    trainer.model.eval()
    with torch.inference_mode():
        logits = trainer.model(batch.to(trainer.device)).logits[:, h].cpu().numpy()
    scores = predicted(trainer.model.heads[h].link, logits)
    vectors = table_vectors(trainer.model, table)
    rows = frequent
    if table in trainer.row_maps:
        rows = trainer.row_maps[table].rows_of(frequent)
    centred = vectors[rows] - vectors[rows].mean(axis=0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ axes[:2].T
    if plane.shape[1] < 2:
        plane = np.concatenate([plane, np.zeros((len(plane), 1))], axis=1)
    groups = [""] * len(frequent)
    if group is not None:
        k = names.index(group)
        of = data.encoder.tables[data.fitted.candidate.ids[k][1]]
        groups = [of.name(int(s)) for s in data.candidate.ids[last[frequent], k]]
    label = data.encoder.tables[table]
    return EmbeddingMap(
        field,
        float((spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-30)),
        tuple(
            Spot(label.name(int(s)), float(p[0]), float(p[1]), float(q), g, int(count[s]))
            for s, p, q, g in zip(frequent, plane, scores, groups, strict=True)
        ),
    )


def table_vectors(model: Model, table: str) -> np.ndarray:
    """float32 [rows, D]: the embedding table of this name, first-order weights aside."""
    first_order = model.first_order()
    for name, tables in model.embeddings().items():
        if name not in first_order and table in tables.sizes:
            return tables.table(table).cpu().numpy()
    raise UserError(f"the model embeds no table {table!r}; a linear model has weights, not vectors")
