"""`python -m benchmarks`: what the sparse ops and models cost against dense ones, on this CPU.

Prints a table each and writes `<table>.csv` and `<table>.png`. Everything is checked against
dense results first; the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch._inductor import config as inductor

from benchmarks import (
    aoti,
    call_cost,
    cold_start,
    cost_records,
    frozen,
    kernels,
    machine,
    memory,
    models,
    onnx_diagonals,
    onnx_runtime,
    permutation_accuracy,
    permutation_cost,
    permutation_search,
    post_training,
    results_file,
    shared_reads,
    training,
    updates,
)
from benchmarks.settings import Settings
from benchmarks.structures import STRUCTURES
from benchmarks.table import Table

TABLES: dict[str, Callable[[Settings], Table]] = {
    "kernels": kernels.run,
    "kernels-bf16": kernels.run_bfloat16,
    "call-cost": call_cost.run,
    "models": models.run,
    "frozen": frozen.run,
    "onnx": onnx_runtime.run,
    "onnx-diagonals": onnx_diagonals.run,
    "aoti": aoti.run,
    "training": training.run,
    "updates": updates.run,
    "memory": memory.run,
    "cold-start": cold_start.run,
    "permutation-accuracy": permutation_accuracy.run,
    "permutation-cost": permutation_cost.run,
    "permutation-search": permutation_search.run,
    "post-training": post_training.run,
    "shared-reads": shared_reads.run,
}
# Of tables that measure other structures than most do.
OWN_STRUCTURES: dict[str, Collection[str]] = {
    "onnx": onnx_runtime.STRUCTURES,
    "call-cost": call_cost.STRUCTURES,
}
# What the cost model of the package can be told.
RECORDED = ("kernels", "kernels-bf16")
PARTIAL_FOLDER = Path("build/benchmarks")
QUICK_ROUNDS, ROUNDS = 5, 20


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="table", help=f"any of {', '.join(TABLES)}")
    parser.add_argument(
        "--quick", action="store_true", help=f"less of everything, into {PARTIAL_FOLDER}; 3 minutes"
    )
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="STRUCTURE",
        help=f"as in the tables; repeat; into {PARTIAL_FOLDER}",
    )
    parser.add_argument("--output", type=Path, help=f"default {results_file.RESULTS}")
    parser.add_argument(
        "--record-costs",
        action="store_true",
        help="let the cost model of the package know this machine's forward times",
    )
    found = parser.parse_args(given)
    _check_names(parser, "table", found.tables, TABLES)
    for table in found.tables or TABLES:
        _check_names(parser, "structure", found.only, OWN_STRUCTURES.get(table, STRUCTURES))
    if found.rounds is not None and found.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {found.rounds}")
    if found.record_costs and (found.quick or not set(RECORDED) & set(found.tables or TABLES)):
        parser.error(f"--record-costs needs {' or '.join(RECORDED)}, without --quick")
    return found


def _check_names(
    parser: argparse.ArgumentParser, kind: str, names: list[str], valid: Collection[str]
) -> None:
    for name in names:
        if name not in valid:
            parser.error(f"unknown {kind} {name!r}; valid: {', '.join(valid)}")


def main() -> int:
    """Run the tables asked for; 1 if a result was wrong."""
    asked = arguments()
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    settings = Settings(asked.quick, rounds, tuple(asked.only))
    partial = asked.quick or asked.only
    folder = asked.output or (PARTIAL_FOLDER if partial else results_file.RESULTS)
    # Inductor's worker processes go on for a while and would take cores from what is timed.
    inductor.compile_threads = 1
    print(", ".join(f"{key} {value}" for key, value in machine.describe().items() if value))
    wrong = 0
    for name in asked.tables or TABLES:
        torch.manual_seed(0)
        start = time.perf_counter()
        table = TABLES[name](settings)
        print(f"\n{table}")
        for path in results_file.write_table(table, folder):
            print(f"written to {path}")
        print(f"took {time.perf_counter() - start:.0f} s", flush=True)
        wrong += table.wrong
        if asked.record_costs and name in RECORDED:
            print(f"costs written to {', '.join(map(str, cost_records.write(table.rows)))}")
    if wrong:
        print(f"\n{wrong} results were wrong; they have no speed", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
