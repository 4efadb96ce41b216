"""Shared bottom, OMoE and MMoE on tasks of a chosen relation: trainability over many repeats. Ma et al., KDD 2018, section 3.3.

    python benchmarks/mmoe_synthetic.py FOLDER [--repeats 50] [--steps 2000]

Every repeat is a draw of its own: directions of the two tasks, rows, noise, initial weights (the sines are fixed once). The
repeats of one model are one batched network: each weight has the repeat as its first axis, Adam moves all of them at once,
and no repeat knows of another (tests hold it against models trained alone). All models see the same rows.

Writes mmoe_synthetic.json (curves, final losses) and mmoe_synthetic.svg into FOLDER.
B repeats · N rows · d inputs · K = 2 tasks · E experts · H width of an expert · T width of a tower
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from finerank.datasets.worlds.sinusoids import NOISE, directions, sines, sums_of_sines
from finerank.datasets.worlds.world import draws
from finerank.models import registry
from finerank.models.composition import Model
from finerank.report import charts
from finerank.schema import Columns, FittedSchema, Numeric, Schema, Task

WIDTH = 100
MODELS = {
    "shared bottom": {"kind": "shared_bottom", "bottom": [113], "tower": [8]},
    "OMoE": {"kind": "mmoe", "gates": "one", "experts": 8, "expert": [16], "tower": [8]},
    "MMoE": {"kind": "mmoe", "gates": "each", "experts": 8, "expert": [16], "tower": [8]},
}
"""Of equal size: 13,056 weights in experts and towers, 13,108 in the shared bottom (the paper's numbers)."""


def model_of(table: dict[str, object], width: int = WIDTH) -> Model:
    """One model of two regressions over `width` numbers; seed torch before."""
    numbers = tuple(f"x{j}" for j in range(width))
    tasks = (Task(name="y1", kind="regression"), Task(name="y2", kind="regression"))
    schema = Schema(features=tuple(Numeric(name=n, level="candidate", transform="none") for n in numbers), tasks=tasks)
    fitted = FittedSchema(
        schema, {}, Columns(), Columns(numbers=numbers), {}, Columns(), base_rates={"y1": 0.0, "y2": 0.0}
    )
    return registry.build(registry.parse({"representation": "plain", "interactions": [table]}), fitted)


class Repeats(nn.Module):
    """Models of one shape side by side: [B, N, d] -> [B, N, K]. Two layers in all, as the paper's: experts, then towers."""

    def __init__(self, models: list[Model]) -> None:
        super().__init__()
        states = [m.state_dict() for m in models]
        bottom = "bottom" if "interactions.0.bottom.first.weight" in states[0] else "experts"

        def stacked(name: str) -> nn.Parameter:
            return nn.Parameter(torch.stack([s[name] for s in states]))

        self.experts = models[0].interactions[0].get_submodule(bottom).groups  # type: ignore[union-attr]
        self.first, self.first_bias = (stacked(f"interactions.0.{bottom}.first.{n}") for n in ("weight", "bias"))
        gate = "interactions.0.gates.linear.weight"
        self.gate = stacked(gate) if gate in states[0] else None
        self.tower, self.tower_bias = (stacked(f"interactions.0.towers.layers.0.{n}") for n in ("weight", "bias"))
        self.last, self.bias = stacked("interactions.0.towers.layers.2.weight"), stacked("head.bias")

    def forward(self, x_BNd: Tensor) -> Tensor:
        """See the class."""
        repeats, rows, _ = x_BNd.shape
        f = torch.relu(torch.baddbmm(self.first_bias.unsqueeze(1), x_BNd, self.first.transpose(1, 2)))
        f_BNEH = f.view(repeats, rows, self.experts, -1)
        if self.gate is None:
            mixed_BNGH = f_BNEH
        else:
            logits = torch.bmm(x_BNd, self.gate.transpose(1, 2)).view(repeats, rows, -1, self.experts)
            mixed_BNGH = torch.matmul(torch.softmax(logits, dim=3), f_BNEH)
        mixed_BNKH = mixed_BNGH.expand(-1, -1, self.tower.shape[1], -1)
        h_BNKT = torch.relu(torch.einsum("bnkh,bkth->bnkt", mixed_BNKH, self.tower) + self.tower_bias.unsqueeze(1))
        out: Tensor = torch.einsum("bnkt,bkot->bnk", h_BNKT, self.last) + self.bias.unsqueeze(1)
        return out

    def losses(self, x_BNd: Tensor, y_BNK: Tensor) -> Tensor:
        """[B]: sum over the tasks of the mean squared errors, of each repeat."""
        return (self(x_BNd) - y_BNK).square().mean(1).sum(1)


@dataclass(frozen=True)
class Laws:
    """What the tasks of every repeat are: weights float32 [B, K, d]; alpha, beta [m], the same for all."""

    weights: Tensor
    alpha: Tensor
    beta: Tensor

    @staticmethod
    def of(repeats: int, correlation: float, width: int = WIDTH) -> Laws:
        """Directions by repeat, sines once."""
        weights = [directions(draws(b, "directions"), width, correlation) for b in range(repeats)]
        alpha, beta = sines(draws(0, "sines"))
        as_tensors = (torch.from_numpy(np.asarray(v)).float() for v in (np.stack(weights), alpha, beta))
        return Laws(*as_tensors)

    def rows(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x [B, count, d], y [B, count, K]), fresh for every repeat."""
        repeats, tasks, width = self.weights.shape
        x = torch.randn(repeats, count, width, generator=generator)
        along = torch.bmm(x, self.weights.transpose(1, 2))
        noise = torch.randn(repeats, count, tasks, generator=generator)
        return x, sums_of_sines(along, self.alpha, self.beta) + NOISE * noise


@dataclass(frozen=True)
class Trained:
    """Of one model and relation. curve: (step, mean loss of repeats and steps since the last); final [B]: on fresh rows."""

    model: str
    correlation: float
    curve: list[tuple[int, float]]
    final: list[float]
    seconds: float


def train(
    correlation: float, repeats: int, steps: int, rows: int = 128, lr: float = 1e-2, every: int = 50
) -> list[Trained]:
    """All three models on the same rows."""
    laws = Laws.of(repeats, correlation)
    nets, seconds = {}, dict.fromkeys(MODELS, 0.0)
    for name, table in MODELS.items():
        torch.manual_seed(1)
        nets[name] = Repeats([model_of(table) for _ in range(repeats)])
    adams = {name: torch.optim.Adam(net.parameters(), lr, fused=True) for name, net in nets.items()}
    generator = torch.Generator().manual_seed(int(1_000 * correlation))
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in nets}
    sums = dict.fromkeys(nets, 0.0)
    for step in range(1, steps + 1):
        x, y = laws.rows(rows, generator)
        for name, net in nets.items():
            started = time.perf_counter()
            adams[name].zero_grad()
            losses = net.losses(x, y)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            adams[name].step()
            sums[name] += float(losses.detach().mean())
            seconds[name] += time.perf_counter() - started
            if step % every == 0:
                curves[name].append((step, sums[name] / every))
                sums[name] = 0.0
    final: dict[str, Tensor] = {name: torch.zeros(repeats) for name in nets}
    with torch.no_grad():
        for _ in range(8):
            x, y = laws.rows(500, generator)
            for name, net in nets.items():
                final[name] += net.losses(x, y) / 8
    return [Trained(name, correlation, curves[name], final[name].tolist(), seconds[name]) for name in nets]


def table(found: list[Trained]) -> str:
    """Final losses: mean, standard deviation between repeats, quartiles and extremes."""
    lines = ["| p | model | mean | between repeats | lowest | median | highest |", "|---|---|---|---|---|---|---|"]
    for t in found:
        low, middle, high = np.quantile(t.final, [0, 0.5, 1])
        numbers = (np.mean(t.final), np.std(t.final, ddof=1), low, middle, high)
        lines.append(f"| {t.correlation:g} | {t.model} | " + " | ".join(f"{v:.3f}" for v in numbers) + " |")
    return "\n".join(lines)


def picture(found: list[Trained]) -> str:
    """Above: mean loss by step; below: how final losses spread. A column for each relation of the tasks."""
    columns = []
    color = {"field": "model", "type": "nominal", "sort": list(MODELS), "legend": {"title": None, "orient": "bottom"}}
    for p in dict.fromkeys(t.correlation for t in found):
        these = [t for t in found if t.correlation == p]
        points = [{"step": s, "loss": v, "model": t.model} for t in these for s, v in t.curve]
        spread = [{"final": v, "model": t.model} for t in these for v in t.final]
        lines = {
            "title": f"p = {p:g}",
            "width": 250,
            "height": 180,
            "data": {"values": points},
            "mark": {"type": "line", "strokeWidth": 1.6},
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": "step"},
                "y": {
                    "field": "loss",
                    "type": "quantitative",
                    "title": "mean loss",
                    "scale": {"type": "log", "nice": False},
                },
                "color": color,
            },
        }
        bars = {
            "width": 250,
            "height": 110,
            "data": {"values": spread},
            "mark": {"type": "line", "strokeWidth": 1.6},
            "transform": [
                {"calculate": "log(datum.final) / LN10", "as": "log"},
                {"density": "log", "groupby": ["model"], "as": ["log", "density"]},
                {"calculate": "pow(10, datum.log)", "as": "final"},
            ],
            "encoding": {
                "x": {
                    "field": "final",
                    "type": "quantitative",
                    "title": "final loss of a repeat",
                    "scale": {"type": "log", "nice": False},
                },
                "y": {"field": "density", "type": "quantitative", "title": "density", "stack": None},
                "color": color,
            },
        }
        columns.append({"vconcat": [lines, bars]})
    return str(charts.svg({"hconcat": columns}, "loss by step and spread of final losses, by relation of the tasks"))


def main() -> None:
    """See the module."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("folder", type=Path)
    asked.add_argument("--repeats", type=int, default=50)
    asked.add_argument("--steps", type=int, default=2_000)
    asked.add_argument("--lr", type=float, default=1e-2)
    asked.add_argument("--relations", type=float, nargs="+", default=[0.5, 0.9, 1.0])
    given = asked.parse_args()
    found: list[Trained] = []
    given.folder.mkdir(parents=True, exist_ok=True)
    for p in given.relations:
        found += train(p, given.repeats, given.steps, lr=given.lr)
        print(table(found[-3:]), file=sys.stderr, flush=True)
        text = json.dumps(
            {"repeats": given.repeats, "steps": given.steps, "lr": given.lr, "runs": [vars(t) for t in found]}
        )
        (given.folder / "mmoe_synthetic.json").write_text(text, encoding="utf-8")
        (given.folder / "mmoe_synthetic.svg").write_text(picture(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
