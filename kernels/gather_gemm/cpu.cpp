// The six functions in terms of a product over terms and of outer products under the index.
#include "gather_gemm/cpu.h"

#include <vector>

#include "gather_gemm/product.h"
#include "gather_gemm/weight_grad.h"

namespace padst {
namespace {

// `count` elements in the accumulation type: the elements themselves, or a converted copy.
template <class T>
class Widened {
 public:
  Widened(const T* values, int64_t count) : values_(values) {
    if (std::is_same_v<T, Accumulator<T>> || !values) return;
    copy_.resize(count);
    for (int64_t i = 0; i < count; ++i) copy_[i] = widen(values[i]);
  }

  const Accumulator<T>* get() const {
    if constexpr (std::is_same_v<T, Accumulator<T>>) {
      return values_;
    } else {
      return copy_.empty() ? nullptr : copy_.data();
    }
  }

 private:
  const T* values_;
  std::vector<Accumulator<T>> copy_;
};

int64_t blocked_features(const GatherShape& shape) { return shape.row_blocks * shape.tile; }

int64_t value_count(const GatherShape& shape) {
  return shape.row_blocks * shape.entries * shape.group * shape.tile;
}

std::vector<int32_t> inverse(const int32_t* perm, int64_t features) {
  std::vector<int32_t> result(perm ? features : 0);
  for (size_t i = 0; i < result.size(); ++i) result[perm[i]] = static_cast<int32_t>(i);
  return result;
}

const int32_t* map_of(const std::vector<int32_t>& map) {
  return map.empty() ? nullptr : map.data();
}

// Rows of blocked features as sums over the entries of their row block.
template <class T>
void gather_product(const T* x, int64_t ldx, const int32_t* x_map, const T* values,
                    const Columns& columns, Epilogue<T> epilogue, T* y, const int32_t* y_map,
                    const GatherShape& shape) {
  const Widened<T> wide(values, value_count(shape)), bias(epilogue.bias, blocked_features(shape));
  const TermLists lists = gather_terms(columns, shape);
  const Product<T> product{x, ldx, shape.tokens, shape.in_features, x_map, lists, shape.tile,
                           shape.group, 1, shape.tile, wide.get(), bias.get(),
                           epilogue.activation, y, y_map};
  ProductRun<T>(product).run();
}

// The transposed product: columns as sums over the entries that cover them.
template <class T>
void scatter_product(const T* x, int64_t ldx, const int32_t* x_map, const T* values,
                     const Columns& columns, Epilogue<T> epilogue, T* y, const int32_t* y_map,
                     const GatherShape& shape) {
  const Widened<T> wide(values, value_count(shape)), bias(epilogue.bias, shape.in_features);
  const TermLists lists = scatter_terms(columns, shape);
  const Product<T> product{x, ldx, shape.tokens, blocked_features(shape), x_map, lists,
                           transposed_rows(shape), shape.tile, shape.tile, 1, wide.get(),
                           bias.get(), epilogue.activation, y, y_map};
  ProductRun<T>(product).run();
}

template <class T>
void outer_products(const T* gathered, int64_t gathered_stride, const int32_t* gathered_map,
                    const T* blocked, int64_t blocked_stride, const int32_t* blocked_map,
                    const Columns& columns, T* dvalues, const GatherShape& shape) {
  using A = Accumulator<T>;
  const int64_t count = value_count(shape);
  constexpr bool direct = std::is_same_v<T, A>;
  std::vector<A> sums(direct ? 0 : count);
  A* to = direct ? reinterpret_cast<A*>(dvalues) : sums.data();
  std::fill(to, to + count, A{0});
  const OuterProducts<T> products{gathered, gathered_stride, gathered_map, blocked,
                                  blocked_stride, blocked_map, columns, shape, to};
  OuterProductsRun<T>(products, shape.tokens).run();
  if (!direct) std::transform(to, to + count, dvalues, [](A sum) { return narrow<T>(sum); });
}

}  // namespace

template <class T>
void gather_gemm_forward(const T* x, int64_t ldx, const T* values, const void* index,
                         int index_bytes, const int32_t* perm, Epilogue<T> epilogue, T* y,
                         GatherShape shape, const void*) {
  const Columns columns(index, index_bytes, shape);
  const auto map = inverse(perm, shape.in_features);
  gather_product(x, ldx, map_of(map), values, columns, epilogue, y, nullptr, shape);
}

template <class T>
void gather_gemm_input_grad(const T* grad, int64_t ldg, const T* values, const void* index,
                            int index_bytes, const int32_t* perm, T* dx, GatherShape shape,
                            const void*) {
  const Columns columns(index, index_bytes, shape);
  const auto map = inverse(perm, shape.in_features);
  scatter_product<T>(grad, ldg, nullptr, values, columns, {nullptr, Activation::none}, dx,
                     map_of(map), shape);
}

template <class T>
void gather_gemm_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx,
                             const void* index, int index_bytes, const int32_t* perm, T* dvalues,
                             GatherShape shape) {
  const Columns columns(index, index_bytes, shape);
  const auto map = inverse(perm, shape.in_features);
  outer_products<T>(x, ldx, map_of(map), grad, ldg, nullptr, columns, dvalues, shape);
}

