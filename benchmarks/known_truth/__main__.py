"""Each family on a synthetic world whose law is known: what a model must find, and whether it does.

    python -m benchmarks.known_truth FOLDER [--only interests]

Trains what is not in FOLDER yet, and writes docs/known_truth.md with its pictures. Figures come from one seed each unless a
section says otherwise. One quiet core: some fifteen minutes in all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import vl_convert

from benchmarks.known_truth.conversions import conversions_section
from benchmarks.known_truth.delays import delays_section
from benchmarks.known_truth.gates import gates_section, routes_section
from benchmarks.known_truth.interactions import interactions_section
from benchmarks.known_truth.interests import interests_section
from benchmarks.known_truth.positions import positions_section
from benchmarks.known_truth.section import Section
from benchmarks.known_truth.sequences import sequences_section
from benchmarks.known_truth.watches import watches_section

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS: dict[str, Callable[[Path], Section]] = {
    "interactions": interactions_section,
    "interests": interests_section,
    "positions": positions_section,
    "sequences": sequences_section,
    "conversions": conversions_section,
    "delays": delays_section,
    "watches": watches_section,
    "gates": gates_section,
    "routes": routes_section,
}
"""In the page's order."""


def page(found: Mapping[str, Section]) -> str:
    """docs/known_truth.md."""
    out = [
        "# Known truth",
        "",
        "Made by `python -m benchmarks.known_truth FOLDER`. Synthetic worlds whose law is known",
    ]
    out[-1] += " (`finerank data world_...`), and what the models made of them."
    for name, s in found.items():
        out += ["", f"## {s.title}", "", s.text, ""]
        header, *body = s.table
        out += ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        out += ["| " + " | ".join(line) + " |" for line in body]
        if s.picture:
            out += ["", f"![{s.describe}](pictures/truth_{name}.png)"]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help=f"one of {', '.join(SECTIONS)}")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, make in SECTIONS.items():
        kept = given.folder / f"{name}.json"
        if given.only in (None, name) and not kept.exists():
            print(name, flush=True)
            kept.write_text(json.dumps(vars(make(given.folder / name))))
    found = {
        name: Section(**json.loads(p.read_text())) for name in SECTIONS if (p := given.folder / f"{name}.json").exists()
    }
    for name, s in found.items():
        if s.picture:
            picture = DOCS / "pictures" / f"truth_{name}.png"
            white = s.picture.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1)
            picture.write_bytes(vl_convert.svg_to_png(white, scale=2))
    (DOCS / "known_truth.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
