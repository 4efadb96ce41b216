"""What a bundle is: its manifest, and the hashes that prove its files.

bundle/  manifest.json      heads, inputs, outputs, histories, versions, content hashes of all other files
         model.onnx         the graph; model.onnx.data: its weights
         encoder/           the fitted encoder
         rows/000.npz ...   the map from symbol to embedding row of each growing table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from finerank.errors import UserError
from finerank.runtime.inputs import Input
from finerank.runtime.link import Link
from finerank.runtime.noise import Noise
from finerank.runtime.symbols import read_json
from finerank.schema import Schema
from finerank.typed import build, plain

FORMAT = "finerank bundle 1"
MANIFEST, MODEL, ENCODER = "manifest.json", "model.onnx", "encoder"


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """One column of the logits, as `models.composition.Head` says it."""

    name: str
    task: str
    link: Link
    space: Literal["own", "entire"]
    trained: bool


@dataclass(frozen=True, kw_only=True)
class HistoryFacts:
    """What a feeder of the bundle must know of a history."""

    max_length: int
    ties: Literal["strict", "file_order"]
    fields: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Size and content hash (xxh3, 128 bits) of a file."""

    bytes: int
    xxh3: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle is.

    inputs       those that the graph kept, in order
    schema_hash  of the encoder's schema
    noise        what is drawn for each request, where scores are draws
    composition  the [model] table of the recipe, with what stages decided
    """

    format: str
    model: str
    versions: Mapping[str, str]
    schema_hash: str
    heads: tuple[HeadFacts, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    histories: Mapping[str, HistoryFacts]
    growing: tuple[str, ...]
    files: Mapping[str, FileFacts]
    noise: Noise | None = None
    composition: Mapping[str, Any] = field(default_factory=dict)


def rows_file(i: int) -> str:
    """The file of the i-th growing table's map; a table's name need not be a file's name."""
    return f"rows/{i:03d}.npz"


def schema_hash(schema: Schema) -> str:
    """A hash of everything that the schema declares."""
    return xxhash.xxh3_128_hexdigest(json.dumps(plain(schema), sort_keys=True).encode())


def file_facts(path: Path) -> FileFacts:
    """Size and hash of a file, read a piece at a time."""
    content, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            content.update(piece)
            size += len(piece)
    return FileFacts(bytes=size, xxh3=content.hexdigest())


def verified(folder: Path) -> Manifest:
    """The manifest of a bundle, every file of which was read and found as it was written.

    Raises UserError naming the file that is missing, truncated or altered.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder}: no bundle here (no {MANIFEST}); export a run first")
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format is {content.get('format')!r}, accepted: {FORMAT!r}; export the run again")
    manifest = build(Manifest, content, str(path))
    for name, facts in manifest.files.items():
        at = folder / name
        if not at.is_file():
            raise UserError(f"{at}: there is no such file; copy the whole bundle or export the run again")
        found = file_facts(at)
        if found != facts:
            what = f"has {found.bytes:,} bytes, not {facts.bytes:,}" if found.bytes != facts.bytes else "was altered"
            raise UserError(f"{at}: {what} since the bundle was written; copy it again or export the run again")
    return manifest
