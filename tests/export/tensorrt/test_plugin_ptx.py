"""Compiled entries take what a plugin passes: inputs, integers, outputs, and nothing hidden."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from plugin_cases import CPU, KINDS, projection

from padst_fx.export.tensorrt.ptx import (
    compile_step,
    parameters,
    passed,
    without_hidden_parameters,
)
from padst_fx.export.tensorrt.step import Step, steps

ARCHS = {"sm_80": (8, 0), "sm_90a": (9, 0)}
ENTRY = """.visible .entry k(
    .param .u64 .ptr .global .align 1 k_param_0,
    .param .u32 k_param_1,
    .param .u64 .ptr .global .align 1 k_param_2{more}
)
{{ ld.param.u64 %rd1, [k_param_0]; {body} }}"""
HIDDEN = """,
    .param .u64 .ptr .global .align 1 k_param_3,
    .param .u64 .ptr .global .align 1 k_param_4"""


def assembled(ptx: str, arch: str, folder: Path) -> None:
    """Raises where NVIDIA's assembler does not take the code."""
    import triton

    path = folder / "kernel.ptx"
    path.write_text(ptx)
    command = [triton.knobs.nvidia.ptxas.path, f"-arch={arch}", str(path), "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def cases() -> list[tuple[str, Step]]:
    """Every kernel, with static and with dynamic tokens."""
    found = {}
    for kind in KINDS:
        for dynamic in (False, True):
            for step in steps(projection(kind, 40), dynamic, CPU):
                found.setdefault(f"{step.kernel.__name__}-{dynamic}", step)
    return sorted(found.items())


CASES = dict(cases())


@pytest.mark.parametrize(
    ("name", "arch"),
    [(name, arch) for name in CASES for arch in ARCHS if arch == "sm_80" or "True" in name],
)
def test_entry_takes_what_a_plugin_passes(name: str, arch: str, tmp_path: Path) -> None:
    step = CASES[name]
    binary = compile_step(step, ARCHS[arch])
    pointers, integers = len(step.reads), len(passed(step))
    expected = ["u64"] * pointers + ["u32"] * integers + ["u64"] * len(step.results)
    assert parameters(binary.ptx, binary.name) == expected
    assert f".target {arch}\n" in binary.ptx
    assert f".reqntid {binary.threads}\n" in binary.ptx
    assert 0 <= binary.shared <= 227 * 1024
    assembled(binary.ptx, arch, tmp_path)


def test_all_kernels_are_covered() -> None:
    from padst_fx.export.tensorrt.plugin import KERNELS

    assert {step.kernel.__name__ for step in CASES.values()} == set(KERNELS)
    for step in CASES.values():
        assert KERNELS[step.kernel.__name__] == (len(step.reads), len(step.results))


def test_what_is_known_of_a_static_number_is_not_assumed_of_a_dynamic_one() -> None:
    """32 tokens allow wide reads along tokens in rows of 32; any number of tokens does not."""
    case = projection("diag", 32, permuted=False, dtype=torch.float16)
    static, dynamic = (steps(case, is_dynamic, CPU)[0] for is_dynamic in (False, True))
    assert static.integers[0] == 32
    assert dynamic.integers[0] == "tokens"
    from padst_fx.export.tensorrt.ptx import _typical

    assert _typical(static.integers[0]) % 16 == 0
    assert _typical(dynamic.integers[0]) % 16 != 0
    assert _typical(dynamic.integers[1]) % 16 == 0


def test_ones_are_constants_and_not_passed() -> None:
    step = CASES["copy_kernel-True"]
    assert 1 in step.integers
    assert 1 not in passed(step)


def test_two_hidden_parameters_go() -> None:
    ptx = without_hidden_parameters(ENTRY.format(more=HIDDEN, body=""), "k", 3, 0)
    assert ptx == ENTRY.format(more="", body="")
    assert parameters(ptx, "k") == ["u64", "u32", "u64"]


def test_an_entry_without_hidden_parameters_stays() -> None:
    ptx = ENTRY.format(more="", body="")
    assert without_hidden_parameters(ptx, "k", 3, 0) == ptx


@pytest.mark.parametrize(
    ("more", "body", "count", "scratch", "message"),
    [
        (HIDDEN, "ld.param.u64 %rd2, [k_param_4];", 3, 0, "reads its parameter k_param_4"),
        (HIDDEN, "", 3, 128, "128 bytes of scratch memory"),
        (HIDDEN, "", 4, 0, "has 5 parameters"),
        ("", "", 4, 0, "has 3 parameters"),
    ],
)
def test_an_entry_that_needs_more_is_refused(
    more: str, body: str, count: int, scratch: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        without_hidden_parameters(ENTRY.format(more=more, body=body), "k", count, scratch)
