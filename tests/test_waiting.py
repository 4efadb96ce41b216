"""How long OpenMP's threads turn before they sleep: short, unless the environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
        ({"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "5"}, "5"),
    ],
    ids=["nothing", "turns", "policy", "both"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP comes with PyTorch on Linux")
def test_openmp_is_told_before_it_is_loaded(given: dict[str, str], turns: str) -> None:
    """By what OpenMP itself says of its settings when it is loaded."""
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    asked = plain | given | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(
        [sys.executable, "-c", "import finerank, torch"], env=asked, capture_output=True, text=True, check=True
    )
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr
