// The weight gradient: dvalues[k, t] = sum over tokens of still[t] * moving[(t + o_k) mod longer],
// where `still` is the shorter side. Neighbouring entries of a diagonal are in vector lanes.
//
// Threads share tokens first: each copies the rows that it multiplies, so that none waits for lines
// out of another's cache, and sums into memory of its own. The sums are then added in order.
#pragma once

#include <vector>

#include "native/parallel.h"
#include "native/pick.h"
#include "native/scratch.h"
#include "native/simd.h"

namespace padst {

// One side of the product: its rows, and which of their features stands at place i (null: i).
template <class T>
struct Side {
  const T* rows;
  int64_t stride, features;
  const int32_t* from;
};

#if defined(__AVX512F__)
// Of a run of diagonals this many are read by shifting vectors of the first, the others unaligned:
// a load across two cache lines takes two.
constexpr int kShifted = 5;

// Lanes [by, by + lanes) of low and then high.
template <int by, class V>
inline V shifted(V low, V high) {
  const auto l = bit_cast<__m512i>(low), h = bit_cast<__m512i>(high);
  if constexpr (sizeof(Element<V>) == 4) {
    return bit_cast<V>(_mm512_alignr_epi32(h, l, by));
  } else {
    return bit_cast<V>(_mm512_alignr_epi64(h, l, by));
  }
}
#else
constexpr int kShifted = 0;

template <int by, class V>
inline V shifted(V low, V) {
  static_assert(by == 0);
  return low;
}
#endif

template <class T>
class WeightGrad {
 public:
  using A = Accumulator<T>;
  using V = Vector<A>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int block = 2 * lanes;

  WeightGrad(const Side<T>& still, const Side<T>& moving, const int32_t* offsets, int64_t diagonals,
             A* sums)
      : still_(still),
        moving_(moving),
        offsets_(offsets),
        diagonals_(diagonals),
        sums_(sums),
        // The last diagonal of a run reads a block and kDiagonals - 1 features more.
        moving_stride_(padded(moving.features + block + std::max<int>(lanes, kDiagonals))) {}

