"""`python -m examples.digits_vit [OUTPUT] [--quick]`, from the repository's root."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console

from examples.digits_vit import comparison, picture, table
from examples.digits_vit.training import Recipe

PICTURED = "0.attention.out_proj"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.digits_vit", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path("build/demo"))
    parser.add_argument(
        "--quick", action="store_true", help="one seed and a few steps: shows that it runs"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    # A second thread gains little on layers this small, and waiting for it stalls a busy machine.
    torch.set_num_threads(1)
    if arguments.quick:
        results = comparison.compare(Recipe(steps=24, delta_t=6), seeds=(0,), rounds=5)
    else:
        results = comparison.compare(Recipe(), seeds=(0, 1, 2), rounds=40)
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    table.show(results, console)
    table.write(results, arguments.output / "results.json")
    picture.draw(results, PICTURED, arguments.output / "masks.png")
    seconds = time.perf_counter() - started
    console.print(f"{seconds:.0f} s in all, compiling included; see {arguments.output}/")


if __name__ == "__main__":
    main()
