"""Symbol tables: raw values as small integers, with their names kept.

A symbol is what encoded data hold. Each table belongs to one embedding table, is append-only and never reuses a symbol:
0 padding, 1 out of vocabulary, 2 missing, from 3 on the values. Four kinds, one class each:

    vocabulary   the values of the training rows, the most frequent first
    growing      every value seen, in order of first occurrence; `extend` adds more (rows.py decides which get a row)
    hashed       3 + hash64(table, text) mod buckets: nothing to fit
    cuts         buckets of a number: 3 + how many cut points are <= x (bucketed numbers, ranks, ages)
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from finerank.errors import UserError, nearest
from finerank.runtime.hashing import hash64, hash_integers, hash_texts
from finerank.runtime.values import number
from finerank.schema import FIRST, MISSING, OOV

Int64s: TypeAlias = NDArray[np.int64]

RESERVED = ("<padding>", "<out of vocabulary>", "<missing>")
"""The names of symbols 0, 1 and 2."""


class SymbolTable(ABC):
    """What all kinds share. `table`: the name of the embedding table; `size`: symbols, the three reserved included."""

    kind: ClassVar[str]

    def __init__(self, table: str) -> None:
        self.table = table

    @property
    @abstractmethod
    def size(self) -> int:
        """How many symbols there are, the three reserved ones included."""

    @abstractmethod
    def lookup(self, text: str | None) -> int:
        """The symbol of a canonical text; None is missing."""

    def lookup_all(self, texts: Sequence[str | None]) -> Int64s:
        """`lookup` of each text: int64 [len(texts)]."""
        return np.fromiter(map(self.lookup, texts), dtype=np.int64, count=len(texts))

    def name(self, symbol: int) -> str:
        """What a symbol stands for, for people to read. Raises UserError for a symbol that is not in the table."""
        if not 0 <= symbol < self.size:
            raise UserError(f"table {self.table!r} has no symbol {symbol}; accepted: 0 to {self.size - 1}")
        return RESERVED[symbol] if symbol < FIRST else self._value_name(symbol)

    @property
    def names(self) -> list[str]:
        """The name of every symbol, by symbol."""
        return [self.name(symbol) for symbol in range(self.size)]

    @abstractmethod
    def _value_name(self, symbol: int) -> str:
        """What `name` gives for a symbol that is not reserved."""

    def save(self, folder: Path) -> None:
        """Write the table into a folder (made if need be): `table.json` and its arrays as .npy, checksums included."""
        folder.mkdir(parents=True, exist_ok=True)
        facts, arrays = self._state()
        sums = {name: _write_array(folder / f"{name}.npy", array) for name, array in arrays.items()}
        write_json(folder / "table.json", {"kind": self.kind, "table": self.table, **facts, "arrays": sums})

    @abstractmethod
    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Facts and arrays by name: what `_from_state` needs."""

    @staticmethod
    def load(folder: Path) -> SymbolTable:
        """The table that `save` wrote. Raises UserError naming the file that is missing, truncated or altered."""
        path = folder / "table.json"
        facts = read_json(path)
        kinds: dict[str, type[_Loadable]] = {c.kind: c for c in (VocabularyTable, GrowingTable, HashedTable, CutsTable)}
        if facts.get("kind") not in kinds:
            raise UserError(f"{path}: kind is {facts.get('kind')!r}; {nearest(str(facts.get('kind')), kinds)}")
        arrays = {name: _read_array(folder / f"{name}.npy", digest) for name, digest in facts["arrays"].items()}
        return kinds[facts["kind"]]._from_state(facts, arrays)


class _Loadable(SymbolTable):
    @classmethod
    @abstractmethod
    def _from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SymbolTable:
        """The table of which `_state` gave these."""


