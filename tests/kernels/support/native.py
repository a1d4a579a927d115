"""The C++ kernels under the names that the other implementations of the kernels have."""

from __future__ import annotations

import torch

import padst_fx.ops  # noqa: F401  (registers the ops)
from padst_fx.kernels.native import isa
from padst_fx.kernels.native.load import loaded

if isa.chosen() != "torch" and not loaded():
    raise RuntimeError("the C++ kernels could not be built: see the warning above")

shift_forward = torch.ops.padst.shift.default
shift_input_grad = torch.ops.padst.shift_input_grad.default
shift_weight_grad = torch.ops.padst.shift_weight_grad.default
gather_gemm_forward = torch.ops.padst.gather_gemm.default
gather_gemm_input_grad = torch.ops.padst.gather_gemm_input_grad.default
gather_gemm_weight_grad = torch.ops.padst.gather_gemm_weight_grad.default
scatter_gemm_forward = torch.ops.padst.scatter_gemm.default
scatter_gemm_input_grad = torch.ops.padst.scatter_gemm_input_grad.default
scatter_gemm_weight_grad = torch.ops.padst.scatter_gemm_weight_grad.default
