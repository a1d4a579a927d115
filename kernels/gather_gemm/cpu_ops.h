// The gather-GEMM and scatter-GEMM ops on the CPU, on torch's tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

namespace torch {
class Library;
}

namespace padst {

at::Tensor gather_gemm_op(const at::Tensor& x, const at::Tensor& values, const at::Tensor& index,
                          const at::Tensor& perm, const at::Tensor& bias, int64_t window,
                          c10::string_view activation);

at::Tensor scatter_gemm_op(const at::Tensor& x, const at::Tensor& values, const at::Tensor& index,
                           const at::Tensor& perm, const at::Tensor& bias, int64_t out_features,
                           c10::string_view activation);

void register_gather_gemm(torch::Library& cpu);

}  // namespace padst
