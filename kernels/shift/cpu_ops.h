// The shift ops on the CPU, on torch's tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

namespace torch {
class Library;
}

namespace padst {

at::Tensor shift_op(const at::Tensor& x, const at::Tensor& values, const at::Tensor& offsets,
                    const at::Tensor& perm, const at::Tensor& bias, int64_t out_features,
                    c10::string_view activation);

void register_shift(torch::Library& cpu);

}  // namespace padst
