#include "shift/cpu_ops.h"

#include "native/packed_weights.h"
#include "native/tensors.h"
#include "shift/cpu.h"

namespace padst {
namespace {

using at::Tensor;

// Sorted, distinct and inside the longer side: the loops rely on all of it.
void check_offsets(const Tensor& offsets, const ShiftShape& shape) {
  TORCH_CHECK(shape.out_features > 0 && shape.in_features > 0 && shape.diagonals > 0,
              "expected features and diagonals, got ", shape.diagonals, " diagonals of [",
              shape.out_features, ", ", shape.in_features, "]");
  const int32_t* const numbers = offsets.const_data_ptr<int32_t>();
  check_below("offsets", numbers, shape.diagonals, std::max(shape.out_features, shape.in_features));
  bool ascending = true;
  for (int64_t k = 1; k < shape.diagonals; ++k) ascending &= numbers[k - 1] < numbers[k];
  TORCH_CHECK_INDEX(ascending, "expected ascending, distinct offsets");
}

struct Diagonals {
  Diagonals(const Tensor& values_, const Tensor& offsets_, const Tensor& perm_)
      : given(offsets_),
        values(stored(values_)),
        offsets(stored_index(offsets_, false)),
        perm(stored_index(perm_, false)) {}

  void check(const ShiftShape& shape) const {
    const int64_t length = std::min(shape.out_features, shape.in_features);
    TORCH_CHECK(
        values.dim() == 2 && values.size(0) == offsets.numel() && values.size(1) == length,
        "expected values of shape [", offsets.numel(), ", ", length, "], got ", values.sizes());
    check_offsets(offsets, shape);
    check_perm(perm, shape.in_features);
  }

  // The stream that a product reads, null where it is better off without.
  template <class T>
  KeptForm stream(const ShiftShape& shape, PackedFor product) const {
    if (!shift_streams<T>(shape.tokens)) return nullptr;
    const PackedForm form{product, shape.in_features, shape.out_features};
    return kept_weights(values, given, form, [&] {
      const auto make = product == PackedFor::forward ? shift_forward_stream<T>
                                                      : shift_input_grad_stream<T>;
      return make(present<T>(values), present<int32_t>(offsets), shape);
    });
  }

  Tensor given, values, offsets, perm;
};

}  // namespace

Tensor shift_op(const Tensor& x, const Tensor& values, const Tensor& offsets, const Tensor& perm,
                const Tensor& bias_, int64_t out_features, c10::string_view activation) {
  check_one_dtype(x, values);
  const Activation act = activation_named(activation);
  const Diagonals diagonals(values, offsets, perm);
  const Tensor bias = stored(bias_);
  const Rows rows(x);
  const ShiftShape shape{rows.count, out_features, rows.features, diagonals.offsets.numel()};
  diagonals.check(shape);
  check_bias(bias, x, out_features);
  Tensor y = empty_rows(x, out_features);
  for_dtype(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const KeptForm stream = diagonals.stream<T>(shape, PackedFor::forward);
    shift_forward<T>(rows.data<T>(), rows.stride, present<T>(diagonals.values),
                     present<int32_t>(diagonals.offsets), present<int32_t>(diagonals.perm),
                     {present<T>(bias), act}, static_cast<T*>(y.mutable_data_ptr()), shape,
                     stream.get());
  });
  return y;
}

Tensor shift_input_grad_op(const Tensor& grad, const Tensor& values, const Tensor& offsets,
                           const Tensor& perm, int64_t in_features) {
  check_one_dtype(grad, values);
  const Diagonals diagonals(values, offsets, perm);
  const Rows rows(grad);
  const ShiftShape shape{rows.count, rows.features, in_features, diagonals.offsets.numel()};
  diagonals.check(shape);
  Tensor dx = empty_rows(grad, in_features);
  for_dtype(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const KeptForm stream = diagonals.stream<T>(shape, PackedFor::input_grad);
    shift_input_grad<T>(rows.data<T>(), rows.stride, present<T>(diagonals.values),
                        present<int32_t>(diagonals.offsets), present<int32_t>(diagonals.perm),
                        static_cast<T*>(dx.mutable_data_ptr()), shape, stream.get());
  });
  return dx;
}

Tensor shift_weight_grad_op(const Tensor& grad, const Tensor& x, const Tensor& offsets_,
                            const Tensor& perm_) {
  check_one_dtype(grad, x);
  const Tensor offsets = stored_index(offsets_, false), perm = stored_index(perm_, false);
  const Rows grad_rows(grad), rows(x);
  check_same_rows(grad_rows, rows);
  const ShiftShape shape{rows.count, grad_rows.features, rows.features, offsets.numel()};
  check_offsets(offsets, shape);
  check_perm(perm, rows.features);
  Tensor dvalues = at::detail::empty_cpu(
      {shape.diagonals, std::min(shape.out_features, shape.in_features)}, grad.scalar_type());
  for_dtype(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    shift_weight_grad<T>(grad_rows.data<T>(), grad_rows.stride, rows.data<T>(), rows.stride,
                         present<int32_t>(offsets), present<int32_t>(perm),
                         static_cast<T*>(dvalues.mutable_data_ptr()), shape);
  });
  return dvalues;
}

}  // namespace padst
