// Outer products of entries whose columns and rows come by eights, for vectors of 16 lanes: rows
// stay token-major, so nothing is transposed, and no half of a vector is left empty.
#pragma once

#include <algorithm>
#include <vector>

#include "gather_gemm/entries.h"
#include "gather_gemm/outer_eights.h"
#include "gather_gemm/weight_grad.h"
#include "native/parallel.h"
#include "native/pick.h"
#include "native/scratch.h"

#if defined(__AVX512F__)
namespace padst {

// Rows in panels of 8 features: panel[token][feature % 8].
template <class T>
class Panels {
 public:
  static constexpr int64_t kWidth = 8, kTokens = 64;

  // `map`: the place of a feature, null: its own.
  Panels(const T* rows, int64_t stride, int64_t features, const int32_t* map)
      : rows_(rows), stride_(stride), features_(features) {
    if (!map) return;
    sources_.resize(features);
    for (int64_t f = 0; f < features; ++f) sources_[map[f]] = static_cast<int32_t>(f);
  }

  int64_t size() const { return features_ / kWidth * kPanel; }
  static const float* at(const float* packed, int64_t feature) {
    return packed + feature / kWidth * kPanel;
  }

  // Packs tokens [token, token + count) to the panels' rows from `first` on.
  void pack(int64_t token, int64_t count, int64_t first, float* packed) const {
    using Row = Vector<float, kWidth>;
    const T* from = rows_ + token * stride_;
    float* to = packed + first * kWidth;
    if (!sources_.empty()) {
      for (int64_t t = 0; t < count; ++t, from += stride_, to += kWidth) {
        for (int64_t f = 0; f < features_; f += kWidth) {
          __builtin_prefetch(from + stride_ + f, 0, 2);
          store(to + f / kWidth * kPanel, pick<Row>(from, sources_.data() + f));
        }
      }
      return;
    }
    for (int64_t f = 0; f < features_; f += kWidth, to += kPanel) {
      for (int64_t t = 0; t < count; ++t) {
        store(to + t * kWidth, load<Row>(from + t * stride_ + f));
      }
    }
  }

 private:
  // A cache line more than it holds, so that the same token of all panels is in different sets.
  static constexpr int64_t kPanel = kTokens * kWidth + 16;

  const T* rows_;
  int64_t stride_, features_;
  std::vector<int32_t> sources_;
};

// Entries of whole panels of columns, in row blocks of whole panels of rows.
template <class T>
class PanelProducts {
 public:
  static bool used(const GatherShape& shape) {
    return shape.tile % 8 == 0 && shape.group % 8 == 0 && shape.in_features % 8 == 0 &&
           shape.window % shape.group == 0;
  }

  PanelProducts(const OuterProducts<T>& products, int64_t tokens)
      : p_(products),
        tile_(products.shape.tile),
        columns_(products.gathered, products.gathered_stride, products.shape.in_features,
                 products.gathered_map),
        rows_(products.blocked, products.blocked_stride, products.shape.row_blocks * tile_,
              products.blocked_map),
        tile_size_(columns_.size() + rows_.size()),
        tokens_(tokens) {}

  void run() const {
    const int64_t step = std::max<int64_t>(1, threads() * kPackedElements / tile_size_) * kTokens;
    const int64_t tiles = (std::min(step, tokens_) + kTokens - 1) / kTokens;
    const Scratch scratch(tiles * tile_size_ * sizeof(float));
    float* packed = scratch.as<float>();
    for (int64_t start = 0; start < tokens_; start += step) {
      const int64_t count = std::min(step, tokens_ - start);
      pack(start, count, packed);
      parallel(p_.shape.row_blocks, [&](int64_t first, int64_t last, int) {
        const Scratch spread(kTokens * tile_ * 4 * sizeof(float));
        for (int64_t token = 0; token < count; token += kTokens) {
          const float* tile = packed + token / kTokens * tile_size_;
          for (int64_t r = first; r < last; ++r) {
            add_row_block(r, std::min(kTokens, count - token), tile, spread.as<float>());
          }
        }
      });
    }
  }

 private:
  // Rows packed in one go: the processor fetches ahead on a few of them, not on all.
  static constexpr int64_t kTokens = Panels<T>::kTokens, kTogether = 16, kWaiting = 4;

  void pack(int64_t start, int64_t count, float* packed) const {
    parallel((count + kTogether - 1) / kTogether, [&](int64_t first, int64_t last, int) {
      for (int64_t token = first * kTogether; token < last * kTogether; token += kTogether) {
        const int64_t tokens = std::min(kTogether, count - token);
        float* tile = packed + token / kTokens * tile_size_;
        columns_.pack(start + token, tokens, token % kTokens, tile);
        rows_.pack(start + token, tokens, token % kTokens, tile + columns_.size());
      }
    });
  }

  void add_row_block(int64_t r, int64_t tokens, const float* tile, float* spread) const {
    for (int64_t v = 0; v < tile_; v += 8) {
      const float* rows = Panels<T>::at(tile + columns_.size(), r * tile_ + v);
      float* to = spread + v * tokens * 4;
      for (int64_t t = 0; t < tokens; ++t) spread_rows(rows + t * 8, to + t * 32);
    }
    const float* waiting[kWaiting];
    int64_t count = 0;
    float* to = p_.dvalues + r * p_.shape.entries * p_.shape.group * tile_;
    const auto flush = [&] {
      for (int64_t v = 0; v < tile_; v += 8) {
        add_outer_eights(waiting, count, spread + v * tokens * 4, tokens, tile_, to + v);
      }
      to += count * 8 * tile_;
      count = 0;
    };
    p_.columns.each(r, [&](int64_t, int64_t column) {
      for (int64_t s = 0; s < p_.shape.group; s += 8) {
        waiting[count++] = Panels<T>::at(tile, column + s);
        if (count == kWaiting) flush();
      }
    });
    flush();
  }

  const OuterProducts<T>& p_;
  const int64_t tile_;
  const Panels<T> columns_, rows_;
  const int64_t tile_size_, tokens_;
};

}  // namespace padst
#endif
