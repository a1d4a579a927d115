// Which rows of a feature-major source add up to which outputs, from the index of a layer.
#pragma once

#include <algorithm>
#include <vector>

#include "gather_gemm/cpu.h"

namespace padst {

// `depth` adjacent source rows times the values from `value` on.
struct Term {
  int32_t source;
  uint32_t value;
};

// The terms of group g of adjacent outputs are terms[first[g]] .. terms[first[g + 1]].
struct TermLists {
  std::vector<Term> terms;
  std::vector<int64_t> first;
};

// The first column of every entry.
class Columns {
 public:
  Columns(const void* index, int index_bytes, const GatherShape& shape)
      : index_(index), bytes_(index_bytes), shape_(shape) {
    const int64_t windows = (shape.in_features + shape.window - 1) / shape.window;
    per_window_ = std::max<int64_t>(1, shape.entries / std::max<int64_t>(1, windows));
  }

  // f(entry, column) for the entries of one row block, in order.
  template <class F>
  void each(int64_t row_block, const F& f) const {
    const int64_t first = row_block * shape_.entries;
    if (bytes_ == 1) {
      walk(static_cast<const uint8_t*>(index_) + first, f);
    } else {
      walk(static_cast<const int32_t*>(index_) + first, f);
    }
  }

 private:
  template <class I, class F>
  void walk(const I* index, const F& f) const {
    if (per_window_ == 1) {
      for (int64_t e = 0; e < shape_.entries; ++e) {
        f(e, e * shape_.window + int64_t{index[e]} * shape_.group);
      }
      return;
    }
    int64_t start = 0;
    for (int64_t e = 0; e < shape_.entries; start += shape_.window) {
      const int64_t last = std::min(e + per_window_, shape_.entries);
      for (; e < last; ++e) f(e, start + int64_t{index[e]} * shape_.group);
    }
  }

  const void* index_;
  int bytes_;
  GatherShape shape_;
  int64_t per_window_;
};

// Output group = row block; a term covers the `group` columns of an entry.
inline TermLists gather_terms(const Columns& columns, const GatherShape& shape) {
  TermLists lists;
  lists.terms.resize(shape.row_blocks * shape.entries);
  lists.first.resize(shape.row_blocks + 1);
  const int64_t size = shape.group * shape.tile;
  for (int64_t r = 0; r < shape.row_blocks; ++r) {
    const int64_t base = r * shape.entries;
    lists.first[r + 1] = base + shape.entries;
    columns.each(r, [&](int64_t e, int64_t column) {
      lists.terms[base + e] = {static_cast<int32_t>(column),
                               static_cast<uint32_t>((base + e) * size)};
    });
  }
  return lists;
}

// Columns in an output group of the transposed product: a whole entry where they all line up.
inline int64_t transposed_rows(const GatherShape& shape) {
  const bool aligned = shape.window % shape.group == 0 && shape.in_features % shape.group == 0;
  return aligned ? shape.group : 1;
}

// Output group = `transposed_rows` columns; a term covers the `tile` rows of an entry. Row blocks
// come in their order.
inline TermLists scatter_terms(const Columns& columns, const GatherShape& shape) {
  const int64_t rows = transposed_rows(shape), parts = shape.group / rows;
  const int64_t size = shape.group * shape.tile;
  TermLists lists;
  lists.terms.resize(shape.row_blocks * shape.entries * parts);
  lists.first.assign(shape.in_features / rows + 2, 0);
  const auto each = [&](const auto& f) {
    for (int64_t r = 0; r < shape.row_blocks; ++r) {
      columns.each(r, [&](int64_t e, int64_t column) {
        const int64_t value = (r * shape.entries + e) * size;
        for (int64_t p = 0; p < parts; ++p) f(column / rows + p, r, value + p * rows * shape.tile);
      });
    }
  };
  each([&](int64_t group, int64_t, int64_t) { ++lists.first[group + 2]; });
  for (size_t g = 2; g < lists.first.size(); ++g) lists.first[g] += lists.first[g - 1];
  each([&](int64_t group, int64_t r, int64_t value) {
    lists.terms[lists.first[group + 1]++] = {static_cast<int32_t>(r * shape.tile),
                                             static_cast<uint32_t>(value)};
  });
  lists.first.pop_back();
  return lists;
}

}  // namespace padst
