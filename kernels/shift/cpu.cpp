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

// What it takes to read values as they are stored: widened ones, and the ranks of offsets.
template <class T>
class StoredValues {
 public:
  StoredValues(const T* values, const Diagonals<Accumulator<T>>& of)
      : diagonals(of),
        wide_(of.count * of.shorter),
        ranks_(ranks_of(of.offsets, of.count, of.longer)) {
    diagonals.values = widened(values, of.count * of.shorter, wide_);
  }

  const int32_t* ranks() const { return ranks_.data(); }

  Diagonals<Accumulator<T>> diagonals;

 private:
  const WidenedMemory<T> wide_;
  const std::vector<int32_t> ranks_;
};

template <class T>
Diagonals<Accumulator<T>> diagonals_of(const int32_t* offsets, const ShiftShape& shape) {
  return {nullptr, offsets, shape.diagonals, std::min(shape.out_features, shape.in_features),
          std::max(shape.out_features, shape.in_features)};
}

template <class T, bool spread>
Packed stream_of(const T* values, const int32_t* offsets, const ShiftShape& shape) {
  const StoredValues<T> stored(values, diagonals_of<T>(offsets, shape));
  const auto stream = std::make_shared<const ValueStream<Accumulator<T>, spread>>(
      stored.diagonals, stored.ranks(), true);
  return {stream, stream->bytes()};
}

// Up to this many vectors a thread, making a stream takes longer than one call gains by it.
constexpr int64_t kStoredVectors = 4;

// Permutes what is read (forward) or what is written (input gradient).
template <class T, bool spread, bool writes_perm>
void product(const T* x, int64_t stride, const T* values, const int32_t* offsets,
             const int32_t* perm, const Epilogue<T>& epilogue, T* y, const ShiftShape& shape,
             const void* stream) {
  using A = Accumulator<T>;
  using Stream = ValueStream<A, spread>;
  const int64_t tokens = shape.tokens;
  Diagonals<A> diagonals = diagonals_of<T>(offsets, shape);
  if (tokens == 0) return;
  if (!shift_streams<T>(tokens)) {
    const int64_t count = diagonals.count * diagonals.shorter;
    const WidenedMemory<T> memory(count);
    diagonals.values = widened(values, count, memory);
    const FewTokens<T, spread> few(diagonals, writes_perm ? nullptr : perm,
                                   writes_perm ? perm : nullptr, epilogue);
    return few.run(x, stride, tokens, y);
  }
  std::vector<int32_t> places;
  if (perm) places = inverse_of(perm, diagonals.template sources<spread != writes_perm>());
  const int32_t* const inverse = perm ? places.data() : nullptr;
  const ManyTokens<T, spread> many(diagonals, writes_perm ? nullptr : inverse,
                                   writes_perm ? inverse : nullptr, epilogue);
  const auto run = [&](const auto& from) { many.run(x, stride, tokens, y, from); };
  if (stream) return run(StreamedProduct<A, spread>(*static_cast<const Stream*>(stream)));
  const StoredValues<T> stored(values, diagonals);
  if (tokens <= kStoredVectors * kLanes<A> * threads()) {
    run(StoredProduct<A, spread>(stored.diagonals, stored.ranks()));
  } else {
    const Stream fresh(stored.diagonals, stored.ranks(), false);
    run(StreamedProduct<A, spread>(fresh));
  }
}

bool forward_spreads(const ShiftShape& shape) { return shape.out_features >= shape.in_features; }
bool input_grad_spreads(const ShiftShape& shape) { return shape.out_features < shape.in_features; }

}  // namespace

template <class T>
bool shift_streams(int64_t tokens) {
  return tokens > kFewTokens<Accumulator<T>>;
}

template <class T>
Packed shift_forward_stream(const T* values, const int32_t* offsets, ShiftShape shape) {
  const auto make = forward_spreads(shape) ? stream_of<T, true> : stream_of<T, false>;
  return make(values, offsets, shape);
}

template <class T>
Packed shift_input_grad_stream(const T* values, const int32_t* offsets, ShiftShape shape) {
  const auto make = input_grad_spreads(shape) ? stream_of<T, true> : stream_of<T, false>;
  return make(values, offsets, shape);
}

template <class T>
void shift_forward(const T* x, int64_t ldx, const T* values, const int32_t* offsets,
                   const int32_t* perm, Epilogue<T> epilogue, T* y, ShiftShape shape,
                   const void* stream) {
  const auto run = forward_spreads(shape) ? product<T, true, false> : product<T, false, false>;
  run(x, ldx, values, offsets, perm, epilogue, y, shape, stream);
}

template <class T>
void shift_input_grad(const T* grad, int64_t ldg, const T* values, const int32_t* offsets,
                      const int32_t* perm, T* dx, ShiftShape shape, const void* stream) {
  const auto run = input_grad_spreads(shape) ? product<T, true, true> : product<T, false, true>;
  run(grad, ldg, values, offsets, perm, {nullptr, Activation::none}, dx, shape, stream);
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
  template bool shift_streams<T>(int64_t);                                                        \
  template Packed shift_forward_stream<T>(const T*, const int32_t*, ShiftShape);                  \
  template Packed shift_input_grad_stream<T>(const T*, const int32_t*, ShiftShape);               \
  template void shift_forward<T>(const T*, int64_t, const T*, const int32_t*, const int32_t*,     \
                                 Epilogue<T>, T*, ShiftShape, const void*);                       \
  template void shift_input_grad<T>(const T*, int64_t, const T*, const int32_t*, const int32_t*, \
                                    T*, ShiftShape, const void*);                                 \
  template void shift_weight_grad<T>(const T*, int64_t, const T*, int64_t, const int32_t*,        \
                                     const int32_t*, T*, ShiftShape);
PADST_SHIFT(float)
PADST_SHIFT(double)
PADST_SHIFT(BFloat16)
PADST_SHIFT(Half)
#undef PADST_SHIFT

}  // namespace padst
