"""A file of samples in, a file of predictions out, row for row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from finerank.data.source import WRITTEN, can_write, sink
from finerank.errors import UserError
from finerank.fresh.score import ROWS, FreshScorer
from finerank.run import Run
from finerank.runtime.link import predicted


def predict_file(
    run: Run,
    samples: Path,
    events: Path | None,
    out: Path,
    rows: int = ROWS,
    advance: Callable[[int], None] = lambda rows: None,
) -> int:
    """Score a file of samples and write keys and predictions, row for row, to `out`, a kind of file that `sink` writes.

    Columns: those of the recipe's keys that the samples have (else `row`), and one per head: a probability, or a number.
    Returns the number of rows. The file is written whole or not at all.
    """
    if not can_write(out):
        raise UserError(f"{out}: cannot tell what to write from its name; accepted: {WRITTEN}")
    if out.exists():
        raise UserError(f"{out}: exists; remove it or name another file")
    given, log = run.recipe.sources_in(samples, events)
    scorer = FreshScorer(run, log)
    keys = [k for k in (run.recipe.data.keys.request, run.recipe.data.keys.user, run.recipe.data.keys.time) if k]
    heads = run.heads
    clash = [h.name for h in heads if h.name in keys]
    if clash:
        raise UserError(f"head {clash[0]!r} has the name of a key column; rename the task in the recipe")
    done = 0
    parts = out.with_name(f"{out.name}.parts")
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed here
    parts.mkdir()
    try:
        for batch in scorer.batches(given, rows, advance):
            frame, logits = batch.frame, batch.logits
            shown = frame.select(keys) if keys else pl.DataFrame({"row": np.arange(done, done + frame.height)})
            scores = [pl.Series(h.name, predicted(h.link, logits[:, i])) for i, h in enumerate(heads)]
            shown.with_columns(scores).write_parquet(parts / f"{done:015d}.parquet")
            done += frame.height
        whole = pl.scan_parquet(parts / "*.parquet")
        sink(whole, partial, out)
        partial.replace(out)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return done
