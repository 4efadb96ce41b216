"""A model over a part of its schema: fields and histories left out, while the prepared data stay as they are.

    [model]
    without = ["brand", "clicks.category", "clicks.age", "interests.rank", "carts"]

So ablations share one prepared data set, and a model whose branches read different fields (wide and deep) says so. What is
left out is cut from the schema that parts are built from, and from every batch before they see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from finerank.data.batch import Batch, TensorBlock
from finerank.errors import UserError, nearest
from finerank.schema import Columns, FittedSchema, History, Numeric, Schema, field_names


def names_of(fitted: FittedSchema) -> list[str]:
    """All that can be left out.

    feature           of the request or the candidate, and of every history that has it
    feature.top3      one segment of a ranked feature
    history           with all its fields
    history.feature   of the past alone; `history.age`: how long ago an event was
    feature.rank      of a ranked feature: its tags stay, without their ranks
    """
    owners = _owners(fitted.schema)
    out = [*_fields(fitted.request, owners), *_fields(fitted.candidate, owners)]
    out += [f"{column.name}.rank" for _, block in fitted.blocks() for column in block.lists if column.ranks]
    for name, columns in fitted.histories.items():
        out += [name, *(f"{name}.{field}" for field in _fields(columns, owners))]
    return list(dict.fromkeys(out))


class Narrowing:
    """fitted: the schema without the given names (see `names_of`). Called with a batch of the whole schema, it gives that
    of the rest. Raises UserError for a name that is not known, and where nothing would be left."""

    def __init__(self, fitted: FittedSchema, without: Sequence[str], where: str = "model.without") -> None:
        known = names_of(fitted)
        for name in without:
            if name not in known:
                raise UserError(f"{where}: {name!r} is no field or history of the schema; {nearest(name, known)}")
        gone, owners = set(without), _owners(fitted.schema)
        self.blocks = {
            name: _Cut.of(columns, gone, owners, "" if name in ("request", "candidate") else f"{name}.")
            for name, columns in fitted.blocks()
        }
        histories = {
            name: self.blocks[name].columns
            for name in fitted.histories
            if name not in gone and set(_fields(self.blocks[name].columns, owners)) - {"age"}
        }
        request, candidate = self.blocks["request"].columns, self.blocks["candidate"].columns
        if not (histories or _fields(request, owners) or _fields(candidate, owners)):
            raise UserError(f"{where}: nothing is left to learn from; leave out less than every field")
        schema = _narrowed(fitted.schema, gone, histories)
        self.fitted = replace(fitted, schema=schema, request=request, candidate=candidate, histories=histories)

    def __call__(self, batch: Batch) -> Batch:
        """The batch without what is left out."""
        kept, cut = self.fitted.histories, self.blocks
        return replace(
            batch,
            request=cut["request"](batch.request),
            candidate=cut["candidate"](batch.candidate),
            histories={n: replace(batch.histories[n], events=cut[n](batch.histories[n].events)) for n in kept},
            pairs={name: pairs for name, pairs in batch.pairs.items() if name in kept},
            negatives={name: cut[name](block) for name, block in batch.negatives.items() if name in kept},
        )


@dataclass(frozen=True)
class _Cut:
    """One block: the columns that stay, and where they stood."""

    columns: Columns
    ids: list[int]
    numbers: list[int]
    before: tuple[int, int]  # columns of ids and of numbers

    @staticmethod
    def of(columns: Columns, gone: set[str], owners: Mapping[str, str], prefix: str) -> _Cut:
        def stays(name: str) -> bool:
            if prefix and name == "age":  # the event's, not a feature of that name
                return f"{prefix}age" not in gone
            return not gone & {f"{at}{of}" for of in (name, owners.get(name, name)) for at in ("", prefix)}

        ids = [j for j, (name, _) in enumerate(columns.ids) if stays(name)]
        numbers = [j for j, name in enumerate(columns.numbers) if stays(name)]
        lists = [replace(c, ranks=None) if f"{c.name}.rank" in gone else c for c in columns.lists if stays(c.name)]
        kept = Columns(tuple(columns.ids[j] for j in ids), tuple(columns.numbers[j] for j in numbers), tuple(lists))
        return _Cut(kept, ids, numbers, (len(columns.ids), len(columns.numbers)))

    def __call__(self, block: TensorBlock) -> TensorBlock:
        def taken(t: Tensor, kept: list[int], before: int) -> Tensor:
            return t if len(kept) == before else t[:, kept]

        ids, numbers = taken(block.ids, self.ids, self.before[0]), taken(block.numbers, self.numbers, self.before[1])
        return replace(block, ids=ids, numbers=numbers, lists={c.name: block.lists[c.name] for c in self.columns.lists})


def _owners(schema: Schema) -> dict[str, str]:
    """The feature of every column that is not called as its feature is: `x?`, `x²`, `√x` of a number, `x.top3`."""
    out: dict[str, str] = {}
    for feature in schema.features:
        name = feature.name
        if isinstance(feature, Numeric):
            out |= dict.fromkeys(
                [f"{name}?", *([f"{name}²", f"√{name}"] if feature.transform == "powers" else [])], name
            )
        out |= {field: name for field in field_names(feature) if field != name}
    return out


def _fields(columns: Columns, owners: Mapping[str, str]) -> list[str]:
    """The names of a block's fields: features, and segments besides."""
    names = [name for name, _ in columns.ids] + [owners.get(name, name) for name in columns.numbers]
    for c in columns.lists:
        names += [owners.get(c.name, c.name), c.name]
    return list(dict.fromkeys(names))


def _narrowed(schema: Schema, gone: set[str], kept: dict[str, Columns]) -> Schema:
    """The declarations of what is left."""

    def narrowed(history: History) -> History:
        fields = tuple(f for f in history.fields if f not in gone and f"{history.name}.{f}" not in gone)
        columns, lists = ({f: c for f, c in of.items() if f in fields} for of in (history.columns, history.lists))
        return replace(history, fields=fields, columns=columns, lists=lists)

    features = tuple(f for f in schema.features if f.name not in gone)
    return replace(schema, features=features, histories=tuple(narrowed(h) for h in schema.histories if h.name in kept))
