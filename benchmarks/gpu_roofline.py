"""`python -m benchmarks.gpu_roofline`: every Triton kernel compiled for a GPU, beside its floor.

Needs no GPU. For each product of each structure the launches are recorded on meta tensors and
compiled ahead of time: tile, programs, registers, spills, shared memory, instructions. The floor is
the time an H100 cannot go below: the bytes of weights, index and activations moved once, or the
additions and multiplications of the weights, whichever takes longer. These are calculated from the
machine's data sheet; nothing here is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import results_file
from benchmarks.gpu_work import PARTS, STRUCTURES, Work
from padst_fx.kernels.triton_ahead_of_time import Binary, Launch, compiled, recorded

BYTES_PER_SECOND = 3.35e12
MATRIX_OPERATIONS = 989e12
ORDINARY_OPERATIONS = 67e12
SIZES = ((4096, 4096), (8192, 8192))
TOKENS = (1, 16, 64, 4096)
NAMED = ("BLOCK", "WINDOWS", "SLOTS", "UNROLL", "num_")


def floor(bytes_moved: int, operations: int, per_second: float) -> tuple[float, str]:
    """Seconds that the machine's data sheet allows, and what they are bound by."""
    moving, computing = bytes_moved / BYTES_PER_SECOND, operations / per_second
    return (moving, "bytes") if moving >= computing else (computing, "operations")


def tile_of(launch: Launch) -> str:
    """The tile as `BLOCK_M=16 BLOCK_V=32 ...`."""
    return " ".join(f"{k}={v}" for k, v in launch.constants.items() if k.startswith(NAMED))


def launch_row(launch: Launch, binary: Binary) -> dict[str, Any]:
    """What the compiler made of one launch."""
    return {
        "kernel": launch.name,
        "programs": launch.programs,
        "tile": tile_of(launch),
        "registers": binary.registers,
        "spilled": binary.stack + binary.local,
        "shared": binary.shared,
        "matrix_instructions": int(binary.has_matrix_instructions),
        "loads_of_128_bits": binary.wide_loads(),
        "stores_of_128_bits": binary.wide_stores(),
    }


def rows_of(work: Work, arch: int) -> Iterator[dict[str, Any]]:
    """One row per launch of a product, the product's counts and floors in each."""
    launches = recorded(work.call(work.tensors("meta")))
    binaries = [compiled(launch, arch) for launch in launches]
    matrix = any(binary.has_matrix_instructions for binary in binaries)
    rate = MATRIX_OPERATIONS if matrix else ORDINARY_OPERATIONS
    seconds, bound = floor(work.bytes(), work.operations(), rate)
    dense, _ = floor(work.dense_bytes(), work.dense_operations(), MATRIX_OPERATIONS)
    for launch, binary in zip(launches, binaries, strict=True):
        yield {
            "structure": work.structure,
            "part": work.part,
            "out": work.out,
            "in": work.inputs,
            "tokens": work.tokens,
            "dtype": str(work.dtype).removeprefix("torch."),
            "arch": arch,
            **launch_row(launch, binary),
            "bytes": work.bytes(),
            "operations": work.operations(),
            "h100_floor_us": round(seconds * 1e6, 2),
            "bound_by": bound,
            "h100_dense_floor_us": round(dense * 1e6, 2),
        }


def works(tokens: tuple[int, ...]) -> Iterator[Work]:
    """The products of the GPU target table."""
    for out, inputs in SIZES:
        for name in STRUCTURES:
            for part in PARTS:
                for count in tokens:
                    if part == "forward" or count > 64:
                        yield Work(name, part, out, inputs, count)


def show(row: dict[str, Any]) -> None:
    head = f"{row['structure']:19} {row['part']:11} {row['out']}x{row['in']} M={row['tokens']:<5}"
    made = f"{row['registers']:3} registers {row['spilled']} spilled {row['shared']:6} shared"
    units = "matrix units" if row["matrix_instructions"] else "ordinary units"
    print(f"{head} {row['kernel']:28} {row['tile']}")
    print(
        f"    {row['programs']} programs, {made}, {units}, "
        f"{row['loads_of_128_bits']} loads and {row['stores_of_128_bits']} stores of 128 bits; "
        f"floor {row['h100_floor_us']} us by {row['bound_by']} (dense {row['h100_dense_floor_us']})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_roofline", description=__doc__)
    parser.add_argument("--arch", type=int, choices=(80, 90, 100), default=90)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for work in works(tuple(arguments.tokens)):
        for row in rows_of(work, arguments.arch):
            rows.append({**row, "triton": _triton_version()})
            show(row)
    print(f"written to {results_file.write('gpu_roofline', rows)}")


def _triton_version() -> str:
    import triton

    version: str = triton.__version__
    return version


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
