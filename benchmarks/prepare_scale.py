"""Memory of preparing a long log: N rows of 12 columns and a click log, both made here without holding them.

python benchmarks/prepare_scale.py 500_000 5_000_000        one line a size: rows, seconds, rows/s, anonymous MB above imports
python benchmarks/prepare_scale.py --mixed 5_000_000        rows in no order, those of a request far apart
BENCH_DATA says where files go (they are removed afterwards); each size is prepared in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
from clock import Memory, Noise, anonymous

from finerank.data.prepare import prepare
from finerank.data.samples import Keys
from finerank.runtime.hashing import uniform
from finerank.schema import Bucketed, Categorical, Growing, Hashed, History, Numeric, Schema, Task

PIECE = 500_000  # rows generated at a time
ROWS_PER_REQUEST, CLICKS = 5, 0.2
ITEMS, CATEGORIES = 1_000_000, 2_000

SCHEMA = Schema(
    features=(
        Categorical(name="user", level="request", encoding=Hashed(buckets=1 << 20)),
        Categorical(name="device", level="request"),
        Categorical(name="city", level="request"),
        Categorical(name="item", level="candidate", encoding=Growing(capacity=ITEMS)),
        Categorical(name="category", level="candidate"),
        Categorical(name="brand", level="candidate"),
        Numeric(name="price", level="candidate", transform="log1p"),
        Bucketed(name="sold", level="candidate", buckets=20),
    ),
    histories=(History(name="clicks", fields=("item", "category"), max_length=50),),
    tasks=(Task(name="click"),),
)
KEYS = Keys(request="request", user="user", time="time", sequence="place")


def generate(folder: Path, rows: int, mixed: bool) -> None:
    """samples/*.parquet of 12 columns, and events/*.parquet: what was clicked. Users and items by Zipf's law."""
    for name in ("samples", "events"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    users = max(1_000, rows // 100)
    for number, start in enumerate(range(0, rows, PIECE)):
        draw = np.random.default_rng([rows, number])
        n = min(PIECE, rows - start)
        row = start + np.arange(n)
        request = row * 7_368_787 % rows // ROWS_PER_REQUEST if mixed else row // ROWS_PER_REQUEST
        user = (users * uniform(rows, request) ** 2).astype(np.int64)  # the first ones ask most
        item = np.exp(np.log(ITEMS) * draw.random(n)).astype(np.int64)  # Zipf with exponent 1
        click = draw.random(n) < CLICKS
        frame = pl.DataFrame(
            {
                "request": request,
                "user": user,
                "time": 1_600_000_000 + request // 10,
                "place": row,
                "device": user % 7,
                "city": user * 7919 % 400,
                "item": item,
                "category": item * 31 % CATEGORIES,
                "brand": item * 17 % 30_000,
                "price": np.round(np.exp(item % 1_000 / 200), 2),
                "sold": item % 5_000,
                "click": click.astype(np.int8),
            }
        ).with_columns(
            pl.format("u{}", "user").alias("user"),
            pl.format("i{}", "item").alias("item"),
            pl.format("b{}", "brand").alias("brand"),
        )
        frame.write_parquet(folder / "samples" / f"{number:05d}.parquet")
        events = frame.filter(pl.col("click") == 1).select("user", "time", "place", "item", "category")
        events.write_parquet(folder / "events" / f"{number:05d}.parquet")


def measure(folder: Path) -> None:
    """Prepare what lies in the folder; figures as one line of JSON."""
    samples, events = (pl.scan_parquet(folder / name / "*.parquet") for name in ("samples", "events"))
    pl.DataFrame({"a": [1]}).lazy().select(pl.col("a").sum()).collect()  # its threads are up before the base is taken
    base = anonymous()
    with Memory() as memory, Noise() as noise:
        data = prepare(folder / "prepared", SCHEMA, samples, events, KEYS)
    start = time.perf_counter()
    type(data).open(folder / "prepared")
    opened = time.perf_counter() - start
    written = sum(p.stat().st_size for p in (folder / "prepared").rglob("*") if p.is_file())
    print(
        json.dumps(
            {
                "rows": data.rows,
                "events": len(data.events["clicks"]),
                "users": data.manifest["users"],
                "seconds": round(noise.seconds, 1),
                "cpu_seconds": round(time.process_time(), 1),
                "rows_per_s": round(data.rows / noise.seconds),
                "rows_per_cpu_s": round(data.rows / time.process_time()),
                "other_cpu": round(noise.other, 2),
                "base_mb": round(base / 2**20),
                "peak_mb": round(memory.megabytes),
                "prepared_gb": round(written / 1e9, 2),
                "open_ms": round(1000 * opened, 1),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    else:
        mixed = "--mixed" in sys.argv
        for rows in (int(text.replace("_", "")) for text in sys.argv[1:] if text != "--mixed"):
            folder = Path(os.environ["BENCH_DATA"]) / f"scale_{rows}"
            shutil.rmtree(folder, ignore_errors=True)
            try:
                generate(folder, rows, mixed)
                subprocess.run([sys.executable, __file__, "measure", str(folder)], check=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
