// Torch tensors as the pointers, strides and types that kernels take.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <algorithm>
#include <type_traits>

#include "native/activation.h"
#include "native/scalar.h"

namespace padst {

// All leading dimensions flattened into rows whose features are adjacent; a copy where they are not.
class Rows {
 public:
  explicit Rows(const at::Tensor& tensor) : tensor_(tensor) {
    TORCH_CHECK(tensor.dim() >= 1, "expected at least one dimension, got a scalar");
    features = tensor.size(-1);
    const bool strided = tensor.dim() == 2 && tensor.stride(1) == 1 && tensor.stride(0) >= features;
    if (!strided && !tensor.is_contiguous()) tensor_ = tensor.contiguous();
    count = tensor.dim() == 2 ? tensor.size(0) : features ? tensor.numel() / features : 0;
    stride = strided ? tensor.stride(0) : features;
  }

  template <class T>
  const T* data() const {
    return static_cast<const T*>(tensor_.const_data_ptr());
  }

  int64_t count;
  int64_t features;
  int64_t stride;

 private:
  at::Tensor tensor_;
};

// An empty result with the leading dimensions of `like`.
inline at::Tensor empty_rows(const at::Tensor& like, int64_t features) {
  c10::SmallVector<int64_t, 5> sizes(like.sizes().begin(), like.sizes().end());
  sizes.back() = features;
  return at::detail::empty_cpu(sizes, like.scalar_type());
}

// Weights, bias and indices as kernels read them: contiguous, indices of a width they know.
inline at::Tensor stored(const at::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : tensor.contiguous();
}

inline at::Tensor stored_index(const at::Tensor& index, bool bytes_allowed) {
  const auto type = index.scalar_type();
  if (type == at::kInt || (bytes_allowed && type == at::kByte)) return stored(index);
  return index.to(at::kInt).contiguous();
}

// A pointer to the tensor's elements, null where it stands for "absent" (length 0).
template <class T>
const T* present(const at::Tensor& tensor) {
  return tensor.numel() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

inline Activation activation_named(c10::string_view name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  TORCH_CHECK_VALUE(
      false, "activation must be one of none, relu, gelu, gelu_tanh, silu; got '", name, "'");
}

inline void check_one_dtype(const at::Tensor& x, const at::Tensor& values) {
  TORCH_CHECK(x.scalar_type() == values.scalar_type(), "expected x and values of one dtype, got ",
              x.scalar_type(), " and ", values.scalar_type());
}

inline void check_length(const char* name, const at::Tensor& tensor, int64_t length) {
  TORCH_CHECK(tensor.numel() == 0 || tensor.numel() == length, "expected ", name, " of length 0 or ",
              length, ", got ", tensor.numel());
}

inline void check_bias(const at::Tensor& bias, const at::Tensor& x, int64_t length) {
  check_length("bias", bias, length);
  TORCH_CHECK(bias.numel() == 0 || bias.scalar_type() == x.scalar_type(),
              "expected x and bias of one dtype, got ", x.scalar_type(), " and ",
              bias.scalar_type());
}

// Numbers that kernels take for addresses: a damaged one must not reach beyond the tensors.
template <class Index>
void check_below(const char* name, const Index* numbers, int64_t count, int64_t limit) {
  using Unsigned = std::make_unsigned_t<Index>;
  Unsigned largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, static_cast<Unsigned>(numbers[i]));
  }
  TORCH_CHECK_INDEX(count == 0 || largest < limit, "expected ", name, " within [0, ", limit, ")");
}

inline void check_perm(const at::Tensor& perm, int64_t features) {
  check_length("perm", perm, features);
  check_below("perm", perm.const_data_ptr<int32_t>(), perm.numel(), features);
}

inline void check_same_rows(const Rows& grad, const Rows& x) {
  TORCH_CHECK(grad.count == x.count, "expected grad and x with as many rows, got ", grad.count,
              " and ", x.count);
}

// Calls f with a null pointer to the kernels' storage type for the tensor's dtype.
template <class F>
void for_dtype(const at::Tensor& tensor, const F& f) {
  // The first call of a thread takes over `torch.set_num_threads`.
  at::get_num_threads();
  switch (tensor.scalar_type()) {
    case at::kFloat: return f(static_cast<float*>(nullptr));
    case at::kDouble: return f(static_cast<double*>(nullptr));
    case at::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
    case at::kHalf: return f(static_cast<Half*>(nullptr));
    default:
      TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16, got ",
                  tensor.scalar_type());
  }
}

}  // namespace padst
