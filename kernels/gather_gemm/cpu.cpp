// The six functions in terms of a product over terms and of outer products under the index.
#include "gather_gemm/cpu.h"

#include <cstddef>
#include <memory>
#include <vector>

#include "gather_gemm/few_tokens.h"
#include "gather_gemm/packed_rows.h"
#include "gather_gemm/panel_products.h"
#include "gather_gemm/product.h"
#include "gather_gemm/sorted_terms.h"
#include "gather_gemm/tile_columns.h"
#include "gather_gemm/tile_product.h"
#include "gather_gemm/weight_grad.h"
#include "native/parallel.h"
#include "native/scratch.h"

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
  // Zeros: a number that is missing from a damaged permutation must not leave a wild address.
  std::vector<int32_t> result(perm ? features : 0);
  for (size_t i = 0; i < result.size(); ++i) result[perm[i]] = static_cast<int32_t>(i);
  return result;
}

const int32_t* map_of(const std::vector<int32_t>& map) {
  return map.empty() ? nullptr : map.data();
}

// A product of entries of one value each; `packed` are their sorted terms, null: sorted now.
template <class T>
void sorted_product(const Product<T>& product, const T* values, const void* index,
                    int index_bytes, const GatherShape& shape, bool transposed,
                    const void* packed) {
  using A = Accumulator<T>;
  const SortedTerms<A> form(shape, transposed);
  if (packed) return run_product(product, SortedSums<A>(form, packed));
  const std::unique_ptr<std::byte[]> memory(new std::byte[form.bytes()]);
  SortTerms<A, T>(form, Windows<A>(index, index_bytes, shape), values, memory.get()).run();
  run_product(product, SortedSums<A>(form, memory.get()));
}

// Rows of blocked features as sums over the entries of their row block.
template <class T>
void gather_product(const T* x, int64_t ldx, const int32_t* x_map, const T* values,
                    const void* index, int index_bytes, Epilogue<T> epilogue, T* y,
                    const int32_t* y_map, const GatherShape& shape, const void* packed) {
  using A = Accumulator<T>;
  const Product<T> product{x, ldx, shape.tokens, shape.in_features, x_map, epilogue, y, y_map};
  if (shape.tokens <= kFewTokens<A> && fills_vectors<A>(shape.tile) && !y_map) {
    const Columns columns(index, index_bytes, shape);
    if (shape.tile % (2 * kLanes<A>) == 0) {
      return gather_few<2, Vector<A>>(product, values, columns, shape);
    }
    if (shape.tile % kLanes<A> == 0) {
      return gather_few<1, Vector<A>>(product, values, columns, shape);
    }
    return gather_few<1, Vector<A, kSummed<A>>>(product, values, columns, shape);
  }
  if (SortedTerms<A>::used(shape)) {
    return sorted_product(product, values, index, index_bytes, shape, false, packed);
  }
  const Widened<T> wide(values, value_count(shape));
  const TermLists lists = gather_terms(Columns(index, index_bytes, shape), shape);
  run_product(product,
              GroupSums<A>(lists, shape.tile, shape.group, 1, shape.tile, wide.get()));
}

// The transposed product: columns as sums over the entries that cover them.
template <class T>
void scatter_product(const T* x, int64_t ldx, const int32_t* x_map, const T* values,
                     const void* index, int index_bytes, Epilogue<T> epilogue, T* y,
                     const int32_t* y_map, const GatherShape& shape, const void* packed) {
  using A = Accumulator<T>;
  const Product<T> product{x, ldx, shape.tokens, blocked_features(shape), x_map, epilogue, y,
                           y_map};
  if (shape.tokens <= kFewTokens<A> && fills_vectors<A>(shape.tile) && shape.group > 1) {
    const TermLists lists = scatter_terms(Columns(index, index_bytes, shape), shape);
    const int64_t group = transposed_rows(shape);
    if (shape.tile % kLanes<A> == 0) {
      return scatter_few<Vector<A>>(product, values, lists, group, shape.tile);
    }
    return scatter_few<Vector<A, kSummed<A>>>(product, values, lists, group, shape.tile);
  }
  if (SortedTerms<A>::used(shape)) {
    return sorted_product(product, values, index, index_bytes, shape, true, packed);
  }
  const Widened<T> wide(values, value_count(shape));
  if (shape.group == 1 && shape.window < shape.in_features && shape.entries) {
    const Windows<A> windows(index, index_bytes, shape);
    return run_product(product, ColumnSums<A>(windows, wide.get()));
  }
  const TermLists lists = scatter_terms(Columns(index, index_bytes, shape), shape);
  run_product(product, GroupSums<A>(lists, transposed_rows(shape), shape.tile, shape.tile, 1,
                                    wide.get()));
}

