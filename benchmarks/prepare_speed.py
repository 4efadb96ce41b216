"""Speed of preparing data A and B: from the raw file to what training reads, ours beside the peers.

python benchmarks/prepare_speed.py [rounds]      interleaved rounds, a fresh process per measurement; prints a table

The clock starts before the raw files are opened and stops when everything that training reads is on disk: ours in the
folder that `Dataset.open` maps, the peers' in the pickle that their `train` loads; neither is synced. Importing is left out
for all. CPU seconds stand beside, since they depend less on neighbours. "reader alone" only reads the CSV, and keeps nothing;
"polars alone" does so with Polars' reader: more than that nobody reaches who reads it with Polars. BENCH_DATA and BENCH_VENVS
as for `run.py`; without BENCH_VENVS only ours is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROWS = {"A": 400_000, "B": 500_000}
PEERS = {"fuxictr": "fuxi", "deepctr": "deepctr", "rechub": "rechub"}


def ours(world: str, kind: str) -> None:
    """One measurement: a JSON line."""
    import shutil
    from dataclasses import replace

    import numpy.ma  # noqa: F401  (Polars imports it at the first array it is given)
    import polars as pl
    from clock import folder, preparing
    from ours import BY_COLUMN, CLICKS, CRITEO

    from finerank.data.prepare import prepare
    from finerank.data.samples import PIECE
    from finerank.data.source import scan
    from finerank.kernels import build

    alone = kind in ("reader", "polars")
    build.switch(kind != "polars")
    build.library("data")  # built before the clock starts, should it be the first time
    kind = "csv" if alone else kind
    schema = CRITEO if world == "B" else CLICKS
    if kind == "csv":  # lists are joined text there
        schema = replace(schema, histories=tuple(replace(h, separator="^") for h in schema.histories))
    target = folder() / f"speed_{world}_{kind}"
    shutil.rmtree(target, ignore_errors=True)
    ids = {f.name for f in schema.features if f.kind == "categorical"}
    with preparing():
        parts = [
            scan(folder() / f"{world}_{part}.{kind}", ids).with_columns(split=pl.lit(part))
            for part in ("train", "test")
        ]
        if alone:
            for _ in pl.concat(parts).collect_batches(chunk_size=PIECE, maintain_order=True):
                pass
        else:
            prepare(target, schema, pl.concat(parts), split=BY_COLUMN)
    shutil.rmtree(target, ignore_errors=True)


def measured(command: list[str]) -> dict[str, float] | None:
    """The last line of a process's output; None, and why, if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(rounds: int) -> None:
    venvs = os.environ.get("BENCH_VENVS")
    commands = {}
    for world in ROWS:
        for kind in ("csv", "parquet"):
            commands[world, f"finerank, {kind}"] = [sys.executable, __file__, "ours", world, kind]
        for reader in ("reader", "polars"):
            commands[world, f"{reader} alone, csv"] = [sys.executable, __file__, "ours", world, reader]
        for peer, script in PEERS.items() if venvs else ():
            python = Path(str(venvs)) / f"venv_{peer}" / "bin" / "python"
            if python.exists():
                commands[world, f"{peer}, csv"] = [str(python), str(HERE / "peers" / f"{script}.py"), "prepare", world]
    if not venvs:
        print("BENCH_VENVS is not set: no peers", file=sys.stderr)
    found: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in commands}
    for _ in range(rounds):
        for key, command in commands.items():
            if (figures := measured(command)) is not None:
                found[key].append(figures)
    print("| data | who | rows/s, median (least to greatest) | rows per CPU second | anonymous memory, MB |")
    print("|---|---|---|---|---|")
    for (world, who), runs in found.items():
        if runs:
            speed = sorted(ROWS[world] / run["seconds"] for run in runs)
            per_cpu = statistics.median(ROWS[world] / run["cpu"] for run in runs)
            memory = statistics.median(run["memory_mb"] for run in runs)
            spread = f"{statistics.median(speed):,.0f} ({speed[0]:,.0f} to {speed[-1]:,.0f})"
            print(f"| {world} | {who} | {spread} | {per_cpu:,.0f} | {memory:,.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        ours(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
