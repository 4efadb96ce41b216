"""The compiled loops: built by the machine's own C++ compiler at first use, kept in the user's cache, and done without where
there is none.

Every loop has a plain twin in PyTorch's operators beside the place that calls it, and tests keep the two equal; a run
records which of them worked (`state()` goes into environment.json). The library is plain C behind ctypes: it compiles in
seconds, needs no headers of PyTorch, and shares its pool of OpenMP threads. What prepares data is a library of its own, without
threads: data are prepared where PyTorch is not imported.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import xxhash

if TYPE_CHECKING:
    import torch

Part = Literal["loops", "data"]
SOURCES: dict[Part, tuple[str, ...]] = {
    "loops": ("rows.cpp", "tower.cpp", "unit.cpp", "unit_bf16.cpp"),
    "data": ("csv.cpp", "ids.cpp", "texts.cpp"),
}
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-unknown-pragmas"),
)
THREADS: dict[Part, tuple[str, ...]] = {"loops": ("-fopenmp",), "data": ()}
WHAT: dict[Part, str] = {"loops": "the loops that train", "data": "the loops that read data"}
COMPILERS = ("g++", "c++", "clang++")
_on = True
_tell: Callable[[str], None] | None = None


def announce(to: Callable[[str], None]) -> None:
    """Whom to tell that loops are about to be compiled: that takes a while, once. Nobody, unless asked."""
    global _tell
    _tell = to


def library(part: Part = "loops") -> ctypes.CDLL | None:
    """The compiled loops; None where they are switched off or cannot be built."""
    return _built(part)[0] if _on else None


def state() -> str:
    """Which loops work, in words for a run's record."""
    return _built("loops")[1] if _on else "plain: switched off"


def switch(on: bool) -> None:
    """Use the compiled loops where they can be built (the default), or never; for the whole process."""
    global _on
    _on = on


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """`switch` for the length of a block."""
    before = _on
    switch(on)
    try:
        yield
    finally:
        switch(before)


@cache
def _built(part: Part) -> tuple[ctypes.CDLL | None, str]:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None, "plain: no C++ compiler"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finerank"
        path = folder / f"{part}-{_key(compiler, part)}.so"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            if _tell is not None:
                _tell(f"compiling {WHAT[part]} for this processor, once: this may take half a minute")
            _compile(compiler, path, part)
        return ctypes.CDLL(str(path)), f"compiled: {path.stem}"
    except subprocess.CalledProcessError as error:
        return None, f"plain: {compiler} failed with status {error.returncode}"
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:  # RuntimeError: a user without a home
        return None, f"plain: {type(error).__name__}"


def _compile(compiler: str, path: Path, part: Part) -> None:
    with (
        resources.as_file(resources.files("finerank.kernels")) as sources,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        partial, files = Path(folder) / path.name, [sources / name for name in SOURCES[part]]
        objects = [str(Path(folder) / f"{file.stem}.o") for file in files]
        flags = (*FLAGS, *THREADS[part])
        commands = [[compiler, *flags, "-c", str(f), "-o", o] for f, o in zip(files, objects, strict=True)]
        with ThreadPoolExecutor() as pool:  # side by side: each takes seconds
            list(pool.map(_run, commands))
        _run([compiler, *flags, "-shared", *objects, "-o", str(partial)])
        partial.replace(path)  # whole or not at all, also with several processes at once


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def _key(compiler: str, part: Part) -> str:
    """What the library depends on: sources, flags, compiler and the instructions of this processor."""
    hasher = xxhash.xxh3_128()
    for file in sorted(resources.files("finerank.kernels").iterdir(), key=lambda f: f.name):
        if file.name in SOURCES[part] or file.name.endswith(".h"):
            hasher.update(file.read_bytes())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    hasher.update(" ".join((*FLAGS, *THREADS[part])).encode() + version + platform.machine().encode() + _instructions())
    return hasher.hexdigest()


def has_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are fast there: not emulated."""
    if device.type == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool({b"avx512_bf16", b"amx_bf16"} & set(_instructions().split()))


def _instructions() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