template <class T>
void scatter_gemm_forward(const T* x, int64_t ldx, const T* values, const void* index,
                          int index_bytes, const int32_t* perm, Epilogue<T> epilogue, T* y,
                          GatherShape shape, const void*) {
  const Columns columns(index, index_bytes, shape);
  const auto map = inverse(perm, blocked_features(shape));
  scatter_product(x, ldx, map_of(map), values, columns, epilogue, y, nullptr, shape);
}

template <class T>
void scatter_gemm_input_grad(const T* grad, int64_t ldg, const T* values, const void* index,
                             int index_bytes, const int32_t* perm, T* dx, GatherShape shape,
                             const void*) {
  const Columns columns(index, index_bytes, shape);
  const auto map = inverse(perm, blocked_features(shape));
  gather_product<T>(grad, ldg, nullptr, values, columns, {nullptr, Activation::none}, dx,
                    map_of(map), shape);
}

template <class T>
void scatter_gemm_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx,
                              const void* index, int index_bytes, const int32_t* perm, T* dvalues,
                              GatherShape shape) {
  const Columns columns(index, index_bytes, shape);
  const auto map = inverse(perm, blocked_features(shape));
  outer_products<T>(grad, ldg, nullptr, x, ldx, map_of(map), columns, dvalues, shape);
}

int64_t gather_gemm_forward_packed_bytes(GatherShape) { return 0; }
int64_t gather_gemm_input_grad_packed_bytes(GatherShape) { return 0; }
int64_t scatter_gemm_forward_packed_bytes(GatherShape) { return 0; }
int64_t scatter_gemm_input_grad_packed_bytes(GatherShape) { return 0; }

template <class T>
void gather_gemm_forward_pack(const T*, const void*, int, GatherShape, void*) {}
template <class T>
void gather_gemm_input_grad_pack(const T*, const void*, int, GatherShape, void*) {}
template <class T>
void scatter_gemm_forward_pack(const T*, const void*, int, GatherShape, void*) {}
template <class T>
void scatter_gemm_input_grad_pack(const T*, const void*, int, GatherShape, void*) {}

#define PADST_INSTANTIATE(T)                                                                     \
  template void gather_gemm_forward<T>(const T*, int64_t, const T*, const void*, int,            \
                                       const int32_t*, Epilogue<T>, T*, GatherShape,             \
                                       const void*);                                             \
  template void gather_gemm_input_grad<T>(const T*, int64_t, const T*, const void*, int,         \
                                          const int32_t*, T*, GatherShape, const void*);         \
  template void gather_gemm_weight_grad<T>(const T*, int64_t, const T*, int64_t, const void*,    \
                                           int, const int32_t*, T*, GatherShape);                \
  template void scatter_gemm_forward<T>(const T*, int64_t, const T*, const void*, int,           \
                                        const int32_t*, Epilogue<T>, T*, GatherShape,            \
                                        const void*);                                            \
  template void scatter_gemm_input_grad<T>(const T*, int64_t, const T*, const void*, int,        \
                                           const int32_t*, T*, GatherShape, const void*);        \
  template void scatter_gemm_weight_grad<T>(const T*, int64_t, const T*, int64_t, const void*,   \
                                            int, const int32_t*, T*, GatherShape);               \
  template void gather_gemm_forward_pack<T>(const T*, const void*, int, GatherShape, void*);     \
  template void gather_gemm_input_grad_pack<T>(const T*, const void*, int, GatherShape, void*);  \
  template void scatter_gemm_forward_pack<T>(const T*, const void*, int, GatherShape, void*);    \
  template void scatter_gemm_input_grad_pack<T>(const T*, const void*, int, GatherShape, void*);

PADST_INSTANTIATE(float)
PADST_INSTANTIATE(double)
PADST_INSTANTIATE(BFloat16)
PADST_INSTANTIATE(Half)

#undef PADST_INSTANTIATE

}  // namespace padst
