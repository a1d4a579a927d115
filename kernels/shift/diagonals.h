// Which diagonals feed a group of neighbouring results, and from where.
//
// A product with diagonals goes from `source` to `result` features. It collects when the result is
// the shorter side: result f adds up values[k, f] * source[(f + o_k) mod longer]. It spreads when
// the result is the longer side: result f adds up values[k, t] * source[t] with t = (f - o_k) mod
// longer wherever t < shorter.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "native/parallel.h"
#include "native/scratch.h"
#include "native/simd.h"

namespace padst {

template <class A>
struct Diagonals {
  const A* values;
  const int32_t* offsets;
  int64_t count, shorter, longer;

  template <bool spread>
  int64_t sources() const {
    return spread ? shorter : longer;
  }
  template <bool spread>
  int64_t results() const {
    return spread ? longer : shorter;
  }
};

// Diagonals [first, last): the group's first result reads source `base` + o_k, or `base` - o_k when
// spreading, and its neighbours the sources that follow. `partial`: some of the group's values lie
// outside the diagonal; they count as zero.
struct Span {
  int first, last;
  int64_t base;
  bool partial;
};

constexpr int kMostSpans = 5;

// From one diagonal to the one whose sources come next: where products add up diagonals one by one,
// they do so in this order, with sources ascending.
template <bool spread>
constexpr int kStep = spread ? -1 : 1;

// Number i of `count` diagonals or windows from `first` on, in that order.
template <bool spread>
constexpr int64_t in_turn(int64_t first, int64_t count, int64_t i) {
  return spread ? first + count - 1 - i : first + i;
}

// The spans of results [f, f + group) among diagonals [first, last), in that order. rank(o) is the
// number of diagonals with an offset below o, kept within [first, last].
template <bool spread, class A, class Rank>
inline int spans_of(const Diagonals<A>& diagonals, int64_t f, int64_t group, int first, int last,
                    const Rank& rank, Span* spans) {
  const int64_t shorter = diagonals.shorter, longer = diagonals.longer;
  int count = 0;
  const auto add = [&](int from, int to, int64_t base, bool partial) {
    spans[count] = {from, to, base, partial};
    count += from < to;
  };
  if constexpr (!spread) {
    const int wrapped = rank(longer - f);
    const bool partial = f + group > shorter;
    add(first, wrapped, f, partial);
    add(wrapped, last, f - longer, partial);
  } else {
    // The last source from which the whole group lies within the diagonal.
    const int64_t whole = std::max<int64_t>(shorter - group, -1);
    const int64_t low = diagonals.offsets[first], high = diagonals.offsets[last - 1];
    if (f - whole <= low && high <= f) {
      add(first, last, f, false);
      return count;
    }
    if (f + longer - whole <= low) {
      add(first, last, f + longer, false);
      return count;
    }
    const int end = rank(f + 1);
    const int from = std::min(rank(f - whole), end);
    const int full = rank(f + longer - whole);
    // Beyond f the sources wrap around; just beyond, the group begins before the diagonal does.
    add(full, last, f + longer, false);
    add(rank(f + longer - shorter + 1), full, f + longer, true);
    add(end, rank(f + 1 + std::min(group - 1, longer - shorter)), f, true);
    add(from, end, f, false);
    add(rank(f - shorter + 1), from, f, true);
  }
  return count;
}

// The values that a partial group takes from diagonal k. Its first result is f and reads `source`.
template <bool spread, class A>
__attribute__((noinline)) void partial_values(const Diagonals<A>& diagonals, int64_t k, int64_t f,
                                              int64_t source, int group, A* out) {
  const A* values = diagonals.values + k * diagonals.shorter;
  const int64_t shorter = diagonals.shorter, longer = diagonals.longer;
  if constexpr (!spread) {
    const int64_t inside = std::min<int64_t>(group, shorter - f);
    std::fill(std::copy_n(values + f, inside, out), out + group, A{0});
    return;
  }
  int64_t t = (source % longer + longer) % longer;
  for (int64_t r = 0; r < group;) {
    const bool inside = t < shorter;
    const int64_t count = std::min(group - r, (inside ? shorter : longer) - t);
    if (inside) {
      std::copy_n(values + t, count, out + r);
    } else {
      std::fill_n(out + r, count, A{0});
    }
    r += count;
    t = (t + count) % longer;
  }
}

// The source that stands at place t of the padded sources, t in [1 - group, sources + group - 1);
// -1 stands for zero.
template <bool spread, class A>
inline int64_t padded_source(const Diagonals<A>& diagonals, int64_t t) {
  while (t < 0) t += diagonals.longer;
  while (t >= diagonals.longer) t -= diagonals.longer;
  return t < diagonals.template sources<spread>() ? t : -1;
}

// The number of offsets below o, for every o in [0, longer].
inline std::vector<int32_t> ranks_of(const int32_t* offsets, int64_t count, int64_t longer) {
  std::vector<int32_t> ranks(longer + 1, static_cast<int32_t>(count));
  int64_t o = 0;
  for (int64_t k = 0; k < count; ++k) {
    for (; o <= offsets[k]; ++o) ranks[o] = static_cast<int32_t>(k);
  }
  return ranks;
}

inline std::vector<int32_t> inverse_of(const int32_t* perm, int64_t count) {
  // Zeros: a number that is missing from a damaged permutation must not leave a wild address.
  std::vector<int32_t> inverse(count);
  for (int64_t i = 0; i < count; ++i) inverse[perm[i]] = static_cast<int32_t>(i);
  return inverse;
}

}  // namespace padst
