"""The batched repeats of benchmarks/mmoe_synthetic.py are the models themselves, each trained alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from finerank.data.batch import Batch
from finerank.models.composition import Model
from finerank.runtime.blocks import Block

WIDTH = 6


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "mmoe_synthetic.py"
    spec = importlib.util.spec_from_file_location("mmoe_synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mmoe_synthetic"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def batch_of(x: torch.Tensor, y: torch.Tensor) -> Batch:
    rows = len(x)
    nothing = torch.zeros(rows, 0, dtype=torch.int64)
    return Batch(
        request=Block(nothing, torch.zeros(rows, 0)),
        candidate=Block(nothing, x),
        request_of=torch.arange(rows),
        histories={},
        labels=y,
        weights=torch.ones_like(y),
    )


@pytest.mark.parametrize("name", ["shared bottom", "OMoE", "MMoE"])
def test_repeats_in_one_network_are_models_trained_alone(name: str, script: ModuleType) -> None:
    torch.manual_seed(0)
    models: list[Model] = [script.model_of(script.MODELS[name], WIDTH) for _ in range(3)]
    together = script.Repeats(models)
    laws = script.Laws.of(3, 0.5, WIDTH)
    adam = torch.optim.Adam(together.parameters(), 0.01)
    alone = [torch.optim.Adam(m.parameters(), 0.01) for m in models]
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x, y = laws.rows(7, generator)
        adam.zero_grad()
        losses = together.losses(x, y)
        losses.sum().backward()
        adam.step()
        for b, (model, optimiser) in enumerate(zip(models, alone, strict=True)):
            batch = batch_of(x[b], y[b])
            optimiser.zero_grad()
            loss = sum(model.losses(batch, model(batch)).values(), torch.zeros(()))
            assert float(losses[b].detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    x, _ = laws.rows(4, generator)
    for b, model in enumerate(models):
        assert torch.allclose(together(x)[b], model(batch_of(x[b], x[b][:, :2])).logits, rtol=1e-3, atol=1e-4)


def test_the_models_are_of_the_papers_sizes(script: ModuleType) -> None:
    def weights(name: str) -> int:
        part = script.model_of(script.MODELS[name]).interactions[0]
        named = dict(part.named_parameters())
        last = sum(p.numel() for n, p in named.items() if n.startswith("towers.layers.2"))
        return sum(p.numel() for n, p in named.items() if n.endswith("weight") and "gate" not in n) - last

    assert weights("OMoE") == weights("MMoE") == 13_056
    assert weights("shared bottom") == 113 * 100 + 2 * 113 * 8


def test_directions_differ_by_repeat_and_have_the_asked_cosine(script: ModuleType) -> None:
    laws = script.Laws.of(3, 0.9, 20)
    w1, w2 = laws.weights[:, 0], laws.weights[:, 1]
    assert torch.allclose((w1 * w2).sum(1) / w1.norm(dim=1) / w2.norm(dim=1), torch.tensor(0.9))
    assert not torch.allclose(w1[0], w1[1])
    x, y = laws.rows(3, torch.Generator().manual_seed(0))
    again = torch.Generator().manual_seed(0)
    assert torch.equal(x, torch.randn(3, 3, 20, generator=again))
    noise = torch.randn(3, 3, 2, generator=again)
    for b in range(3):
        for n in range(3):
            for k in range(2):
                along = float(laws.weights[b, k] @ x[b, n])
                expected = along + sum(
                    np.sin(float(a) * along + float(c)) for a, c in zip(laws.alpha, laws.beta, strict=True)
                )
                assert float(y[b, n, k]) == pytest.approx(expected + 0.1 * float(noise[b, n, k]), abs=1e-4)


def test_a_short_run_writes_curves_and_a_picture(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["mmoe_synthetic.py", str(tmp_path), "--repeats", "2", "--steps", "100", "--relations", "1.0"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    found = json.loads((tmp_path / "mmoe_synthetic.json").read_text())
    assert [r["model"] for r in found["runs"]] == ["shared bottom", "OMoE", "MMoE"]
    for r in found["runs"]:
        assert [step for step, _ in r["curve"]] == [50, 100]
        assert r["curve"][1][1] < r["curve"][0][1]
        assert len(r["final"]) == 2
    picture = (tmp_path / "mmoe_synthetic.svg").read_text()
    assert picture.startswith("<svg role=")
    assert "p = 1" in picture
