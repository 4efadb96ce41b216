"""`pytest --plain`: the whole suite as on a machine without a C++ compiler."""

from __future__ import annotations

import pytest

from finerank.kernels import build


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plain", action="store_true", help="as on a machine without a C++ compiler")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--plain"):
        build.COMPILERS = ()