class VocabularyTable(_Loadable):
    """A fixed list of values: `texts[i]` has symbol 3 + i, any other text is out of vocabulary."""

    kind = "vocabulary"

    def __init__(self, table: str, texts: Iterable[str]) -> None:
        super().__init__(table)
        self._texts: Sequence[str] = texts if isinstance(texts, Texts) else list(texts)
        if isinstance(self._texts, list) and len(self._symbols) < len(self._texts):
            raise UserError(f"table {table!r}: a value is listed twice; each may have one symbol only")

    @cached_property
    def _symbols(self) -> dict[str, int]:
        """Made at the first lookup: training never asks, so opening a data set stays cheap."""
        return {text: FIRST + i for i, text in enumerate(self._texts)}

    @property
    def size(self) -> int:
        """How many symbols there are, the three reserved ones included."""
        return FIRST + len(self._texts)

    def lookup(self, text: str | None) -> int:
        """The symbol of a canonical text; None is missing, an unknown text out of vocabulary."""
        return MISSING if text is None else self._symbols.get(text, OOV)

    @property
    def names(self) -> list[str]:
        """The name of every symbol, by symbol."""
        return [*RESERVED, *self._texts]

    def _value_name(self, symbol: int) -> str:
        return self._texts[symbol - FIRST]

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {}, Texts.pack(self._texts)

    @classmethod
    def _from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SymbolTable:
        return cls(facts["table"], Texts(arrays["text"], arrays["offsets"]))


class GrowingTable(VocabularyTable):
    """A vocabulary that grows: old symbols stay what they are, new values are appended."""

    kind = "growing"

    def extend(self, texts: Iterable[str | None]) -> Int64s:
        """The symbol of each text (int64), new texts appended in order of first occurrence; None is missing."""
        if not isinstance(self._texts, list):
            self._texts = list(self._texts)
        found = []
        for text in texts:
            symbol = self.lookup(text)
            if text is not None and symbol == OOV:
                symbol = self.size
                self._texts.append(text)
                self._symbols[text] = symbol
            found.append(symbol)
        return np.array(found, dtype=np.int64)

    def append(self, texts: Texts) -> None:
        """Add values of which none is in the table, and none twice: `extend` in bulk."""
        old = self._texts if isinstance(self._texts, Texts) else Texts.of(self._texts)
        self._texts = old.joined(texts)
        self.__dict__.pop("_symbols", None)  # made anew at the next lookup


class HashedTable(_Loadable):
    """Symbol = 3 + hash64(table, text) mod buckets. `seen`: the values of the training rows, so that names are kept."""

    kind = "hashed"

    def __init__(self, table: str, buckets: int, seen: Sequence[str] = ()) -> None:
        super().__init__(table)
        if buckets < 1:
            raise UserError(f"table {table!r}: buckets is {buckets}; accepted: at least 1")
        self.buckets = buckets
        self.seen = seen

    @property
    def size(self) -> int:
        """How many symbols there are, the three reserved ones included."""
        return FIRST + self.buckets

    def lookup(self, text: str | None) -> int:
        """The symbol of a canonical text; None is missing."""
        return MISSING if text is None else FIRST + hash64(self.table, text) % self.buckets

    def lookup_integers(self, values: Int64s) -> Int64s:
        """`lookup` of the decimal text of each integer, without making the text."""
        return FIRST + (hash_integers(self.table, values) % np.uint64(self.buckets)).astype(np.int64)

    def values_in(self, symbol: int) -> list[str]:
        """The values of the training rows that share a symbol: more than one is a collision."""
        symbols, order = self._by_symbol
        start, end = np.searchsorted(symbols, [symbol, symbol + 1])
        return [self.seen[i] for i in order[start:end].tolist()]

    @cached_property
    def _by_symbol(self) -> tuple[Int64s, Int64s]:
        """The symbols of `seen`, ascending, and the place of each there: 16 bytes a value, made at the first question."""
        symbols = FIRST + (hash_texts(self.table, self.seen) % np.uint64(self.buckets)).astype(np.int64)
        order = np.argsort(symbols, kind="stable")
        return symbols[order], order

    def _value_name(self, symbol: int) -> str:
        return " | ".join(self.values_in(symbol)) or f"<bucket {symbol - FIRST}>"

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"buckets": self.buckets}, Texts.pack(self.seen)

    @classmethod
    def _from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SymbolTable:
        return cls(facts["table"], facts["buckets"], Texts(arrays["text"], arrays["offsets"]))


