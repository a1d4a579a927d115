"""Steps are the Triton launcher's own launches, whatever the number of tokens."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from plugin_cases import CPU, KINDS, meta, projection
from torch.utils._sympy.functions import FloorDiv

from padst_fx.export.tensorrt.attribute import decoded, encoded
from padst_fx.export.tensorrt.expression import _of_sympy, evaluate, is_multiple
from padst_fx.export.tensorrt.step import LAUNCHES, Projection, Step, steps
from padst_fx.kernels.integers import ceil_div
from padst_fx.kernels.tiles.table import choosing, tabled
from padst_fx.kernels.triton_ahead_of_time import Launch, recorded

MOST = 40


def launches(case: Projection, most: int) -> list[Launch]:
    """What the launcher does for these tokens with the tiles that are chosen for `most`."""
    module, name = LAUNCHES[case.op]
    launch = importlib.import_module(f"padst_fx.kernels.{module}.triton_launch")
    with choosing(lambda problem: tabled(CPU, problem._replace(tokens=most))):
        return recorded(lambda: getattr(launch, name)(*case.operands, *case.settings))


def numbers(step: Step, tokens: int) -> tuple[list[int], int]:
    values = [evaluate(integer, tokens, ceil_div) for integer in step.integers]
    return values, evaluate(step.programs, tokens, ceil_div)


def check(found: tuple[Step, ...], expected: list[Launch], tokens: int) -> None:
    assert [step.kernel for step in found] == [launch.kernel for launch in expected]
    for step, launch in zip(found, expected, strict=True):
        integers = [a for a in launch.arguments if not isinstance(a, torch.Tensor)]
        assert numbers(step, tokens) == (integers, launch.programs)
        assert step.constants == launch.constants
        written = [a for a in launch.arguments if isinstance(a, torch.Tensor)][len(step.reads) :]
        for shape, tensor in zip(step.results, written, strict=True):
            sizes = [evaluate(size, tokens, ceil_div) for size in shape]
            assert torch.Size(sizes).numel() == tensor.numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 5, 12, MOST])
@pytest.mark.parametrize("permuted", [False, True])
def test_static_steps_are_the_launches(kind: str, tokens: int, permuted: bool) -> None:
    case = projection(kind, tokens, permuted)
    check(steps(case, False, CPU), launches(case, tokens), tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("permuted", [False, True])
def test_dynamic_steps_serve_every_number_of_tokens(kind: str, permuted: bool) -> None:
    """From 17 tokens on the launcher itself goes the way it goes for the most."""
    found = steps(projection(kind, MOST, permuted), True, CPU)
    for tokens in range(17, MOST + 1):
        check(found, launches(projection(kind, tokens, permuted), MOST), tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dynamic_step_finds_the_tokens_among_what_it_reads(kind: str) -> None:
    for step in steps(projection(kind, MOST), True, CPU):
        if step.tokens_from is None:
            assert all(isinstance(value, int) for value in (*step.integers, step.programs))
        else:
            read = step.reads[step.tokens_from]
            assert read == 0 or read >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_absent_is_never_read(kind: str) -> None:
    case = projection(kind, MOST, permuted=False)
    absent = {number for number, tensor in enumerate(case.operands) if tensor.numel() == 0}
    assert 3 in absent
    assert not any(absent & set(step.reads) for step in steps(case, True, CPU))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_survives_being_text(kind: str) -> None:
    for step in steps(projection(kind, MOST), True, CPU):
        assert decoded(encoded(step)) == step


def test_offsets_are_long_where_the_most_tokens_ask_for_it() -> None:
    case = projection("block", 2**20)
    case = replace(case, x=meta(2**20, 4096, dtype=torch.bfloat16), perm=meta(0))
    assert not steps(projection("block", MOST), True, CPU)[-1].constants["LONG"]
    assert steps(case, True, CPU)[-1].constants["LONG"]


def test_an_integer_beyond_32_bits_is_refused() -> None:
    case = replace(projection("block", 1), x=meta(2**31 + 16, 64, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="passes 32 bits"):
        steps(case, True, CPU)


@given(a=st.integers(0, 100), tokens=st.integers(1, 1000))
def test_multiples_are_certain(a: int, tokens: int) -> None:
    padded = ["*", ["ceil", "tokens", 16], 16]
    assert is_multiple(padded, 16)
    assert evaluate(padded, tokens, ceil_div) % 16 == 0
    assert not is_multiple("tokens", 16)
    assert is_multiple(["+", padded, a], 16) == (a % 16 == 0)


@given(tokens=st.integers(1, 1000), factor=st.sampled_from([-2, -1, 1, 3]))
def test_products_keep_their_sign(tokens: int, factor: int) -> None:
    symbol = sympy.Symbol("s0", integer=True, positive=True)
    product = factor * symbol * FloorDiv(-symbol, sympy.Integer(16))
    found = _of_sympy(product)
    assert evaluate(found, tokens, ceil_div) == factor * tokens * (-tokens // 16)
