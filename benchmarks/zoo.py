"""Every model that a peer's release offers and runs, side by side: some steps each, one command.

    python benchmarks/zoo.py RESULTS.jsonl [--rounds 3] [--only afm,ffm] [--who finerank,deepctr]

A fresh process per measurement, ours and the peers taking turns within a round; what is in RESULTS.jsonl is not measured again.
The table is written beside it, RESULTS.md, and `--table` writes it without measuring. README.md tells what is needed.

Data F: the 26 id columns of data B. Its numbers are left out: FuxiCTR embeds and pairs them, the others do not, so only without
them do all do the same work. Data M: F with a second label, the first where I1 is above its least value. A: histories.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run import HERE, PEERS, Record, machine, spread

OURS = "finerank"
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {  # data, and the peers that have it
    "lr": ("F", ("fuxictr",)),
    "fm": ("F", ("fuxictr",)),
    "ffm": ("F", ("fuxictr",)),
    "fwfm": ("F", ("fuxictr",)),
    "wide_deep": ("F", ("fuxictr", "deepctr", "rechub")),
    "pnn": ("F", ("fuxictr", "deepctr")),
    "nfm": ("F", ("fuxictr", "deepctr")),
    "afm": ("F", ("fuxictr", "deepctr")),
    "xdeepfm": ("F", ("fuxictr", "deepctr")),
    "autoint": ("F", ("fuxictr", "deepctr", "rechub")),
    "fibinet": ("F", ("fuxictr", "deepctr", "rechub")),
    "dcn_v2": ("F", ("fuxictr", "deepctr", "rechub")),
    "dcn_mix": ("F", ("fuxictr", "deepctr", "rechub")),
    "fgcnn": ("F", ("fuxictr",)),
    "deep_crossing": ("F", ("fuxictr",)),
    "dien": ("A", ("deepctr",)),
    "dien_aux": ("A", ("deepctr", "rechub")),
    "bst": ("A", ("rechub",)),
    "shared_bottom": ("M", ("deepctr", "rechub")),
    "mmoe": ("M", ("deepctr", "rechub")),
    "ple": ("M", ("deepctr", "rechub")),
    "esmm": ("M", ("deepctr", "rechub")),
    "aitm": ("M", ("rechub",)),
}
LEFT_OUT = (
    "torch-rechub's AFM: it attends over the one vector that all pairs are summed to, so no pair has a weight",
    "torch-rechub's DeepFFM: a network over the products, which no model here is",
    "DeepCTR-Torch's OPNN: a number a pair, which is neither of the paper's forms",
    "FuxiCTR's DIEN, BST and models of several tasks: data and files of their own, not at hand",
    "FuxiCTR's SIM: its release reads data that only its own loader makes",
    "torch-rechub's DIEN without an auxiliary loss: it always has one",
)


def command(who: str, model: str, seed: int) -> list[str] | None:
    """How to measure it; None where what it needs is not at hand."""
    arguments = ["steps", model, MODELS[model][0], str(seed)]
    if who == OURS:
        return [sys.executable, str(HERE / "ours.py"), *arguments]
    venvs = os.environ.get("BENCH_VENVS")
    if venvs is None or (who == "fuxictr" and "FUXICTR_SRC" not in os.environ):
        return None
    return [f"{venvs}/venv_{who}/bin/python", str(HERE / "peers" / f"{PEERS[who]}.py"), *arguments]


def measure(who: str, model: str, seed: int, words: list[str]) -> Record:
    """Run one process to its end; its last line of output is the result, or why there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(words, cwd=scratch, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: Record = {"who": who, "model": model, "seed": seed}
    if done.returncode or not lines:
        return found | {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]}
    return found | json.loads(lines[-1])


def over(ours: list[Record], peers: dict[str, list[Record]], key: str) -> list[float]:
    """Ours over the fastest peer of each round."""
    out = []
    for mine in ours:
        theirs = [r[key] for found in peers.values() for r in found if r["seed"] == mine["seed"]]
        if theirs:
            out.append(mine[key] / max(theirs))
    return out


def table(records: list[Record]) -> str:
    """The report as markdown: a row a model; a peer's cell is rows a second · MB."""
    out = [machine(), ""]
    out.append(
        "| model | finerank, rows/s | FuxiCTR | DeepCTR-Torch | torch-rechub | ours over the fastest | the same in CPU time "
        "| our memory, MB | least of the peers |"
    )
    out.append("|---|---|---|---|---|---|---|---|---|")
    failures = []
    for model, (_, names) in MODELS.items():
        of = {who: [r for r in records if (r["model"], r["who"]) == (model, who)] for who in (OURS, *names)}
        failures += [
            f"{who} {model}: {found[-1]['failed']}" for who, found in of.items() if found and "failed" in found[-1]
        ]
        of = {who: [r for r in found if "failed" not in r] for who, found in of.items()}
        ours = of.pop(OURS)
        if not ours:
            continue
        memory = {who: statistics.median(r["memory_mb"] for r in found) for who, found in of.items() if found}
        cells = [f"{model} ({len(ours)})", spread([r["rows_per_s"] for r in ours])]
        for who in PEERS:
            rate = spread([r["rows_per_s"] for r in of.get(who, [])]).split(" ")[0]
            cells.append(f"{rate} · {memory[who]:,.0f}" if who in memory else "")
        cells += [spread(over(ours, of, key), "{:.2f}") for key in ("rows_per_s", "rows_per_cpu_s")]
        cells.append(spread([r["memory_mb"] for r in ours]).split(" ")[0])
        cells.append(f"{min(memory.values()):,.0f}" if memory else "")
        out.append(f"| {' | '.join(cells)} |")
    out += ["", "Failed:", *(f"- {line}" for line in failures)] if failures else []
    out += ["", "Not compared:", "", *(f"- {line}" for line in LEFT_OUT)]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="models, joined by commas")
    parser.add_argument("--who", help="finerank, fuxictr, deepctr, rechub, joined by commas")
    parser.add_argument("--table", action="store_true", help="write the table of what is there")
    given = parser.parse_args()
    if "BENCH_DATA" not in os.environ:
        parser.error("BENCH_DATA is not set: the folder with the generated data; see benchmarks/README.md")
    at: Path = given.results
    records: list[Record] = [json.loads(line) for line in at.read_text().splitlines()] if at.exists() else []
    done = {(r["who"], r["model"], r["seed"]) for r in records}
    wanted = given.only.split(",") if given.only else list(MODELS)
    whose = given.who.split(",") if given.who else [OURS, *PEERS]
    todo = [
        (who, model, seed)
        for seed in range(1, given.rounds + 1)
        for model in wanted
        for who in (OURS, *MODELS[model][1])
        if who in whose and (who, model, seed) not in done
    ]
    for who, model, seed in [] if given.table else todo:
        words = command(who, model, seed)
        if words is None:
            print(f"left out: {who} {model} (see README.md for what it needs)", flush=True)
            continue
        found = measure(who, model, seed, words)
        records.append(found)
        with at.open("a") as file:
            file.write(json.dumps(found) + "\n")
        result = found.get("failed") or f"{found['rows_per_s']:9,.0f} rows/s  {found['memory_mb']:6,.0f} MB"
        at.with_suffix(".md").write_text(table(records))
        print(time.strftime("%H:%M:%S"), f"{who:9} {model:14} {seed}", result, flush=True)
    at.with_suffix(".md").write_text(table(records))


if __name__ == "__main__":
    main()
