"""`pytest --plain`: the whole suite as on a machine without a C++ compiler.

Only `pytest -m cuda` sees a GPU: all other tests compare numbers of the processor, and `device = "auto"` would take it.
"""

from __future__ import annotations

import os

import pytest

from finerank.kernels import build


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plain", action="store_true", help="as on a machine without a C++ compiler")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--plain"):
        build.COMPILERS = ()
    if config.getoption("markexpr") != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
