// Sums over terms with tokens in the lanes: source rows are loaded once, values are broadcast.
//
// A tile holds C vectors of tokens for each feature, side by side.
#pragma once

#include "gather_gemm/entries.h"
#include "native/simd.h"

namespace padst {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

template <class A>
struct Sums {
  const Term* first;
  const Term* last;
  int64_t depth, value_stride, depth_stride;
  const A* source;
  const A* values;
};

// ROWS sums of C vectors of tokens each. STRIDE is the value stride where it is known, else 0.
template <class A, int ROWS, int C, int STRIDE>
void add_up(const Sums<A>& sums, A* out) {
  using V = Vector<A>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t stride = STRIDE ? STRIDE : sums.value_stride;
  constexpr int64_t line_size = 64 / sizeof(A);
  const int64_t lines = std::min<int64_t>(8, ROWS * sums.depth / line_size);
  V total[ROWS][C] = {};
  for (const Term* term = sums.first; term != sums.last; ++term) {
    const A* x = sums.source + term->source * (C * lanes);
    const A* value = sums.values + term->value;
    // Blocks lie anywhere, and are read once a tile: the processor does not see the next one coming.
    const A* next = sums.values + (term + 1 == sums.last ? term : term + 1)->value;
    for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(next + line * line_size);
    for (int64_t k = 0; k < sums.depth; ++k, x += C * lanes, value += sums.depth_stride) {
      V row[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) row[c] = load<V>(x + c * lanes);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) total[r][c] += row[c] * value[r * stride];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(out + (r * C + c) * lanes, total[r][c]);
  }
}

template <class A, int C, int STRIDE>
void add_up_rows(Sums<A> sums, int64_t rows, A* out) {
  const auto step = [&](auto count, auto kernel) {
    for (; rows >= count; rows -= count) {
      kernel(sums, out);
      sums.values += count * sums.value_stride;
      out += count * C * kLanes<A>;
    }
  };
  if constexpr (C == 1 && kRegisters == 32) step(16, add_up<A, 16, C, STRIDE>);
  if constexpr (C == 1 || kRegisters == 32) step(8, add_up<A, 8, C, STRIDE>);
  step(4, add_up<A, 4, C, STRIDE>);
  step(2, add_up<A, 2, C, STRIDE>);
  step(1, add_up<A, 1, C, STRIDE>);
}

template <class A, int C>
void add_up_group(const Sums<A>& sums, int64_t rows, A* out) {
  switch (sums.value_stride) {
    case 1: return add_up_rows<A, C, 1>(sums, rows, out);
    case 8: return add_up_rows<A, C, 8>(sums, rows, out);
    case 16: return add_up_rows<A, C, 16>(sums, rows, out);
    case 32: return add_up_rows<A, C, 32>(sums, rows, out);
    default: return add_up_rows<A, C, 0>(sums, rows, out);
  }
}

// The sums of adjacent source rows with COUNT lists of `depth` adjacent values, each added to its
// own vectors.
template <class A, int COUNT, int C>
void spread(const A* source, int64_t depth, const A* values, A* const* to) {
  using V = Vector<A>;
  constexpr int64_t lanes = kLanes<A>;
  V total[COUNT][C] = {};
  for (int64_t k = 0; k < depth; ++k, source += C * lanes) {
    V row[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) row[c] = load<V>(source + c * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) total[i][c] += row[c] * values[i * depth + k];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < COUNT; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      A* at = to[i] + c * lanes;
      store(at, load<V>(at) + total[i][c]);
    }
  }
}

// Groups of adjacent outputs that share their terms.
template <class A>
class GroupSums {
 public:
  static constexpr int kMostVectors = 3;

  // Outputs of a group; source rows of a term; values from one output, one source row to the next.
  GroupSums(const TermLists& lists, int64_t group, int64_t depth, int64_t value_stride,
            int64_t depth_stride, const A* values)
      : lists_(lists), group_(group), depth_(depth), value_stride_(value_stride),
        depth_stride_(depth_stride), values_(values),
        groups_(static_cast<int64_t>(lists.first.size()) - 1),
        batch_(std::max<int64_t>(1, 16 / group)) {}

  int64_t batches() const { return (groups_ + batch_ - 1) / batch_; }
  int64_t first_output(int64_t batch) const { return std::min(batch * batch_, groups_) * group_; }
  int64_t widest() const { return batch_ * group_; }

  template <int C>
  void add_up(const A* source, int64_t batch, A* out) const {
    const int64_t last = std::min((batch + 1) * batch_, groups_);
    const Term* terms = lists_.terms.data();
    for (int64_t g = batch * batch_; g < last; ++g, out += group_ * C * kLanes<A>) {
      add_up_group<A, C>({terms + lists_.first[g], terms + lists_.first[g + 1], depth_,
                          value_stride_, depth_stride_, source, values_},
                         group_, out);
    }
  }

 private:
  const TermLists& lists_;
  int64_t group_, depth_, value_stride_, depth_stride_;
  const A* values_;
  int64_t groups_, batch_;
};

}  // namespace padst
