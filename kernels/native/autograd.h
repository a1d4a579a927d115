// The projection ops on the CPU where gradients are recorded: what the dispatcher calls first. Each
// takes what the op takes that it records.
#pragma once

#include "gather_gemm/cpu_ops.h"
#include "shift/cpu_ops.h"

namespace padst {

decltype(shift_op) shift_autograd;
decltype(shift_input_grad_op) shift_input_grad_autograd;
decltype(shift_weight_grad_op) shift_weight_grad_autograd;

decltype(gather_gemm_op) gather_gemm_autograd;
decltype(gather_gemm_input_grad_op) gather_gemm_input_grad_autograd;
decltype(gather_gemm_weight_grad_op) gather_gemm_weight_grad_autograd;

decltype(scatter_gemm_op) scatter_gemm_autograd;
decltype(scatter_gemm_input_grad_op) scatter_gemm_input_grad_autograd;
decltype(scatter_gemm_weight_grad_op) scatter_gemm_weight_grad_autograd;

}  // namespace padst