// Parts of the tokens, one a thread, that are added up apart, or 1 where threads share all tokens.
// Parts need memory for their sums; sharing moves packed tokens between the threads' caches.
int64_t token_parts(int64_t tokens, int64_t sums) {
  constexpr int64_t least_tokens = 64, most_sums = int64_t{1} << 23;
  const int64_t parts = threads();
  return tokens >= parts * least_tokens && sums * parts <= most_sums ? parts : 1;
}

template <class T>
void run_outer_products(const OuterProducts<T>& products, int64_t tokens) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Accumulator<T>, float>) {
    // Rows that fill vectors are as quick without.
    const bool whole = products.shape.tile % kLanes<float> == 0;
    if (!whole && PanelProducts<T>::used(products.shape)) {
      return PanelProducts<T>(products, tokens).run();
    }
  }
#endif
  OuterProductsRun<T>(products, tokens).run();
}

template <class T>
void outer_products(const T* gathered, int64_t gathered_stride, const int32_t* gathered_map,
                    const T* blocked, int64_t blocked_stride, const int32_t* blocked_map,
                    const void* index, int index_bytes, T* dvalues, const GatherShape& shape) {
  using A = Accumulator<T>;
  const Columns columns(index, index_bytes, shape);
  const Windows<A> windows(index, index_bytes, shape);
  const bool single = SortedTerms<A>::used(shape);
  if (single && shape.tokens <= kFewTokens<A>) {
    return outer_few(gathered, gathered_stride, gathered_map, blocked, blocked_stride,
                     blocked_map, windows, dvalues);
  }
  const int64_t count = value_count(shape), parts = token_parts(shape.tokens, count);
  constexpr bool direct = std::is_same_v<T, A>;
  Scratch scratch((parts - direct) * count * sizeof(A));
  A* extra = scratch.template as<A>();
  A* to = direct ? reinterpret_cast<A*>(dvalues) : extra + (parts - 1) * count;
  const auto add = [&](int64_t part) {
    const int64_t first = shape.tokens * part / parts, last = shape.tokens * (part + 1) / parts;
    A* sums = part ? extra + (part - 1) * count : to;
    std::fill_n(sums, count, A{0});
    const OuterProducts<T> products{gathered + first * gathered_stride, gathered_stride,
                                    gathered_map, blocked + first * blocked_stride, blocked_stride,
                                    blocked_map, columns, single ? &windows : nullptr, shape,
                                    sums};
    run_outer_products(products, last - first);
  };
  if (parts == 1) {
    add(0);
  } else {
    parallel(parts, [&](int64_t first, int64_t last, int) {
      for (int64_t part = first; part < last; ++part) add(part);
    });
  }
  parallel(parts == 1 && direct ? 0 : count, [&](int64_t first, int64_t last, int) {
    for (int64_t part = 1; part < parts; ++part) {
      const A* from = extra + (part - 1) * count;
      for (int64_t i = first; i < last; ++i) to[i] += from[i];
    }
    if (!direct) std::transform(to + first, to + last, dvalues + first, narrow<T>);
  });
}

}  // namespace

template <class T>
void gather_gemm_forward(const T* x, int64_t ldx, const T* values, const void* index,
                         int index_bytes, const int32_t* perm, Epilogue<T> epilogue, T* y,
                         GatherShape shape, const void* packed) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (tiles_fit(shape)) {
      return gather_tiles(x, ldx, perm, values, Columns(index, index_bytes, shape), epilogue, y,
                          nullptr, shape, static_cast<const BFloat16*>(packed));
    }
  }
  const auto map = inverse(perm, shape.in_features);
  if constexpr (std::is_same_v<Accumulator<T>, float>) {
    if (packed && PackedRows::used(shape)) {
      const Windows<float> windows(index, index_bytes, shape);
      const Product<T> product{x, ldx, shape.tokens, shape.in_features, map_of(map), epilogue, y,
                               nullptr};
      return gather_packed(product, windows, packed);
    }
  }
  gather_product(x, ldx, map_of(map), values, index, index_bytes, epilogue, y, nullptr, shape,
                 packed);
}

template <class T>
void gather_gemm_input_grad(const T* grad, int64_t ldg, const T* values, const void* index,
                            int index_bytes, const int32_t* perm, T* dx, GatherShape shape,
                            const void* packed) {
  const auto map = inverse(perm, shape.in_features);
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (tiles_fit(shape)) {
      return scatter_tiles(grad, ldg, nullptr, values, Columns(index, index_bytes, shape),
                           {nullptr, Activation::none}, dx, map_of(map), shape,
                           static_cast<const BFloat16*>(packed));
    }
  }
  scatter_product<T>(grad, ldg, nullptr, values, index, index_bytes, {nullptr, Activation::none},
                     dx, map_of(map), shape, packed);
}

template <class T>
void gather_gemm_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx,
                             const void* index, int index_bytes, const int32_t* perm, T* dvalues,
                             GatherShape shape) {
  const auto map = inverse(perm, shape.in_features);
  outer_products<T>(x, ldx, map_of(map), grad, ldg, nullptr, index, index_bytes,
                    dvalues, shape);
}

