"""Fused activations against their definitions."""

from __future__ import annotations

import pytest
import torch
from dense_maths import activated

from padst_fx.kernels import activation


@pytest.mark.parametrize("name", activation.NAMES)
def test_value_and_derivative(name: str) -> None:
    x = torch.linspace(-6, 6, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(activation.apply(name, x), activated(name, x))
    grad = torch.linspace(1, 2, 50, dtype=torch.float64)
    (want,) = torch.autograd.grad(activated(name, x), x, grad)
    torch.testing.assert_close(activation.backward(name, grad, x.detach()), want)


def test_unknown_name_lists_the_known() -> None:
    for call in (
        lambda: activation.apply("mish", torch.ones(1)),
        lambda: activation.backward("mish", torch.ones(1), torch.ones(1)),
    ):
        with pytest.raises(ValueError, match=r"none, relu, gelu, gelu_tanh, silu; got 'mish'"):
            call()
