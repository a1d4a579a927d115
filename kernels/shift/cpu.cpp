#include "shift/cpu.h"

#include <type_traits>

#include "shift/few_tokens.h"
#include "shift/many_tokens.h"
#include "shift/weight_grad.h"

namespace padst {

namespace {

// Fewer tokens than this have neighbouring results in vector lanes instead of tokens.
template <class A>
constexpr int64_t kFewTokens = kLanes<A> * 3 / 4;

// Memory for values in the type that adds up; none where they are stored in that type.
struct NoMemory {
  explicit NoMemory(int64_t) {}
};
struct FloatMemory : Scratch {
  explicit FloatMemory(int64_t count) : Scratch(count * sizeof(float)) {}
};
template <class T>
using WidenedMemory =
    std::conditional_t<std::is_same_v<T, Accumulator<T>>, NoMemory, FloatMemory>;

template <class T>
const Accumulator<T>* widened(const T* values, int64_t count,
                              [[maybe_unused]] const WidenedMemory<T>& memory) {
  if constexpr (std::is_same_v<T, Accumulator<T>>) {
    return values;
  } else {
    using V = Vector<float>;
    constexpr int64_t lanes = kLanes<float>;
    float* wide = memory.template as<float>();
    parallel((count + lanes - 1) / lanes, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first * lanes; i < last * lanes; i += lanes) {
        store_first(wide + i, load_first<V>(values + i, count - i), count - i);
      }
    });
    return wide;
  }
}

// Permutes what is read (forward) or what is written (input gradient).
template <class T, bool spread, bool writes_perm>
void product(const T* x, int64_t stride, int64_t tokens, const T* values, const int32_t* perm,
             Diagonals<Accumulator<T>> diagonals, const Epilogue<T>& epilogue, T* y) {
  using A = Accumulator<T>;
  if (tokens == 0) return;
  const int64_t count = diagonals.count * diagonals.shorter;
  const WidenedMemory<T> memory(count);
  diagonals.values = widened(values, count, memory);
  if (tokens <= kFewTokens<A>) {
    const FewTokens<T, spread> few(diagonals, writes_perm ? nullptr : perm,
                                   writes_perm ? perm : nullptr, epilogue);
    return few.run(x, stride, tokens, y);
  }
  const int64_t longer = diagonals.longer;
  const int64_t permuted = perm ? diagonals.template sources<spread != writes_perm>() : 0;
  const Scratch integers((longer + 1 + permuted) * sizeof(int32_t));
  int32_t* ranks = integers.as<int32_t>();
  rank_offsets(diagonals.offsets, diagonals.count, longer, ranks);
  int32_t* inverse = perm ? ranks + longer + 1 : nullptr;
  if (perm) invert(perm, permuted, inverse);
  const ManyTokens<T, spread> many(diagonals, ranks, writes_perm ? nullptr : inverse,
                                   writes_perm ? inverse : nullptr, epilogue);
  many.run(x, stride, tokens, y);
}

}  // namespace

template <class T>
void shift_forward(const T* x, int64_t ldx, const T* values, const int32_t* offsets,
                   const int32_t* perm, Epilogue<T> epilogue, T* y, ShiftShape shape) {
  const int64_t rows = shape.out_features, columns = shape.in_features;
  const Diagonals<Accumulator<T>> diagonals{nullptr, offsets, shape.diagonals,
                                            std::min(rows, columns), std::max(rows, columns)};
  if (rows >= columns) {
    product<T, true, false>(x, ldx, shape.tokens, values, perm, diagonals, epilogue, y);
  } else {
    product<T, false, false>(x, ldx, shape.tokens, values, perm, diagonals, epilogue, y);
  }
}

template <class T>
void shift_input_grad(const T* grad, int64_t ldg, const T* values, const int32_t* offsets,
                      const int32_t* perm, T* dx, ShiftShape shape) {
  const int64_t rows = shape.out_features, columns = shape.in_features;
  const Diagonals<Accumulator<T>> diagonals{nullptr, offsets, shape.diagonals,
                                            std::min(rows, columns), std::max(rows, columns)};
  const Epilogue<T> none{nullptr, Activation::none};
  if (rows < columns) {
    product<T, true, true>(grad, ldg, shape.tokens, values, perm, diagonals, none, dx);
  } else {
    product<T, false, true>(grad, ldg, shape.tokens, values, perm, diagonals, none, dx);
  }
}

template <class T>
void shift_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx, const int32_t* offsets,
                       const int32_t* perm, T* dvalues, ShiftShape shape) {
  using A = Accumulator<T>;
  const Side<T> rows{grad, ldg, shape.out_features, nullptr};
  const Side<T> columns{x, ldx, shape.in_features, perm};
  const bool tall = shape.out_features >= shape.in_features;
  const int64_t count = shape.diagonals * std::min(shape.out_features, shape.in_features);
  if (shape.tokens == 0) return std::fill(dvalues, dvalues + count, T{});
  const WidenedMemory<T> memory(count);
  A* sums;
  if constexpr (std::is_same_v<T, A>) {
    sums = dvalues;
  } else {
    sums = memory.template as<A>();
  }
  const WeightGrad<T> product(tall ? columns : rows, tall ? rows : columns, offsets,
                              shape.diagonals, sums);
  product.run(shape.tokens);
  if constexpr (!std::is_same_v<T, A>) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t i = 0; i < count; i += lanes) {
      store_first(dvalues + i, load_first<Vector<A>>(sums + i, count - i), count - i);
    }
  }
}

#define PADST_SHIFT(T)                                                                            \
  template void shift_forward<T>(const T*, int64_t, const T*, const int32_t*, const int32_t*,     \
                                 Epilogue<T>, T*, ShiftShape);                                    \
  template void shift_input_grad<T>(const T*, int64_t, const T*, const int32_t*, const int32_t*, \
                                    T*, ShiftShape);                                              \
  template void shift_weight_grad<T>(const T*, int64_t, const T*, int64_t, const int32_t*,        \
                                     const int32_t*, T*, ShiftShape);
PADST_SHIFT(float)
PADST_SHIFT(double)
PADST_SHIFT(BFloat16)
PADST_SHIFT(Half)
#undef PADST_SHIFT

}  // namespace padst
