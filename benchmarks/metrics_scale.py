"""How long the metrics take: 10 million rows of a million users, one process, one thread.

python benchmarks/metrics_scale.py [rows] [users]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from finerank.evaluation.measure import HeadRows, estimates, influences
from finerank.metrics import lists
from finerank.metrics.influence import auc_influence
from finerank.metrics.precision import pr_auc
from finerank.metrics.probability import ece, logloss
from finerank.metrics.ranking import auc, gauc
from finerank.metrics.runs import rankings, runs


def main(rows: int = 10_000_000, users: int = 1_000_000) -> None:
    """Print a line per metric: CPU seconds, which other processes on the machine do not change."""
    draw = np.random.default_rng(0)
    user = draw.integers(0, users, rows)
    score = draw.normal(size=rows).astype(np.float32)
    label = (draw.random(rows) < 1 / (1 + np.exp(2.0 - score))).astype(np.float32)
    print(f"{rows:,} rows, {users:,} users, {label.mean():.3f} positive; CPU seconds of one thread:")

    def timed(name: str, run: Callable[[], object]) -> None:
        start = time.process_time()
        run()
        print(f"  {name:<44}{time.process_time() - start:8.2f}", flush=True)

    timed("AUC", lambda: auc(label, score))
    timed("AUC with clustered DeLong", lambda: auc_influence(runs("auc", label, score), user, users))
    timed("GAUC", lambda: gauc(label, score, user))
    timed("PR-AUC", lambda: pr_auc(label, score))
    timed("log loss", lambda: logloss(label, score))
    timed("ECE", lambda: ece(label, score))
    ranked = rankings(label, score, user)
    timed("rankings: the sort that lists share", lambda: rankings(label, score, user))
    timed("NDCG@10", lambda: lists.ndcg(ranked, 10))
    timed("MRR", lambda: lists.reciprocal_rank(ranked))
    timed("HR@10", lambda: lists.hit_rate(ranked, 10))
    timed("MAP@10", lambda: lists.average_precision(ranked, 10))
    timed("sampled recall@1", lambda: lists.sampled_recall(ranked, 9))
    of = HeadRows.of("sigmoid", label, score, np.ones(rows), user, user)
    timed("all fourteen, each with what every user does", lambda: influences(of))
    again = HeadRows.of("sigmoid", label, score, np.ones(rows), user, user)
    timed("all fourteen with intervals (ECE resampled)", lambda: estimates(again))


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:3]))
