"""Huge pages: what the kernel says of a table's memory, and that the table does not notice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from finerank.kernels import pages
from finerank.kernels.pages import HUGE, in_huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _advised(address: int) -> bool:
    """Whether the mapping that holds this address is advised to lie in huge pages (`hg` of its flags)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    return False


@pytest.mark.skipif(not SETTING.exists(), reason="no transparent huge pages here")
def test_whole_huge_pages_of_a_large_tensor_are_advised() -> None:
    large = in_huge_pages(torch.empty(3 * HUGE // 4, dtype=torch.float32))
    first_whole = -(-large.data_ptr() // HUGE) * HUGE
    assert _advised(first_whole)
    large.normal_()
    assert bool(large.isfinite().all())


@pytest.mark.parametrize("tensor", [torch.arange(5), torch.empty(0), torch.empty(1 << 22, device="meta")])
def test_what_fills_no_huge_page_is_left_alone(tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *_: pytest.fail("advised"))
    assert in_huge_pages(tensor) is tensor


def test_other_systems_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pages._madvise.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    try:
        large = torch.empty(HUGE)
        assert in_huge_pages(large) is large
    finally:
        pages._madvise.cache_clear()
