"""Checkpoints as generations: a kill at any moment, or a full disk, leaves the last complete one in force.

    folder/CURRENT                 the name of the generation in force, or `none` before the first; replaced atomically
    folder/generation-000007/      complete as soon as it has this name (written as `....partial`, synced, renamed)
        state.json                 the caller's state, and the manifest: parent, chains, shapes, hash of each file
        tensors.safetensors        everything that is small or changes everywhere
        tables.safetensors         large tables written in full: the base of a chain
        rows.safetensors           large tables, only what changed since the parent: int64 row indices by table ...
        values.safetensors         ... and the new content of these rows

The order is what makes it safe: files, their folder, the folder's name, CURRENT, and only then are old generations
removed; each step is synced before the next begins. No pickle is written or read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finerank.errors import UserError, nearest

FORMAT = 1
LONGEST_CHAIN = 16
"""Generations in a chain of deltas before its table is written in full again: a load reads all of them."""

_NAME = re.compile(r"generation-(\d{6,})(\.partial)?")
_STATE = "state.json"
_TENSORS, _TABLES, _ROWS, _VALUES = (f"{part}.safetensors" for part in ("tensors", "tables", "rows", "values"))
_REMEDY = {
    errno.ENOSPC: "free some disk space and save again",
    errno.EDQUOT: "free some of the disk quota and save again",
    errno.EFBIG: "raise the limit on file sizes and save again",
    errno.EACCES: "make the folder writable or name another one",
    errno.EPERM: "make the folder writable or name another one",
    errno.EROFS: "make the folder writable or name another one",
    errno.EEXIST: "a file stands where the folder belongs: move it away or name another folder",
    errno.ENOTDIR: "a file stands where the folder belongs: move it away or name another folder",
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded generation: all tensors (tables whole), the state as saved, the step, and its folder."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    step: int
    path: Path

    def parts(self, *prefixes: str) -> dict[str, dict[str, Tensor]]:
        """The tensors by the first part of their name; "" holds those of no prefix, under their full names."""
        out: dict[str, dict[str, Tensor]] = {p: {} for p in (*prefixes, "")}
        for name, tensor in self.tensors.items():
            first, _, rest = name.partition(".")
            if first in prefixes:
                out[first][rest] = tensor
            else:
                out[""][name] = tensor
        return out


class Checkpoints:
    """The checkpoints of one run, in one folder, written by one process at a time.

    folder  made at the first save
    keep    how many generations stay loadable, the newest and its parents (2: one to fall back on by hand); what the
            row deltas of these need is kept besides
    at      called with the name of a point just before the deed, for tests that kill or fail there:
            "write"   each file of the new generation, and the text of CURRENT
            "sync"    each sync of a file or folder
            "rename"  giving the finished generation its name, and replacing CURRENT: the moment of commitment
            "prune"   removing each generation that is no longer needed

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     path = Checkpoints(run).save({"weight": torch.ones(2)}, {"epoch": 1}, step=10)
    ...     loaded = Checkpoints(run).load()
    >>> loaded.step, loaded.state, loaded.tensors["weight"].tolist()
    (10, {'epoch': 1}, [1.0, 1.0])
    """

    def __init__(self, folder: str | Path, keep: int = 2, at: Callable[[str], None] = lambda point: None) -> None:
        if keep < 1:
            raise UserError(f"checkpoints of {folder}: keep = {keep}; accepted: 1 or more")
        self.folder, self.keep, self._at = Path(folder), keep, at
        self._last: tuple[str, dict[str, Any]] | None = None  # saved or loaded by this object: name, manifest

    # ------------------------------------------------------------------------------------------------ save

    def save(
        self,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        step: int,
        rows: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Path:
        """Write a new generation, put it in force, remove what is no longer needed; returns its folder.

        tensors  by name, of any shape, dtype and device
        state    JSON-able: dicts with string keys, lists, strings, numbers (inf and nan too), booleans, None
        rows     large tables by name, as (table [V, ...], changed int64 [C]): the rows changed since the generation
                 that *this object* last saved or loaded. Where there is none, or its table had another shape, the
                 table is written in full; so it is once the changes of a chain exceed half of the table.

        Raises UserError if it cannot be written (disk full, no permission); `load` then gives a complete generation as
        before. Unless the message says that the step is saved, give the changed rows again at the next save.
        """
        rows = rows or {}
        if both := sorted(set(tensors) & set(rows)):
            raise UserError(f"checkpoint: {', '.join(both)} given in tensors and in rows; accepted: one of them")
        _check_json(state, "state")
        partial: Path | None = None
        try:
            before = self._prepare()
            name = f"generation-{1 + max(map(_number, self._folders()), default=0):06}"
            partial = self.folder / f"{name}.partial"
            manifest = self._write(partial, tensors, rows, {"step": step, "parent": before}, state)
            self._rename(partial, self.folder / name)
            self._commit(name)
        except OSError as error:
            if partial:
                shutil.rmtree(partial, ignore_errors=True)
            self._fail(f"step {step} is not saved", error)
        self._last = name, manifest
        try:
            self._prune(name)
        except OSError as error:
            self._fail(f"step {step} is saved, but an older generation cannot be removed", error)
        return self.folder / name

    def _prepare(self) -> str | None:
        """Make the folder and CURRENT, remove what a kill left over; the generation that the new one follows."""
        last = self._last[0] if self._last else None
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            self._sync(self.folder.parent)
        try:
            current = self.current()
        except UserError:
            if last is None:
                raise
            return last  # the caller loaded a generation by its name because CURRENT is of no use
        if not (self.folder / "CURRENT").exists():
            self._commit("none")  # from now on generations without a CURRENT mean that it was lost
        for path in self._folders():
            if path.suffix or (_number(path) > _number(current) and path.name != last):  # never came into force
                self._remove(path)
        return last or current

    def _write(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        rows: Mapping[str, tuple[Tensor, Tensor]],
        manifest: dict[str, Any],
        state: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write and sync the files of a generation under a name that nobody reads; its manifest, completed."""
        last = self._last[1] if self._last else {"chains": {}, "tensors": {}}
        files: dict[str, dict[str, Tensor]] = {_TENSORS: dict(tensors), _TABLES: {}, _ROWS: {}, _VALUES: {}}
        forms = {name: _form(tensor) for name, tensor in tensors.items()}
        chains: dict[str, Any] = {}
        for name, (table, given) in rows.items():
            forms[name] = _form(table)
            changed = torch.unique(given.to(table.device, torch.int64))
            chain = last["chains"].get(name, {"links": [], "changed": 0})
            total = chain["changed"] + len(changed)
            fits = chain["links"] and last["tensors"][name] == forms[name] and len(chain["links"]) < LONGEST_CHAIN
            if not fits or 2 * total > len(table):
                files[_TABLES][name] = table
                chain = {"links": [folder.stem], "changed": 0}
            elif len(changed):
                files[_ROWS][name], files[_VALUES][name] = changed, table.detach().index_select(0, changed)
                chain = {"links": [*chain["links"], folder.stem], "changed": total}
            chains[name] = chain
        folder.mkdir()
        hashes = {}
        for file, content in files.items():
            if content:
                self._at("write")
                _write_tensors(folder / file, content)
                self._sync(folder / file)
                hashes[file] = _hash(folder / file)
        manifest = {"format": FORMAT, **manifest, "chains": chains, "files": hashes, "tensors": forms}
        kept = {"manifest": manifest, "state": state}
        self._write_text(folder / _STATE, json.dumps({"xxh3_128": _hash_json(kept), **kept}))
        self._sync(folder)
        return manifest

    def _commit(self, name: str) -> None:
        """Put a generation in force."""
        self._write_text(self.folder / "CURRENT.partial", f"{name}\n")
        self._rename(self.folder / "CURRENT.partial", self.folder / "CURRENT")

    def _write_text(self, path: Path, text: str) -> None:
        self._at("write")
        path.write_text(text, encoding="utf-8")
        self._sync(path)

    def _rename(self, source: Path, target: Path) -> None:
        """Rename, and make the new name last."""
        self._at("rename")
        os.replace(source, target)
        self._sync(self.folder)

    def _sync(self, path: Path) -> None:
        """Force a file's content, or a folder's names, onto the disk."""
        self._at("sync")
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _prune(self, current: str) -> None:
        """Remove every generation but `current`, its parents up to `keep`, and what the chains of these need."""
        needed: set[str] = set()
        name: str | None = current
        try:
            for _ in range(self.keep):
                if name is not None:
                    manifest = self._kept(name)["manifest"]
                    needed.update([name], *(chain["links"] for chain in manifest["chains"].values()))
                    name = manifest["parent"]
        except UserError:
            return  # the line passes through a damaged generation: what is older may be somebody's last hope
        for path in self._folders():
            if path.name not in needed:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        self._at("prune")
        partial = path.with_suffix(".partial")
        os.replace(path, partial)  # at once, so that what bears a generation's name stays whole under a kill
        shutil.rmtree(partial)

    def _fail(self, what: str, error: OSError) -> NoReturn:
        code = error.errno or 0
        reason, remedy = os.strerror(code) if code else str(error), _REMEDY.get(code, "mend this and save again")
        raise UserError(f"checkpoint folder {self.folder}: {what}: {reason}; {remedy}") from error

    # ------------------------------------------------------------------------------------------------ load

    def load(self, generation: str | None = None) -> Checkpoint | None:
        """The generation in force, or the one named; None when nothing was saved yet.

        Every file that is needed is checked against its hash. Nothing damaged is loaded and nothing else is loaded in
        its place: a UserError names the damaged file and an intact generation to ask for, if there is one.
        """
        name = generation
        try:
            if name is None:
                name = self.current()
            elif name not in self.generations():
                raise UserError(f"{self.folder}: no generation {name!r}")
            if name is None:
                return None
            kept = self._verified(name)
        except UserError as error:
            intact = next((g for g in reversed(self.generations()) if g != name and self._is_intact(g)), None)
            remedy = (
                f"load(generation={intact!r}) is intact; to go on from it, write its name into {self.folder / 'CURRENT'}"
                if intact
                else "no other generation is intact: start anew in another folder"
            )
            raise UserError(f"{error}; {remedy}") from error
        manifest = kept["manifest"]
        folder = self.folder / name
        tensors = load_file(folder / _TENSORS) if _TENSORS in manifest["files"] else {}
        for table, chain in manifest["chains"].items():
            base, *deltas = (self.folder / link for link in chain["links"])
            tensors[table] = _tensor(base / _TABLES, table)  # a private mapping: writing to it leaves the file alone
            for delta in deltas:
                tensors[table].index_copy_(0, _tensor(delta / _ROWS, table), _tensor(delta / _VALUES, table))
        self._last = name, manifest
        ordered = {key: tensors[key] for key in manifest["tensors"]}
        return Checkpoint(ordered, kept["state"], manifest["step"], folder)

    def generations(self) -> list[str]:
        """The names of the generations in the folder, oldest first."""
        return [path.name for path in self._folders() if not path.suffix]

    def _folders(self) -> list[Path]:
        """Generations, and what is left of unfinished ones, by number."""
        found = [path for path in self.folder.glob("generation-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_number(path), path.name))

    def current(self) -> str | None:
        """The name of the generation in force; None when nothing was saved yet."""
        path = self.folder / "CURRENT"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if self.generations():
                raise UserError(f"{path}: missing, though there are generations") from None
            return None
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            self._fail("cannot be read", error)
        if text != "none" and text not in self.generations():
            raise UserError(f"{path}: names {text!r}, which is no generation here")
        return None if text == "none" else text

    def _kept(self, name: str) -> dict[str, Any]:
        """The manifest and state of a generation, checked against their own hash."""
        path = self.folder / name / _STATE
        try:
            read = json.loads(path.read_bytes())
            kept = {"manifest": read["manifest"], "state": read["state"]}
            sound, known = _hash_json(kept) == read["xxh3_128"], kept["manifest"]["format"] == FORMAT
        except FileNotFoundError:
            raise UserError(f"{path}: missing") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: damaged") from None
        if not sound:
            raise UserError(f"{path}: damaged (its content does not match its hash)")
        if not known:
            raise UserError(f"{path}: format {kept['manifest']['format']}; accepted: {FORMAT}, by this version")
        return kept

    def _verified(self, name: str) -> dict[str, Any]:
        """`_kept`, after every file that the generation needs was checked, those of its chains included."""
        kept = self._kept(name)
        needed = {name: set(kept["manifest"]["files"])}
        for chain in kept["manifest"]["chains"].values():
            for i, link in enumerate(chain["links"]):
                needed.setdefault(link, set()).update([_ROWS, _VALUES] if i else [_TABLES])
        for link, files in needed.items():
            hashes = self._kept(link)["manifest"]["files"]
            for file in sorted(files):
                path = self.folder / link / file
                if not path.is_file():
                    raise UserError(f"{path}: missing")
                if _hash(path) != hashes.get(file):
                    raise UserError(f"{path}: damaged (its content does not match its hash)")
        return kept

    def _is_intact(self, name: str) -> bool:
        try:
            self._verified(name)
        except UserError:
            return False
        return True


# ---------------------------------------------------------------------------------------------------- restore


def restore(target: nn.Module | Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy `tensors` into the parameters and buffers of a module, or into a dict of tensors, in place and strictly.

    Names, shapes and dtypes must agree exactly. Raises one UserError that lists all that does not, before anything is
    copied. `where` names the target in it, e.g. ``model`` or ``optimiser``.
    """
    into = target.state_dict() if isinstance(target, nn.Module) else target
    problems = [f"missing {name}" for name in into if name not in tensors]
    problems += [f"unexpected {name} ({nearest(name, into)})" for name in tensors if name not in into]
    for name in into:
        if name in tensors and (got := _form(tensors[name])) != (wanted := _form(into[name])):
            problems.append(f"{name} is {_words(got)}, the {where} has {_words(wanted)}")
    if problems:
        raise UserError(
            f"{where}: the checkpoint does not fit: {'; '.join(problems)}. "
            "Load it with the recipe it was trained with, or start a new run"
        )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(tensors[name])


def _words(form: Mapping[str, Any]) -> str:
    return f"{form['dtype']} {form['shape']}"


# ---------------------------------------------------------------------------------------------------- small parts


def _number(path: Path | str | None) -> int:
    match = _NAME.fullmatch(path.name if isinstance(path, Path) else path or "")
    return int(match[1]) if match else 0


def _form(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash_json(content: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


def _check_json(value: object, where: str) -> None:
    """TypeError for what would come back from JSON as something else: tuples, integer keys, NumPy numbers."""
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        for key, entry in value.items():
            _check_json(entry, f"{where}.{key}")
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            _check_json(entry, f"{where}[{i}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"{where}: {type(value).__name__} would not come back from JSON as it was: {value!r}")


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """safetensors of what may be on a device, strided, or share memory (tied weights are written twice)."""
    ready: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    try:
        save_file(ready, path)
    except SafetensorError as error:  # the library hides the number of the system's error in its text
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
