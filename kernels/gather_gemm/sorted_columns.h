// The transposed sums of N:M rows of one value an entry, from entries sorted by column.
#pragma once

#include <vector>

#include "gather_gemm/single_entries.h"
#include "native/parallel.h"

namespace padst {

// The entries of one value each, in the order (stretch of rows, column).
template <class A>
class SortedColumns {
 public:
  SortedColumns(const Windows<A>& windows, const A* values)
      : columns_(windows.shape().in_features), rows_count_(windows.shape().row_blocks),
        stretches_((rows_count_ + kStretch - 1) / kStretch),
        rows_(rows_count_ * windows.shape().entries), values_(rows_.size()),
        first_(stretches_ * (columns_ + 2)) {
    windows.with_index([&](const auto* index) {
      parallel(stretches_, [&](int64_t begin, int64_t end, int) {
        for (int64_t s = begin; s < end; ++s) sort(s, windows, index, values);
      });
    });
  }

  int64_t columns() const { return columns_; }
  int64_t stretches() const { return stretches_; }
  const int32_t* rows() const { return rows_.data(); }
  const A* values() const { return values_.data(); }
  // Column c of stretch s has the entries [first(s)[c], first(s)[c + 1]).
  const int64_t* first(int64_t stretch) const { return &first_[stretch * (columns_ + 2)]; }

 private:
  static constexpr int64_t kStretch = kStretchBytes / (4 * kVectorBytes);

  template <class I>
  void sort(int64_t stretch, const Windows<A>& windows, const I* index, const A* values) {
    const int64_t entries = windows.shape().entries;
    const int64_t begin = stretch * kStretch, end = std::min(begin + kStretch, rows_count_);
    const int32_t* starts = windows.starts();
    int64_t* next = &first_[stretch * (columns_ + 2)] + 1;
    next[-1] = begin * entries;
    for (int64_t r = begin; r < end; ++r) {
      const I* slots = index + r * entries;
      for (int64_t e = 0; e < entries; ++e) ++next[starts[e] + slots[e] + 1];
    }
    next[0] = begin * entries;
    for (int64_t c = 0; c < columns_; ++c) next[c + 1] += next[c];
    for (int64_t r = begin; r < end; ++r) {
      const I* slots = index + r * entries;
      for (int64_t e = 0; e < entries; ++e) {
        const int64_t at = next[starts[e] + slots[e]]++;
        rows_[at] = static_cast<int32_t>(r);
        values_[at] = values[r * entries + e];
      }
    }
  }

  int64_t columns_, rows_count_, stretches_;
  std::vector<int32_t> rows_;
  std::vector<A> values_;
  std::vector<int64_t> first_;
};

// Columns of one value an entry, a stretch of rows at a time.
template <class A>
class SortedSums {
 public:
  static constexpr int kMostVectors = 4;

  explicit SortedSums(const SortedColumns<A>& sorted)
      : sorted_(sorted), batches_((sorted.columns() + kColumns - 1) / kColumns) {}

  int64_t batches() const { return batches_; }
  int64_t first_output(int64_t batch) const {
    return batches_ ? sorted_.columns() * batch / batches_ : 0;
  }
  int64_t widest() const { return kColumns; }

  void add_up(int vectors, const A* x, int64_t x_plane, int64_t batch, A* out,
              int64_t out_plane) const {
    if (vectors == 1) return add<1>(x, x_plane, batch, out, out_plane);
    if (vectors == 2) return add<2>(x, x_plane, batch, out, out_plane);
    if (vectors == 3) return add<3>(x, x_plane, batch, out, out_plane);
    add<4>(x, x_plane, batch, out, out_plane);
  }

 private:
  static constexpr int64_t kColumns = 512;

  template <int C>
  void add(const A* x, int64_t x_plane, int64_t batch, A* out, int64_t out_plane) const {
    const int64_t begin = first_output(batch), end = first_output(batch + 1);
    for (int64_t s = 0; s < sorted_.stretches(); ++s) {
      const int64_t* first = sorted_.first(s);
      for (int64_t c = begin; c < end; ++c) {
        add_terms<C>(
            x, x_plane, sorted_.values(), [&](int64_t e) { return sorted_.rows()[e]; }, first[c],
            first[c + 1], s > 0, out + (c - begin) * kLanes<A>, out_plane);
      }
    }
  }

  const SortedColumns<A>& sorted_;
  int64_t batches_;
};

}  // namespace padst