class CutsTable(_Loadable):
    """Buckets of a number: symbol 3 + i holds cuts[i-1] <= x < cuts[i]. `cuts`: ascending float64, perhaps none."""

    kind = "cuts"

    def __init__(self, table: str, cuts: Sequence[float] | NDArray[np.float64]) -> None:
        super().__init__(table)
        self.cuts = np.array(cuts, dtype=np.float64)
        if not np.isfinite(self.cuts).all() or (np.diff(self.cuts) <= 0).any():
            raise UserError(
                f"table {table!r}: cuts are {self.cuts.tolist()}; accepted: finite numbers, strictly ascending"
            )

    @property
    def size(self) -> int:
        """How many symbols there are, the three reserved ones included."""
        return FIRST + len(self.cuts) + 1

    def bucket(self, x: NDArray[np.float64]) -> Int64s:
        """The symbol of each number (float64, any shape); NaN is missing."""
        found = FIRST + np.searchsorted(self.cuts, x, side="right")
        return np.where(np.isnan(x), MISSING, found).astype(np.int64)

    def lookup(self, text: str | None) -> int:
        """The symbol of a number given as canonical text; None is missing, what is no number out of vocabulary."""
        if text is None:
            return MISSING
        try:
            x = number(text)
        except UserError:
            return OOV
        return MISSING if x is None else int(self.bucket(np.array([x]))[0])

    def _value_name(self, symbol: int) -> str:
        above = symbol - FIRST
        return f"[{self._edge(above - 1)}, {self._edge(above)})"

    def _edge(self, i: int) -> str:
        """The i-th cut; infinity before the first and after the last."""
        if not 0 <= i < len(self.cuts):
            return "-inf" if i < 0 else "inf"
        cut = float(self.cuts[i])
        short = f"{cut:g}"
        return short if cut == float(short) else repr(cut)

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {}, {"cuts": self.cuts}

    @classmethod
    def _from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SymbolTable:
        return cls(facts["table"], arrays["cuts"])


# ------------------------------------------------------------------------------------------------ files


class Texts(Sequence[str]):
    """Many texts as one UTF-8 blob and the offset of each, decoded when asked for."""

    def __init__(self, blob: NDArray[np.uint8], offsets: Int64s) -> None:
        self._blob, self._offsets = blob, offsets

    @staticmethod
    def pack(texts: Iterable[str]) -> dict[str, NDArray[Any]]:
        """The two arrays that hold the texts."""
        if isinstance(texts, Texts):
            return {"text": texts._blob, "offsets": texts._offsets}
        encoded = [text.encode() for text in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return {"text": np.frombuffer(b"".join(encoded), dtype=np.uint8), "offsets": offsets}

    @staticmethod
    def of(texts: Iterable[str]) -> Texts:
        """These texts."""
        arrays = Texts.pack(texts)
        return Texts(arrays["text"], arrays["offsets"])

    def joined(self, others: Texts) -> Texts:
        """These texts, then the others."""
        offsets = np.concatenate([self._offsets, self._offsets[-1] + others._offsets[1:]])
        return Texts(np.concatenate([self._blob, others._blob]), offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[str]:
        whole = self._blob.tobytes()
        return (whole[start:end].decode() for start, end in pairwise(self._offsets.tolist()))

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self._blob[self._offsets[i] : self._offsets[i + 1]].tobytes().decode()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that carries the checksum of its content."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, sort_keys=True)
    path.write_text(f'{{"xxh3": "{xxhash.xxh3_64_hexdigest(text.encode())}",\n"content": {text}}}\n', encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The content that `write_json` wrote. Raises UserError naming the file if it is missing or not as written."""
    raw = _read(path)
    try:
        data = json.loads(raw)
        text = json.dumps(data["content"], ensure_ascii=False, allow_nan=False, sort_keys=True)
        if data["xxh3"] == xxhash.xxh3_64_hexdigest(text.encode()) and isinstance(data["content"], dict):
            return data["content"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise _corrupt(path)


def _write_array(path: Path, array: NDArray[Any]) -> str:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    path.write_bytes(file.getbuffer())
    return xxhash.xxh3_64_hexdigest(file.getbuffer())


def _read_array(path: Path, digest: str) -> NDArray[Any]:
    content = _read(path)
    if xxhash.xxh3_64_hexdigest(content) != digest:  # so what is parsed below is what was written
        raise _corrupt(path)
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); copy the whole folder or prepare it again"
        ) from error


def _corrupt(path: Path) -> UserError:
    return UserError(
        f"{path}: truncated or altered since it was written; restore the folder from a copy or prepare it again"
    )
