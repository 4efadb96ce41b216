"""The speed benchmark, one command: a fresh process per measurement, ours and the peers taking turns, whole epochs.

    python benchmarks/run.py RESULTS.jsonl [--rounds 3] [--our-rounds 5] [--quick] [--only din]

Every measurement is a line of RESULTS.jsonl; one that is there is not repeated, so the run can be stopped and gone on with.
At the end the table is written beside it, RESULTS.md. README.md tells what is needed and what the columns mean.

With --accuracy only test AUC counts, over as many seeds as ours has rounds: what the results have is taken, the rest is trained
(on a busy machine or not) and kept apart in RESULTS.auc.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = {"fuxictr": "fuxi", "deepctr": "deepctr", "rechub": "rechub"}
TASKS = (("din", "A"), ("din", "R"), ("deepfm", "B"), ("dcn", "B"))
BARE = {("din", "A"): "ragged,split,lazy,mallopt", ("deepfm", "B"): "merged,lazy,mallopt"}
NORMED = {"deepfm_bn": ("fuxictr", "deepctr"), "dcn_bn": ("fuxictr", "deepctr"), "din_bn": ("fuxictr",)}
HALF = "finerank bf16"
DISTURBED = 0.06  # share of the machine's CPU that others took
Record = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One process to run."""

    who: str
    task: str
    world: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.who, self.task, self.world, self.seed

    def command(self) -> list[str] | None:
        """How to run it; None where what it needs is not at hand."""
        arguments = ["train", self.task, self.world, str(self.seed)]
        if self.who == "finerank" and self.task == "vocabulary":
            return [sys.executable, str(HERE / "ours.py"), "vocabulary", self.world]
        if self.who == "finerank":
            return [sys.executable, str(HERE / "ours.py"), *arguments]
        if self.who == HALF:
            return [sys.executable, str(HERE / "ours.py"), *arguments, "bf16"] if has_bf16() else None
        venvs = os.environ.get("BENCH_VENVS")
        if venvs is None or (self.who == "fuxictr" and "FUXICTR_SRC" not in os.environ):
            return None
        if self.who == "bare":
            script = os.environ.get("BENCH_BARE")
            words = BARE[self.task, self.world]
            name = [f"{venvs}/venv_main/bin/python", str(script), self.task, "--cfg", words, "--epoch", "--reps", "1"]
            return name if script else None
        return [f"{venvs}/venv_{self.who}/bin/python", str(HERE / "peers" / f"{PEERS[self.who]}.py"), *arguments]


def plan(rounds: int, our_rounds: int, quick: bool) -> Iterator[Measurement]:
    """All measurements in their order: round by round, so that what is compared runs within minutes of each other."""
    for seed in range(1, (1 if quick else our_rounds) + 1):
        for task, world in TASKS:
            yield Measurement("finerank", task, world, seed)
            yield Measurement(HALF, task, world, seed)
            if (task, world) in BARE:
                yield Measurement("bare", task, world, seed)
            if seed <= rounds and not quick:
                yield from (Measurement(peer, task, world, seed) for peer in PEERS)
        if not quick:
            for rows in ("10000", "10000000"):
                yield Measurement("finerank", "vocabulary", rows, seed)
            for task, peers in NORMED.items():
                world = "A" if task.startswith("din") else "B"
                yield Measurement("finerank", task, world, seed)
                yield Measurement(HALF, task, world, seed)
                if seed == 1:
                    yield from (Measurement(peer, task, world, seed) for peer in peers)
        if seed == 1:
            yield Measurement("finerank", "din", "a", seed)


def accuracy_plan(seeds: int) -> Iterator[Measurement]:
    """What a table of AUC over seeds needs. Two give the same whatever the seed: once is enough for them."""
    for seed in range(1, seeds + 1):
        for task, world in (*TASKS, *((t, "A" if t.startswith("din") else "B") for t in NORMED), ("din_bn", "R")):
            for who in ("finerank", HALF, *NORMED.get(task, PEERS)):
                if seed == 1 or who != "deepctr":
                    yield Measurement(who, task, world, seed)


