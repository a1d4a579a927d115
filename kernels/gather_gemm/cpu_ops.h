// The gather-GEMM and scatter-GEMM ops on the CPU, on torch's tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

namespace padst {

at::Tensor gather_gemm_op(const at::Tensor& x, const at::Tensor& values, const at::Tensor& index,
                          const at::Tensor& perm, const at::Tensor& bias, int64_t window,
                          c10::string_view activation);
at::Tensor gather_gemm_input_grad_op(const at::Tensor& grad, const at::Tensor& values,
                                     const at::Tensor& index, const at::Tensor& perm,
                                     int64_t window, int64_t in_features);
at::Tensor gather_gemm_weight_grad_op(const at::Tensor& grad, const at::Tensor& x,
                                      const at::Tensor& index, const at::Tensor& perm,
                                      int64_t window, int64_t group);

at::Tensor scatter_gemm_op(const at::Tensor& x, const at::Tensor& values, const at::Tensor& index,
                           const at::Tensor& perm, const at::Tensor& bias, int64_t out_features,
                           c10::string_view activation);
at::Tensor scatter_gemm_input_grad_op(const at::Tensor& grad, const at::Tensor& values,
                                      const at::Tensor& index, const at::Tensor& perm);
at::Tensor scatter_gemm_weight_grad_op(const at::Tensor& grad, const at::Tensor& x,
                                       const at::Tensor& index, const at::Tensor& perm,
                                       int64_t group);

}  // namespace padst
