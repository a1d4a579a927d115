// Entries of one column each (N:M): sums row by row, and the transposed sums window by window.
//
// Both work on a stretch of windows at a time, whose vectors stay in the nearest cache.
#pragma once

#include "gather_gemm/add_up.h"
#include "gather_gemm/windows.h"

namespace padst {

// The terms [first, last): source row row_of(e) times value e; `more` adds them to what `out` has.
template <int C, class A, class F>
void add_terms(const A* x, int64_t x_plane, const A* values, const F& row_of, int64_t first,
               int64_t last, bool more, A* out, int64_t out_plane) {
  using V = Vector<A>;
  V total[C];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) total[c] = more ? load<V>(out + c * out_plane) : V{};
#pragma GCC unroll 4
  for (int64_t e = first; e < last; ++e) {
    const A* row = x + row_of(e) * kLanes<A>;
    const V value = broadcast<V>(values[e]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) total[c] += load<V>(row + c * x_plane) * value;
  }
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) store(out + c * out_plane, total[c]);
}

// Rows of one value an entry.
template <class A>
class RowSums {
 public:
  static constexpr int kMostVectors = 4;

  RowSums(const Windows<A>& windows, const A* values) : windows_(windows), values_(values) {
    const int64_t rows = windows.shape().row_blocks;
    batches_ = (rows + kRows - 1) / kRows;
  }

  int64_t batches() const { return batches_; }
  int64_t first_output(int64_t batch) const {
    return batches_ ? windows_.shape().row_blocks * batch / batches_ : 0;
  }
  int64_t widest() const { return kRows; }

  void add_up(int vectors, const A* x, int64_t x_plane, int64_t batch, A* out,
              int64_t out_plane) const {
    if (vectors == 1) return add<1>(x, x_plane, batch, out, out_plane);
    if (vectors == 2) return add<2>(x, x_plane, batch, out, out_plane);
    if (vectors == 3) return add<3>(x, x_plane, batch, out, out_plane);
    add<4>(x, x_plane, batch, out, out_plane);
  }

 private:
  static constexpr int64_t kRows = 512;

  template <int C>
  void add(const A* x, int64_t x_plane, int64_t batch, A* out, int64_t out_plane) const {
    const int64_t entries = windows_.shape().entries, step = windows_.entries(windows_.cached(C));
    const int64_t first = first_output(batch), last = first_output(batch + 1);
    const int32_t* starts = windows_.starts();
    windows_.with_index([&](const auto* index) {
      for (int64_t e = 0; e < entries; e += step) {
        const int64_t end = std::min(e + step, entries);
        for (int64_t r = first; r < last; ++r) {
          const auto* slots = index + r * entries;
          add_terms<C>(
              x, x_plane, values_ + r * entries,
              [&](int64_t i) { return int64_t{starts[i]} + int64_t{slots[i]}; }, e, end, e > 0,
              out + (r - first) * kLanes<A>, out_plane);
        }
      }
    });
  }

  const Windows<A>& windows_;
  const A* values_;
  int64_t batches_;
};

// Adds `count` entries of a row block, `tile` values each, to the vectors of their columns.
template <int C, class A, class I>
void spread_entries(const A* rows, int64_t rows_plane, int64_t tile, const A* values,
                    const I* index, const int32_t* starts, int64_t first, int64_t last, A* out,
                    int64_t out_plane) {
  using V = Vector<A>;
  if (tile == 1) {
    V row[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) row[c] = load<V>(rows + c * rows_plane);
    for (int64_t e = first; e < last; ++e) {
      A* column = out + (int64_t{starts[e]} + int64_t{index[e]}) * kLanes<A>;
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        A* at = column + c * out_plane;
        store(at, load<V>(at) + row[c] * values[e]);
      }
    }
    return;
  }
  int64_t e = first;
  const auto step = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    for (; e + kCount <= last; e += kCount) {
      A* to[kCount];
      for (int i = 0; i < kCount; ++i) {
        to[i] = out + (int64_t{starts[e + i]} + int64_t{index[e + i]}) * kLanes<A>;
      }
      spread<A, kCount, C>(rows, rows_plane, tile, values + e * tile, to, out_plane);
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
    const int64_t wanted = windows.shape().tile == 1 ? 1 : 16;
    const int64_t per_window = std::max<int64_t>(1, windows.entries(1));
    step_ = std::max(step_, (wanted + per_window - 1) / per_window);
  }

  int64_t batches() const { return (windows_.count() + step_ - 1) / step_; }
  int64_t first_output(int64_t batch) const {
    return windows_.column(std::min(batch * step_, windows_.count()));
  }
  int64_t widest() const { return step_ * windows_.shape().window; }

  void add_up(int vectors, const A* rows, int64_t rows_plane, int64_t batch, A* out,
              int64_t out_plane) const {
    const int64_t columns = first_output(batch + 1) - first_output(batch);
    for (int c = 0; c < vectors; ++c) {
      std::fill_n(out + c * out_plane, columns * kLanes<A>, A{0});
    }
    if (vectors == 1) return add<1>(rows, rows_plane, batch, out, out_plane);
    if (vectors == 2) return add<2>(rows, rows_plane, batch, out, out_plane);
    add<3>(rows, rows_plane, batch, out, out_plane);
  }

 private:
  template <int C>
  void add(const A* rows, int64_t rows_plane, int64_t batch, A* out, int64_t out_plane) const {
    const GatherShape& shape = windows_.shape();
    const int64_t first = windows_.entries(batch * step_);
    const int64_t last = std::min(first + windows_.entries(step_), shape.entries);
    A* origin = out - first_output(batch) * kLanes<A>;
    windows_.with_index([&](const auto* index) {
      for (int64_t r = 0; r < shape.row_blocks; ++r) {
        spread_entries<C>(rows + r * shape.tile * kLanes<A>, rows_plane, shape.tile,
                          values_ + r * shape.entries * shape.tile, index + r * shape.entries,
                          windows_.starts(), first, last, origin, out_plane);
      }
    });
  }

  const Windows<A>& windows_;
  const A* values_;
  int64_t step_;
};

}  // namespace padst