def has_bf16() -> bool:
    """Whether products in bf16 are fast on this machine."""
    import torch

    from finerank.kernels import build

    return build.has_bf16(torch.device(os.environ.get("BENCH_DEVICE", "cpu")))


def measure(what: Measurement, command: list[str]) -> Record:
    """Run one process to its end; its last line of output is the result."""
    with tempfile.TemporaryDirectory() as scratch:
        env = os.environ | {"BENCH_OUT": f"{scratch}/out.jsonl", "BENCH_WAIT": "1"}
        started = time.perf_counter()
        done = subprocess.run(
            command, env=env, cwd=Path(command[1]).parent, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{what}: status {done.returncode}\n{done.stderr[-2000:]}")
    found: Record = json.loads(lines[-1])
    if what.who == "bare":
        kept = {
            "rows_per_s": "rows_per_s",
            "predict_rows_per_s": "evaluate_rows_per_s",
            "auc": "auc",
            "other_cpu": "other_cpu",
        }
        found = {name: found[key] for key, name in kept.items()}
    return {"who": what.who, "task": what.task, "world": what.world, "seed": what.seed, **found, "process_s": seconds}


def line(r: Record) -> str:
    """A measurement for the screen."""
    head = f"{r['who']:13} {r['task']:10} {r['world']:8} {r['seed']}  {r['rows_per_s']:9,.0f} rows/s"
    return f"{head}  AUC {r.get('auc', 0):.4f}  others {r['other_cpu']:.0%}  {r['process_s']:.0f} s"


# ---------------------------------------------------------------------------------------------------- the table


def machine() -> str:
    """One line about where this ran."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        model = next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
        wide = "AVX-512" if " avx512f" in text else "AVX2" if " avx2" in text else "no AVX2"
        half = ", bf16" if "avx512_bf16" in text or "amx_bf16" in text else ", no bf16"
    except (OSError, StopIteration):
        model, wide, half = platform.processor(), "", ""
    import torch

    versions = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores, {model} ({wide}{half}), {versions}"


def spread(values: list[float], form: str = "{:,.0f}") -> str:
    """Median (least to greatest)."""
    if not values:
        return ""
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def ratios(ours: list[Record], theirs: list[Record], key: str) -> list[float]:
    """Ours over theirs, paired by round."""
    found = {r["seed"]: r[key] for r in theirs if r.get(key)}
    return [r[key] / found[r["seed"]] for r in ours if r["seed"] in found]


def table(records: list[Record]) -> str:
    """The whole report as markdown."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        groups[r["task"], r["world"]][r["who"]].append(r)
    out = [machine(), ""]
    for (task, world), of in groups.items():
        if task == "vocabulary" or world == "a":
            continue
        ours, half = of.get("finerank", []), of.get(HALF, [])
        out += [f"### {task} on {world}", ""]
        out.append(
            "| | training, rows/s | ours over it | our bf16 over it | evaluation, rows/s | ours over it | test AUC "
            "| memory, MB | first step, s |"
        )
        out.append("|---|---|---|---|---|---|---|---|---|")
        for who, found in of.items():
            star = "*" if any(r["other_cpu"] > DISTURBED for r in found) else ""
            aucs = [r["auc"] for r in found]
            error = f" ± {statistics.stdev(aucs) / len(aucs) ** 0.5:.4f}" if len(aucs) > 1 else ""
            cells = [
                f"{who} ({len(found)}){star}",
                spread([r["rows_per_s"] for r in found]),
                "" if who == "finerank" else spread(ratios(ours, found, "rows_per_s"), "{:.2f}"),
                "" if who == HALF else spread(ratios(half, found, "rows_per_s"), "{:.2f}"),
                spread([r["evaluate_rows_per_s"] for r in found]),
                "" if who == "finerank" else spread(ratios(ours, found, "evaluate_rows_per_s"), "{:.2f}"),
                f"{statistics.mean(aucs):.4f}{error}",
                spread([r["training_memory_mb"] for r in found if "training_memory_mb" in r]),
                spread([r["first_s"] for r in found if "first_s" in r], "{:.2f}"),
            ]
            out.append(f"| {' | '.join(cells)} |")
        out.append("")
    small, large = (groups["vocabulary", rows].get("finerank", []) for rows in ("10000", "10000000"))
    if small and large:
        slower = [1 / x for x in ratios(large, small, "median_rows_per_s")]
        out += [
            f"Time of a step, a vocabulary of 10 million rows over one of 10 thousand: {spread(slower, '{:.2f}')}.",
            "",
        ]
    tenth, whole = groups["din", "a"].get("finerank", []), groups["din", "A"].get("finerank", [])
    if tenth and whole:
        mb = (spread([r["training_memory_mb"] for r in rows]) for rows in (tenth, whole))
        out += ["Anonymous memory of DIN in training, MB: {} with 40,000 rows, {} with 400,000.".format(*mb), ""]
    out.append(f"`*`: in some measurement other processes took more than {DISTURBED:.0%} of the machine.")
    return "\n".join(out) + "\n"


def accuracy(records: list[Record]) -> str:
    """Test AUC as markdown: mean ± standard error over seeds, and ours less the best peer's in standard errors of both.

    torch-rechub always normalises by batch, and so stands in the rows of that.
    """
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in sorted(records, key=lambda r: (r["world"], r["seed"])):
        if "auc" in r and r["world"] in "ABR":
            task = f"{r['task']}_bn" if r["who"] == "rechub" else r["task"]
            groups[task, r["world"]][r["who"]].append(r["auc"])
    names = ["finerank", HALF, *PEERS]
    out = ["| | " + " | ".join(names) + " | ours less the best peer's |", "|---|" + "---|" * (len(names) + 1)]
    for (task, world), of in groups.items():
        means = {
            who: (statistics.mean(v), statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0)
            for who, v in of.items()
        }
        cells = [f"{means[w][0]:.4f} ± {means[w][1]:.4f} ({len(of[w])})" if w in of else "" for w in names]
        peers = [w for w in PEERS if w in of]
        verdict = ""
        if peers and "finerank" in of:
            (ours, mine), (best, theirs) = means["finerank"], max(means[w] for w in peers)
            error = (mine**2 + theirs**2) ** 0.5
            verdict = f"{ours - best:+.4f}" + (f", {abs(ours - best) / error:.1f} standard errors" if error else "")
        out.append(f"| {task} on {world} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(out) + "\n"


def stored(at: Path) -> list[Record]:
    """The measurements of a file, none if it is not there."""
    return [json.loads(line) for line in at.read_text().splitlines()] if at.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="of the peers")
    parser.add_argument("--our-rounds", type=int, default=5, help="of finerank and the bare loop")
    parser.add_argument("--quick", action="store_true", help="one round, without peers")
    parser.add_argument("--accuracy", action="store_true", help="test AUC over seeds instead")
    parser.add_argument("--only", help="a task: din, deepfm, dcn, vocabulary")
    given = parser.parse_args()
    if "BENCH_DATA" not in os.environ:
        parser.error("BENCH_DATA is not set: the folder with the generated data; see benchmarks/README.md")
    at: Path = given.results
    records = stored(at)
    wanted, report = plan(given.rounds, given.our_rounds, given.quick), table
    if given.accuracy:
        at, wanted, report = at.with_suffix(".auc.jsonl"), accuracy_plan(given.our_rounds), accuracy
        records += stored(at)
    done = {(r["who"], r["task"], r["world"], r["seed"]) for r in records}
    for what in wanted:
        command = what.command()
        if what.key in done or (given.only and not what.task.startswith(given.only)):
            continue
        if command is None:
            print(f"left out: {what} (see README.md for what it needs)", flush=True)
            continue
        try:
            found = measure(what, command)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            continue
        records.append(found)
        with at.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(time.strftime("%H:%M:%S"), line(found), flush=True)
        at.with_suffix(".md").write_text(report(records))


if __name__ == "__main__":
    main()
