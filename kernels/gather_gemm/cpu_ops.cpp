#include "gather_gemm/cpu_ops.h"

#include "gather_gemm/cpu.h"
#include "native/packed_weights.h"
#include "native/tensors.h"

namespace padst {
namespace {

using at::Tensor;

int64_t blocked_features(const GatherShape& shape) { return shape.row_blocks * shape.tile; }

// Index and permutation of a layer, with the features of the side that the index points into.
struct Indexed {
  Indexed(const Tensor& index_, const Tensor& perm_)
      : given(index_), index(stored_index(index_, true)), perm(stored_index(perm_, false)) {
    TORCH_CHECK(index.dim() == 2, "expected an index of shape [R, E], got ", index.sizes());
  }

  int bytes() const { return index.scalar_type() == at::kByte ? 1 : 4; }
  const void* data() const { return index.const_data_ptr(); }
  const int32_t* perm_data() const { return present<int32_t>(perm); }

  // The shape of values [R, E, G, V] on `tokens` rows, if it fits the index's own.
  GatherShape shape(const Tensor& values, int64_t tokens, int64_t features, int64_t window) const {
    TORCH_CHECK(values.dim() == 4 && values.size(0) == index.size(0) &&
                    values.size(1) == index.size(1),
                "expected values of shape [", index.size(0), ", ", index.size(1), ", G, V], got ",
                values.sizes());
    return shape(tokens, features, values.size(2), values.size(3), window);
  }

  GatherShape shape(int64_t tokens, int64_t features, int64_t group, int64_t tile,
                    int64_t window) const {
    const GatherShape result{tokens, features, index.size(0), index.size(1), group, tile, window};
    const int64_t windows = window > 0 ? (features + window - 1) / window : 0;
    TORCH_CHECK(features > 0 && group > 0 && tile > 0 && windows > 0 && index.numel() > 0 &&
                    index.size(1) % windows == 0,
                "expected entries of at least one weight, as many in every window, got [",
                index.size(0), ", ", index.size(1), ", ", group, ", ", tile, "] on ", windows,
                " windows of ", features, " features");
    return result;
  }

  // The shape, once the index's numbers are found to lie within it. The last window may be shorter
  // than the others.
  const GatherShape& checked(const GatherShape& shape) const {
    const int64_t windows = (shape.in_features + shape.window - 1) / shape.window;
    const int64_t full = std::min(shape.window, shape.in_features) / shape.group;
    const int64_t last = (shape.in_features - (windows - 1) * shape.window) / shape.group;
    const int64_t per_window = shape.entries / windows;
    const auto check = [&](const auto* numbers) {
      check_below("index", numbers, index.numel(), full);
      if (last == full) return;
      for (int64_t r = 1; r <= shape.row_blocks; ++r) {
        check_below("index", numbers + r * shape.entries - per_window, per_window, last);
      }
    };
    if (bytes() == 1) {
      check(index.const_data_ptr<uint8_t>());
    } else {
      check(index.const_data_ptr<int32_t>());
    }
    return shape;
  }

  // The packed form of the values for one of the gather form's products, null where there is none.
  // The index is checked where it will be read: by the product, or when the form is made.
  template <class T>
  KeptForm packed(const Tensor& values, const GatherShape& shape, PackedFor product) const {
    const bool forward = product == PackedFor::forward;
    const int64_t bytes = forward ? gather_gemm_forward_packed_bytes<T>(shape)
                                  : gather_gemm_input_grad_packed_bytes<T>(shape);
    const PackedForm form{product, shape.in_features, blocked_features(shape), shape.window, bytes};
    const auto make = [&] {
      checked(shape);
      const auto memory = aligned_memory(bytes);
      const auto pack = forward ? gather_gemm_forward_pack<T> : gather_gemm_input_grad_pack<T>;
      pack(present<T>(values), data(), this->bytes(), shape, memory.get());
      return Packed{memory, bytes};
    };
    const bool tiles = gather_gemm_on_tiles<T>(shape);
    const auto find = tiles ? kept_weights : packed_weights;
    const KeptForm kept = bytes ? find(values, given, form, make) : nullptr;
    if (!kept || tiles) checked(shape);
    return kept;
  }

  Tensor given, index, perm;
};

void check_features(const char* name, const Rows& rows, int64_t features) {
  TORCH_CHECK(rows.features == features, "expected ", name, " with ", features, " features, got ",
              rows.features);
}

}  // namespace

Tensor gather_gemm_op(const Tensor& x, const Tensor& values_, const Tensor& index,
                      const Tensor& perm, const Tensor& bias_, int64_t window,
                      c10::string_view activation) {
  check_one_dtype(x, values_);
  const Activation act = activation_named(activation);
  const Indexed indexed(index, perm);
  const Tensor values = stored(values_), bias = stored(bias_);
  const Rows rows(x);
  const GatherShape shape = indexed.shape(values, rows.count, rows.features, window);
  check_perm(indexed.perm, rows.features);
  check_bias(bias, x, blocked_features(shape));
  Tensor y = empty_rows(x, blocked_features(shape));
  for_dtype(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const KeptForm packed = indexed.packed<T>(values, shape, PackedFor::forward);
    gather_gemm_forward<T>(rows.data<T>(), rows.stride, present<T>(values), indexed.data(),
                           indexed.bytes(), indexed.perm_data(), {present<T>(bias), act},
                           static_cast<T*>(y.mutable_data_ptr()), shape, packed.get());
  });
  return y;
}