  // sums[k, t], written, never read before.
  void run(int64_t tokens) const {
    const int64_t workers = threads(), count = diagonals_ * still_.features;
    const int64_t affordable = 1 + kMostOwnBytes / static_cast<int64_t>(count * sizeof(A));
    const int64_t parts = std::clamp<int64_t>(tokens / kTokensWorthSums, 1,
                                              std::min(workers, affordable));
    const int64_t blocks = (still_.features + block - 1) / block;
    const int64_t ranges = std::clamp<int64_t>(workers / parts, 1, blocks);
    const int64_t splits = std::clamp<int64_t>(workers / (parts * ranges), 1,
                                               std::max<int64_t>(diagonals_ / kDiagonals, 1));
    const Scratch own((parts - 1) * count * sizeof(A));
    parallel(parts * ranges * splits, [&](int64_t first, int64_t last, int) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t part = task / (ranges * splits), range = task / splits % ranges;
        const int64_t split = task % splits;
        A* const sums = part == 0 ? sums_ : own.as<A>() + (part - 1) * count;
        add_tokens(tokens * part / parts, tokens * (part + 1) / parts,
                   blocks * range / ranges * block,
                   std::min(blocks * (range + 1) / ranges * block, still_.features),
                   products(diagonals_ * split / splits, diagonals_ * (split + 1) / splits), sums);
      }
    });
    if (parts == 1) return;
    parallel((count + kSumsTogether - 1) / kSumsTogether, [&](int64_t first, int64_t last, int) {
      const int64_t end = std::min(last * kSumsTogether, count);
      for (int64_t part = 1; part < parts; ++part) {
        const A* more = own.as<A>() + (part - 1) * count;
        for (int64_t i = first * kSumsTogether; i < end; i += lanes) {
          const V sum = load_first<V>(sums_ + i, end - i) + load_first<V>(more + i, end - i);
          store_first(sums_ + i, sum, end - i);
        }
      }
    });
  }

 private:
  // Fewer tokens than this are not worth sums of their own.
  static constexpr int64_t kTokensWorthSums = 64;
  static constexpr int64_t kMostOwnBytes = 64 << 20;
  static constexpr int64_t kSumsTogether = 1024;
  // Rows copied at a time; rows of them multiplied at a time; entries for which they stay in cache.
  static constexpr int64_t kTokensTogether = 128;
  static constexpr int64_t kTokensInCache = 32;
  static constexpr int64_t kPanel = 1024;
  static constexpr int kDiagonals = 8;
  // Neighbouring products that find each other's rows in the first-level cache.
  static constexpr size_t kProductsTogether = 2;

  // Diagonals [k, k + width) that are multiplied together; `run`: their offsets are neighbours.
  struct Product {
    int64_t k;
    int width;
    bool run;
  };

  std::vector<Product> products(int64_t from, int64_t to) const {
    const auto run_at = [&](int64_t k) {
      return k + kDiagonals <= to && offsets_[k + kDiagonals - 1] == offsets_[k] + kDiagonals - 1;
    };
    std::vector<Product> result;
    for (int64_t k = from; k < to; k += result.back().width) {
      if (run_at(k)) {
        result.push_back({k, kDiagonals, true});
        continue;
      }
      int width = 1;
      while (width < kDiagonals && k + width < to && !run_at(k + width)) ++width;
      result.push_back({k, width >= 8 ? 8 : width >= 4 ? 4 : width >= 2 ? 2 : 1, false});
    }
    return result;
  }

  // An odd number of cache lines, so that rows do not fall into the same cache sets.
  static int64_t padded(int64_t features) {
    const int64_t vectors = (features + lanes - 1) / lanes;
    return (vectors + (vectors % 2 == 0)) * lanes;
  }

  // Features [first, last) of a row, then those that follow: around the end, or zeros.
  static void copy(const Side<T>& side, int64_t token, int64_t first, int64_t last, bool wraps,
                   int64_t stride, A* to) {
    const T* row = side.rows + token * side.stride;
    const int64_t count = last - first;
    if (side.from) {
      const int32_t* from = side.from + first;
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes) {
        // The next row, in order: reads that jump about would wait for every line of it.
        __builtin_prefetch(row + side.stride + first + i, 0, 2);
        store(to + i, pick<V>(row, from + i));
      }
      for (; i < count; ++i) to[i] = widen(row[from[i]]);
    } else {
      for (int64_t i = 0; i < count; i += lanes) {
        store(to + i, load_first<V>(row + first + i, count - i));
      }
    }
    for (int64_t i = count; i < stride; ++i) to[i] = wraps ? to[i - count] : A{0};
  }

  // Entries [begin, end) of the products, summed over tokens [first, last).
  void add_tokens(int64_t first, int64_t last, int64_t begin, int64_t end,
                  const std::vector<Product>& products, A* sums) const {
    const int64_t together = std::min(last - first, kTokensTogether);
    const int64_t still_stride = padded(end - begin + block);
    const Scratch scratch(together * (still_stride + moving_stride_) * sizeof(A));
    A* still = scratch.as<A>();
    A* moving = still + together * still_stride;
    for (int64_t token = first; token < last; token += together) {
      const int64_t count = std::min(together, last - token);
      for (int64_t t = 0; t < count; ++t) {
        copy(still_, token + t, begin, end, false, still_stride, still + t * still_stride);
        copy(moving_, token + t, 0, moving_.features, true, moving_stride_,
             moving + t * moving_stride_);
      }
      for (int64_t panel = begin; panel < end; panel += kPanel) {
        const int64_t panel_end = std::min(panel + kPanel, end);
        for (size_t p = 0; p < products.size(); p += kProductsTogether) {
          const size_t next = std::min(p + kProductsTogether, products.size());
          for (int64_t t = 0; t < count; t += kTokensInCache) {
            const Rows rows{still + t * still_stride - begin, moving + t * moving_stride_,
                            still_stride, std::min(kTokensInCache, count - t)};
            const bool fresh = token == first && t == 0;
            for (int64_t i = panel; i < panel_end; i += block) {
              for (size_t q = p; q < next; ++q) add_block(products[q], rows, i, fresh, sums);
            }
          }
        }
      }
    }
  }

  struct Rows {
    const A* still;
    const A* moving;
    int64_t still_stride, tokens;
  };

  void add_block(const Product& product, const Rows& rows, int64_t i, bool fresh, A* sums) const {
    const int64_t k = product.k;
    if (product.run) return add_block<8, true>(rows, i, k, fresh, sums);
    switch (product.width) {
      case 8: return add_block<8, false>(rows, i, k, fresh, sums);
      case 4: return add_block<4, false>(rows, i, k, fresh, sums);
      case 2: return add_block<2, false>(rows, i, k, fresh, sums);
      default: return add_block<1, false>(rows, i, k, fresh, sums);
    }
  }

  // Entries [i, i + block) of diagonals [k, k + width).
  template <int width, bool run>
  void add_block(const Rows& rows, int64_t i, int64_t k, bool fresh, A* sums) const {
    const int64_t valid = std::min<int64_t>(still_.features - i, block);
    const A* from[width];
    V low[width], high[width];
#pragma GCC unroll 8
    for (int j = 0; j < width; ++j) {
      const int64_t at = i + offsets_[k + j];
      from[j] = rows.moving + (at >= moving_.features ? at - moving_.features : at);
      const A* old = sums + (k + j) * still_.features + i;
      low[j] = fresh ? V{} : load_first<V>(old, valid);
      high[j] = fresh || valid <= lanes ? V{} : load_first<V>(old + lanes, valid - lanes);
    }
    const A* still = rows.still + i;
    for (int64_t t = 0, moved = 0; t < rows.tokens; ++t, moved += moving_stride_) {
      const V low_still = load<V>(still), high_still = load<V>(still + lanes);
      if constexpr (run) {
        add_run(from[0] + moved, low_still, high_still, low, high,
                std::make_integer_sequence<int, width>{});
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < width; ++j) {
          low[j] += low_still * load<V>(from[j] + moved);
          high[j] += high_still * load<V>(from[j] + moved + lanes);
        }
      }
      still += rows.still_stride;
    }
#pragma GCC unroll 8
    for (int j = 0; j < width; ++j) {
      A* to = sums + (k + j) * still_.features + i;
      store_first(to, low[j], valid);
      if (valid > lanes) store_first(to + lanes, high[j], valid - lanes);
    }
  }

  // One token of a run of diagonals: diagonal j reads moving[j..].
  template <int... j>
  static __attribute__((always_inline)) void add_run(const A* moving, V low_still, V high_still,
                                                     V* low, V* high,
                                                     std::integer_sequence<int, j...>) {
    const V first = load<V>(moving), second = load<V>(moving + lanes);
    const V third = load<V>(moving + block);
    ((low[j] += low_still * neighbour<j>(moving, first, second),
      high[j] += high_still * neighbour<j>(moving + lanes, second, third)),
     ...);
  }

  template <int j>
  static __attribute__((always_inline)) V neighbour(const A* moving, V low, V high) {
    if constexpr (j <= kShifted) {
      return j == 0 ? low : shifted<j>(low, high);
    } else {
      return load<V>(moving + j);
    }
  }

  const Side<T> still_, moving_;
  const int32_t* offsets_;
  const int64_t diagonals_;
  A* sums_;
  const int64_t moving_stride_;
};

}  // namespace padst