template <class T>
void scatter_gemm_forward(const T* x, int64_t ldx, const T* values, const void* index,
                          int index_bytes, const int32_t* perm, Epilogue<T> epilogue, T* y,
                          GatherShape shape, [[maybe_unused]] const void* packed) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (tiles_fit(shape)) {
      return scatter_tiles(x, ldx, perm, values, Columns(index, index_bytes, shape), epilogue, y,
                           nullptr, shape, static_cast<const BFloat16*>(packed));
    }
  }
  const auto map = inverse(perm, blocked_features(shape));
  scatter_product(x, ldx, map_of(map), values, index, index_bytes, epilogue, y, nullptr, shape,
                  nullptr);
}

template <class T>
void scatter_gemm_input_grad(const T* grad, int64_t ldg, const T* values, const void* index,
                             int index_bytes, const int32_t* perm, T* dx, GatherShape shape,
                             [[maybe_unused]] const void* packed) {
  const auto map = inverse(perm, blocked_features(shape));
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (tiles_fit(shape)) {
      return gather_tiles(grad, ldg, nullptr, values, Columns(index, index_bytes, shape),
                          {nullptr, Activation::none}, dx, map_of(map), shape,
                          static_cast<const BFloat16*>(packed));
    }
  }
  gather_product<T>(grad, ldg, nullptr, values, index, index_bytes, {nullptr, Activation::none},
                    dx, map_of(map), shape, nullptr);
}

template <class T>
void scatter_gemm_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx,
                              const void* index, int index_bytes, const int32_t* perm, T* dvalues,
                              GatherShape shape) {
  const auto map = inverse(perm, blocked_features(shape));
  outer_products<T>(grad, ldg, nullptr, x, ldx, map_of(map), index, index_bytes,
                    dvalues, shape);
}

template <class T>
bool gather_gemm_on_tiles(GatherShape shape) {
  return std::is_same_v<T, BFloat16> && tiles_fit(shape);
}

template <class T>
int64_t gather_gemm_forward_packed_bytes(GatherShape shape) {
  using A = Accumulator<T>;
  if (gather_gemm_on_tiles<T>(shape)) return value_count(shape) * sizeof(T);
  if (std::is_same_v<A, float> && PackedRows::used(shape)) return PackedRows(shape).bytes();
  return SortedTerms<A>::used(shape) ? SortedTerms<A>(shape, false).bytes() : 0;
}

template <class T>
void gather_gemm_forward_pack(const T* values, const void* index, int index_bytes,
                              GatherShape shape, void* packed) {
  using A = Accumulator<T>;
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (tiles_fit(shape)) {
      const TermLists lists = gather_terms(Columns(index, index_bytes, shape), shape);
      return pack_tiles(gathered_values(values, lists, shape), static_cast<BFloat16*>(packed));
    }
  }
  if constexpr (std::is_same_v<A, float>) {
    if (PackedRows::used(shape)) {
      return pack_rows(values, Windows<float>(index, index_bytes, shape), packed);
    }
  }
  const SortedTerms<A> form(shape, false);
  SortTerms<A, T>(form, Windows<A>(index, index_bytes, shape), values, packed).run();
}

template <class T>
int64_t gather_gemm_input_grad_packed_bytes(GatherShape shape) {
  using A = Accumulator<T>;
  if (gather_gemm_on_tiles<T>(shape)) return value_count(shape) * sizeof(T);
  return SortedTerms<A>::used(shape) ? SortedTerms<A>(shape, true).bytes() : 0;
}

template <class T>
void gather_gemm_input_grad_pack(const T* values, const void* index, int index_bytes,
                                 GatherShape shape, void* packed) {
  using A = Accumulator<T>;
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (tiles_fit(shape)) {
      const TermLists lists = scatter_terms(Columns(index, index_bytes, shape), shape);
      return pack_tiles(scattered_values(values, lists, shape), static_cast<BFloat16*>(packed));
    }
  }
  const SortedTerms<A> form(shape, true);
  SortTerms<A, T>(form, Windows<A>(index, index_bytes, shape), values, packed).run();
}

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
  template bool gather_gemm_on_tiles<T>(GatherShape);                                            \
  template int64_t gather_gemm_forward_packed_bytes<T>(GatherShape);                             \
  template void gather_gemm_forward_pack<T>(const T*, const void*, int, GatherShape, void*);     \
  template int64_t gather_gemm_input_grad_packed_bytes<T>(GatherShape);                          \
  template void gather_gemm_input_grad_pack<T>(const T*, const void*, int, GatherShape, void*);

PADST_INSTANTIATE(float)
PADST_INSTANTIATE(double)
PADST_INSTANTIATE(BFloat16)
PADST_INSTANTIATE(Half)

#undef PADST_INSTANTIATE

}  // namespace padst