Tensor gather_gemm_input_grad_op(const Tensor& grad, const Tensor& values_, const Tensor& index,
                                 const Tensor& perm, int64_t window, int64_t in_features) {
  check_one_dtype(grad, values_);
  const Indexed indexed(index, perm);
  const Tensor values = stored(values_);
  const Rows rows(grad);
  const GatherShape shape = indexed.shape(values, rows.count, in_features, window);
  check_perm(indexed.perm, in_features);
  check_features("grad", rows, blocked_features(shape));
  Tensor dx = empty_rows(grad, in_features);
  for_dtype(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const KeptForm packed = indexed.packed<T>(values, shape, PackedFor::input_grad);
    gather_gemm_input_grad<T>(rows.data<T>(), rows.stride, present<T>(values), indexed.data(),
                              indexed.bytes(), indexed.perm_data(),
                              static_cast<T*>(dx.mutable_data_ptr()), shape, packed.get());
  });
  return dx;
}

Tensor gather_gemm_weight_grad_op(const Tensor& grad, const Tensor& x, const Tensor& index,
                                  const Tensor& perm, int64_t window, int64_t group) {
  check_one_dtype(grad, x);
  const Indexed indexed(index, perm);
  const Rows grad_rows(grad), rows(x);
  check_same_rows(grad_rows, rows);
  check_perm(indexed.perm, rows.features);
  const int64_t blocks = std::max<int64_t>(indexed.index.size(0), 1);
  const GatherShape shape =
      indexed.checked(indexed.shape(rows.count, rows.features, group,
                                    grad_rows.features / blocks, window));
  check_features("grad", grad_rows, blocked_features(shape));
  Tensor dvalues = at::detail::empty_cpu(
      {shape.row_blocks, shape.entries, shape.group, shape.tile}, grad.scalar_type());
  for_dtype(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    gather_gemm_weight_grad<T>(grad_rows.data<T>(), grad_rows.stride, rows.data<T>(), rows.stride,
                               indexed.data(), indexed.bytes(), indexed.perm_data(),
                               static_cast<T*>(dvalues.mutable_data_ptr()), shape);
  });
  return dvalues;
}

Tensor scatter_gemm_op(const Tensor& x, const Tensor& values_, const Tensor& index,
                       const Tensor& perm, const Tensor& bias_, int64_t out_features,
                       c10::string_view activation) {
  check_one_dtype(x, values_);
  const Activation act = activation_named(activation);
  const Indexed indexed(index, perm);
  const Tensor values = stored(values_), bias = stored(bias_);
  const Rows rows(x);
  const GatherShape shape = indexed.shape(values, rows.count, out_features, out_features);
  check_perm(indexed.perm, rows.features);
  check_bias(bias, x, out_features);
  check_features("x", rows, blocked_features(shape));
  Tensor y = empty_rows(x, out_features);
  for_dtype(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const KeptForm packed = indexed.packed<T>(values, shape, PackedFor::input_grad);
    scatter_gemm_forward<T>(rows.data<T>(), rows.stride, present<T>(values), indexed.data(),
                            indexed.bytes(), indexed.perm_data(), {present<T>(bias), act},
                            static_cast<T*>(y.mutable_data_ptr()), shape, packed.get());
  });
  return y;
}

Tensor scatter_gemm_input_grad_op(const Tensor& grad, const Tensor& values_, const Tensor& index,
                                  const Tensor& perm) {
  check_one_dtype(grad, values_);
  const Indexed indexed(index, perm);
  const Tensor values = stored(values_);
  const Rows rows(grad);
  const GatherShape shape = indexed.shape(values, rows.count, rows.features, rows.features);
  check_perm(indexed.perm, blocked_features(shape));
  Tensor dx = empty_rows(grad, blocked_features(shape));
  for_dtype(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const KeptForm packed = indexed.packed<T>(values, shape, PackedFor::forward);
    scatter_gemm_input_grad<T>(rows.data<T>(), rows.stride, present<T>(values), indexed.data(),
                               indexed.bytes(), indexed.perm_data(),
                               static_cast<T*>(dx.mutable_data_ptr()), shape, packed.get());
  });
  return dx;
}

Tensor scatter_gemm_weight_grad_op(const Tensor& grad, const Tensor& x, const Tensor& index,
                                   const Tensor& perm, int64_t group) {
  check_one_dtype(grad, x);
  const Indexed indexed(index, perm);
  const Rows grad_rows(grad), rows(x);
  check_same_rows(grad_rows, rows);
  check_perm(indexed.perm, rows.features);
  const int64_t blocks = std::max<int64_t>(indexed.index.size(0), 1);
  const GatherShape shape =
      indexed.checked(indexed.shape(grad_rows.count, grad_rows.features, group,
                                    rows.features / blocks, grad_rows.features));
  check_features("x", rows, blocked_features(shape));
  Tensor dvalues = at::detail::empty_cpu(
      {shape.row_blocks, shape.entries, shape.group, shape.tile}, grad.scalar_type());
  for_dtype(grad, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    scatter_gemm_weight_grad<T>(grad_rows.data<T>(), grad_rows.stride, rows.data<T>(), rows.stride,
                                indexed.data(), indexed.bytes(), indexed.perm_data(),
                                static_cast<T*>(dvalues.mutable_data_ptr()), shape);
  });
  return dvalues;
}

}  // namespace padst
