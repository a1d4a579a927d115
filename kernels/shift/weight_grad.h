// The weight gradient: dvalues[k, t] = sum over tokens of still[t] * moving[(t + o_k) mod longer],
// where `still` is the shorter side. Neighbouring entries of a diagonal are in vector lanes.
#pragma once

#include "native/parallel.h"
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
        still_stride_(padded(still.features)),
        moving_stride_(padded(moving.features)) {}

  // sums[k, t], written, never read before.
  void run(int64_t tokens) const {
    const int64_t together = std::min(tokens, kTokensTogether);
    const Scratch scratch(together * (still_stride_ + moving_stride_) * sizeof(A));
    A* still = scratch.as<A>();
    A* moving = still + together * still_stride_;
    const int64_t blocks = (still_.features + block - 1) / block;
    const int64_t splits = std::max<int64_t>(
        1, std::min<int64_t>((threads() + blocks - 1) / blocks, diagonals_ / kDiagonals));
    for (int64_t token = 0; token < tokens; token += together) {
      const int64_t count = std::min(together, tokens - token);
      parallel(count, [&](int64_t first, int64_t last, int) {
        for (int64_t t = first; t < last; ++t) {
          copy(still_, token + t, still_stride_, still + t * still_stride_, false);
          copy(moving_, token + t, moving_stride_, moving + t * moving_stride_, true);
        }
      });
      parallel(blocks * splits, [&](int64_t first, int64_t last, int) {
        while (first < last) {
          const int64_t split = first / blocks, end = std::min(last, (split + 1) * blocks);
          add_part(still, moving, count, (first - split * blocks) * block,
                   (end - split * blocks) * block, diagonals_ * split / splits,
                   diagonals_ * (split + 1) / splits, token == 0);
          first = end;
        }
      });
    }
  }

 private:
  static constexpr int64_t kTokensTogether = 128;
  static constexpr int64_t kTokensInCache = 32;
  static constexpr int64_t kPanel = 512;
  static constexpr int kDiagonals = 8;

  // An odd number of cache lines, so that rows do not fall into the same cache sets.
  static int64_t padded(int64_t features) {
    const int64_t vectors = (features + block + lanes - 1) / lanes;
    return (vectors + (vectors % 2 == 0)) * lanes;
  }

  static void copy(const Side<T>& side, int64_t token, int64_t stride, A* to, bool wraps) {
    const T* row = side.rows + token * side.stride;
    const int64_t features = side.features;
    if (side.from) {
      for (int64_t i = 0; i < features; ++i) to[i] = widen(row[side.from[i]]);
    } else {
      for (int64_t i = 0; i < features; i += lanes) {
        store(to + i, load_first<V>(row + i, features - i));
      }
    }
    for (int64_t i = features; i < stride; ++i) to[i] = wraps ? to[i - features] : A{0};
  }

  void add_part(const A* still, const A* moving, int64_t tokens, int64_t begin, int64_t end,
                int64_t from, int64_t to, bool fresh) const {
    for (int64_t panel = begin; panel < end; panel += kPanel) {
      const int64_t panel_end = std::min(panel + kPanel, end);
      for (int64_t k = from; k < to;) {
        const int64_t left = to - k;
        const int width = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int64_t t = 0; t < tokens; t += kTokensInCache) {
          const int64_t count = std::min(kTokensInCache, tokens - t);
          const A* still_rows = still + t * still_stride_;
          const A* moving_rows = moving + t * moving_stride_;
          for (int64_t i = panel; i < panel_end; i += block) {
            const bool first = fresh && t == 0;
            switch (width) {
              case 8: add_block<8>(still_rows, moving_rows, count, i, k, first); break;
              case 4: add_block<4>(still_rows, moving_rows, count, i, k, first); break;
              case 2: add_block<2>(still_rows, moving_rows, count, i, k, first); break;
              default: add_block<1>(still_rows, moving_rows, count, i, k, first);
            }
          }
        }
        k += width;
      }
    }
  }

  // Entries [i, i + block) of diagonals [k, k + width), summed over `tokens` rows.
  template <int width>
  void add_block(const A* still, const A* moving, int64_t tokens, int64_t i, int64_t k,
                 bool fresh) const {
    const int64_t valid = std::min<int64_t>(still_.features - i, block);
    const A* from[width];
    V low[width], high[width];
#pragma GCC unroll 8
    for (int j = 0; j < width; ++j) {
      const int64_t at = i + offsets_[k + j];
      from[j] = moving + (at >= moving_.features ? at - moving_.features : at);
      const A* sums = sums_ + (k + j) * still_.features + i;
      low[j] = fresh ? V{} : load_first<V>(sums, valid);
      high[j] = fresh || valid <= lanes ? V{} : load_first<V>(sums + lanes, valid - lanes);
    }
    const A* at = still + i;
    for (int64_t t = 0, moved = 0; t < tokens; ++t, moved += moving_stride_) {
      const V low_still = load<V>(at), high_still = load<V>(at + lanes);
#pragma GCC unroll 8
      for (int j = 0; j < width; ++j) {
        low[j] += low_still * load<V>(from[j] + moved);
        high[j] += high_still * load<V>(from[j] + moved + lanes);
      }
      at += still_stride_;
    }
#pragma GCC unroll 8
    for (int j = 0; j < width; ++j) {
      A* sums = sums_ + (k + j) * still_.features + i;
      store_first(sums, low[j], valid);
      if (valid > lanes) store_first(sums + lanes, high[j], valid - lanes);
    }
  }

  const Side<T> still_, moving_;
  const int32_t* offsets_;
  const int64_t diagonals_;
  A* sums_;
  const int64_t still_stride_, moving_stride_;
};

}  // namespace padst
