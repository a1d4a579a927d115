// The shift ops on the CPU, on torch's tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

namespace padst {

at::Tensor shift_op(const at::Tensor& x, const at::Tensor& values, const at::Tensor& offsets,
                    const at::Tensor& perm, const at::Tensor& bias, int64_t out_features,
                    c10::string_view activation);
at::Tensor shift_input_grad_op(const at::Tensor& grad, const at::Tensor& values,
                               const at::Tensor& offsets, const at::Tensor& perm,
                               int64_t in_features);
at::Tensor shift_weight_grad_op(const at::Tensor& grad, const at::Tensor& x,
                                const at::Tensor& offsets, const at::Tensor& perm);

}  // namespace padst
