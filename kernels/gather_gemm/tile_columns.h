// The transposed sums of N:M tiles, whose entries are one column of several rows.
//
// A stretch of windows is added up at a time, whose vectors stay in the nearest cache.
#pragma once

#include "gather_gemm/add_up.h"
#include "gather_gemm/windows.h"

namespace padst {

// Adds `count` entries of a row block, `tile` values each, to the vectors of their columns.
template <int C, class A, class I>
void spread_entries(const A* rows, int64_t tile, const A* values, const I* index,
                    const int32_t* starts, int64_t first, int64_t last, A* out) {
  int64_t e = first;
  const auto step = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    for (; e + kCount <= last; e += kCount) {
      A* to[kCount];
      for (int i = 0; i < kCount; ++i) {
        to[i] = out + (int64_t{starts[e + i]} + int64_t{index[e + i]}) * C * kLanes<A>;
      }
      spread<A, kCount, C>(rows, tile, values + e * tile, to);
    }
  };
  if constexpr (kRegisters == 32) step(std::integral_constant<int, 8>{});
  step(std::integral_constant<int, 4>{});
  step(std::integral_constant<int, 1>{});
}

// Columns, a stretch of windows at a time.
template <class A>
class ColumnSums {
 public:
  static constexpr int kMostVectors = 3;

  ColumnSums(const Windows<A>& windows, const A* values)
      : windows_(windows), values_(values), step_(windows.cached(kMostVectors)) {
    // Enough entries of a row block to share its vectors between.
    constexpr int64_t wanted = 16;
    const int64_t per_window = std::max<int64_t>(1, windows.entries(1));
    step_ = std::max(step_, (wanted + per_window - 1) / per_window);
  }

  int64_t batches() const { return (windows_.count() + step_ - 1) / step_; }
  int64_t first_output(int64_t batch) const {
    return windows_.column(std::min(batch * step_, windows_.count()));
  }
  int64_t widest() const { return step_ * windows_.shape().window; }

  template <int C>
  void add_up(const A* rows, int64_t batch, A* out) const {
    constexpr int64_t width = C * kLanes<A>;
    const GatherShape& shape = windows_.shape();
    const int64_t begin = first_output(batch), end = first_output(batch + 1);
    const int64_t first = windows_.entries(batch * step_);
    const int64_t last = std::min(first + windows_.entries(step_), shape.entries);
    std::fill_n(out, (end - begin) * width, A{0});
    windows_.with_index([&](const auto* index) {
      for (int64_t r = 0; r < shape.row_blocks; ++r) {
        spread_entries<C>(rows + r * shape.tile * width, shape.tile,
                          values_ + r * shape.entries * shape.tile, index + r * shape.entries,
                          windows_.starts(), first, last, out - begin * width);
      }
    });
  }

 private:
  const Windows<A>& windows_;
  const A* values_;
  int64_t step_;
};

}  // namespace padst
