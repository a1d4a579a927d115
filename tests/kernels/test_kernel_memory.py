"""What the plain torch kernels allocate, and what importing kernels loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_checks import Inputs, Setting
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from padst_fx.kernels.gather_gemm import cpu as gather_gemm
from padst_fx.kernels.growth_score import cpu as growth_score
from padst_fx.kernels.shift import cpu as shift

SIZE, TOKENS, WINDOW = 1536, 64, 16
ALLOWED = SIZE * SIZE // 4


class LargestTensor(TorchDispatchMode):
    """Remembers the elements of the largest storage any operation returns."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.elements = max(self.elements, size)
        return result


def cases() -> dict[str, Callable[[], Tensor]]:
    inputs = Inputs(Setting(tokens=TOKENS))
    x, grad, perm, bias = (
        inputs.activations(SIZE),
        inputs.activations(SIZE),
        inputs.perm(SIZE),
        inputs.bias(SIZE),
    )
    index = torch.zeros(SIZE, SIZE // WINDOW, dtype=torch.uint8)
    values = inputs.normal(SIZE, SIZE // WINDOW, 1, 1)
    offsets = inputs.subset(SIZE, SIZE // WINDOW).int()
    diagonals = inputs.normal(SIZE // WINDOW, SIZE)
    g, w, none = gather_gemm, WINDOW, perm[:0]
    return {
        "shift_forward": lambda: shift.shift_forward(
            x, diagonals, offsets, perm, bias, SIZE, "gelu"
        ),
        "shift_input_grad": lambda: shift.shift_input_grad(grad, diagonals, offsets, perm, SIZE),
        "shift_weight_grad": lambda: shift.shift_weight_grad(grad, x, offsets, perm),
        "gather_forward": lambda: g.gather_gemm_forward(x, values, index, perm, bias, w, "none"),
        "gather_input_grad": lambda: g.gather_gemm_input_grad(grad, values, index, perm, w, SIZE),
        "gather_weight_grad": lambda: g.gather_gemm_weight_grad(grad, x, index, perm, w, 1),
        "diag_score": lambda: growth_score.diag_growth_score(grad, x, none, 1, 1),
        "block_score": lambda: growth_score.block_growth_score(grad, x, none, 4),
        "nm_score": lambda: growth_score.nm_growth_score(grad, x, index, none, 1, w),
    }


@pytest.mark.parametrize("name", cases())
def test_no_temporary_of_the_dense_weight_or_tokens_by_weights(name: str) -> None:
    call = cases()[name]
    with LargestTensor() as largest:
        call()
    assert 0 < largest.elements < ALLOWED


def test_importing_launch_modules_leaves_triton_alone() -> None:
    names = "shift", "gather_gemm", "growth_score"
    imports = "; ".join(f"import padst_fx.kernels.{name}.triton_launch" for name in names)
    code = f"import sys; {imports}; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
