"""Every example in a docstring of the metrics runs and gives what it says; every public metric has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import finerank.metrics

MODULES = [f"finerank.metrics.{m.name}" for m in pkgutil.iter_modules(finerank.metrics.__path__)]
METRICS = {
    "finerank.metrics.ranking": ("auc", "per_group_auc", "gauc", "rela_impr"),
    "finerank.metrics.probability": (
        "logloss",
        "normalised_entropy",
        "calibration",
        "reliability",
        "ece",
        "logit",
        "downsampled",
    ),
    "finerank.metrics.lists": (
        "lists_judged",
        "ndcg",
        "hit_rate",
        "reciprocal_rank",
        "average_precision",
        "sampled_recall",
    ),
    "finerank.metrics.precision": ("pr_auc",),
    "finerank.metrics.beyond": (
        "top",
        "coverage",
        "coverage_se",
        "gini",
        "gini_influence",
        "personalisation",
        "diversity",
        "attribute_diversity",
        "novelty",
        "surprise",
        "footrule",
        "clicks_per_impression",
        "conversions_per_click",
        "amount_per_1000_impressions",
    ),
    "finerank.metrics.regression": ("rmse", "mae", "r2", "odds_loss", "pair_loss"),
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(("name", "functions"), METRICS.items(), ids=METRICS)
def test_every_metric_has_an_example(name: str, functions: tuple[str, ...]) -> None:
    module = importlib.import_module(name)
    for function in functions:
        assert ">>>" in (inspect.getdoc(getattr(module, function)) or ""), function
