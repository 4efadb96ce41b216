"""docs/metrics.md is what its generator gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_committed_page_is_the_generated_one() -> None:
    spec = importlib.util.spec_from_file_location("make_metrics_page", DOCS / "make_metrics_page.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    page = maker.page()
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == page, "run `python docs/make_metrics_page.py`"
    assert page.count("```") % 2 == 0
    assert page.count("```python") >= 15
