"""Speed on a GPU: ours in float32 and bf16, and FuxiCTR's DIN with nothing to load, taking turns; batches of several sizes.

    python benchmarks/gpu.py RESULTS.jsonl [--rounds 3] [--batches 1024,8192]

Needs what `run.py` needs, with a PyTorch that sees the GPU. The table is written beside the results, RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import run

TASKS = (("din", "A"), ("din", "R"), ("deepfm", "B"))


def of(records: list[dict[str, Any]], key: str) -> str:
    """Median, least and greatest."""
    values = [r[key] for r in records]
    middle = f"{statistics.median(values):,.0f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.0f} to {max(values):,.0f})"


def table(records: list[dict[str, Any]], device: str) -> str:
    """The Markdown page."""
    lines = [f"{device}. Median (least to greatest) of the rounds; AUC of the last one.", ""]
    lines += ["| | batch | training, rows/s | ms a step | evaluation, rows/s | test AUC |", "|---|---|---|---|---|---|"]
    for key in dict.fromkeys((r["task"], r["world"], r["who"], r["batch"]) for r in records):
        task, world, who, batch = key
        mine = [r for r in records if (r["task"], r["world"], r["who"], r["batch"]) == key]
        step = statistics.median(1e3 * batch / r["rows_per_s"] for r in mine)
        shown = f"{of(mine, 'rows_per_s')} | {step:.1f} | {of(mine, 'evaluate_rows_per_s')} | {mine[-1]['auc']:.4f}"
        lines.append(f"| {task} on {world}, {who} | {batch:,} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="1024,8192")
    asked = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here")
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    os.environ["BENCH_DEVICE"] = "cuda"
    records: list[dict[str, Any]] = []
    for seed in range(1, asked.rounds + 1):
        for task, world in TASKS:
            for batch in map(int, asked.batches.split(",")):
                os.environ["BENCH_BATCH"] = str(batch)
                for who in ("finerank", run.HALF, *(("fuxictr",) if (task, world) == ("din", "A") else ())):
                    what = run.Measurement(who, task, world, seed)
                    if (command := what.command()) is None:
                        continue
                    records.append(run.measure(what, command) | {"batch": batch})
                    print(f"{batch:6} {run.line(records[-1])}", flush=True)
                    asked.results.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
                    asked.results.with_suffix(".md").write_text(table(records, device), encoding="utf-8")


if __name__ == "__main__":
    main()
