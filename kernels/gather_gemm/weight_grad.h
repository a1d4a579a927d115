// Sums of outer products over tokens, kept only under the index.
#pragma once

#include <initializer_list>

#include "gather_gemm/add_up.h"
#include "gather_gemm/dots.h"
#include "gather_gemm/entries.h"
#include "gather_gemm/outer_products.h"
#include "gather_gemm/windows.h"
#include "native/parallel.h"
#include "native/scratch.h"
#include "native/simd.h"
#include "native/transpose.h"

namespace padst {

// dvalues[r, e, s, v] = sum over tokens of gathered[column(r, e) + s] * blocked[r * tile + v].
template <class T>
struct OuterProducts {
  const T* gathered;
  int64_t gathered_stride;
  const int32_t* gathered_map;  // the column that a feature is
  const T* blocked;
  int64_t blocked_stride;
  const int32_t* blocked_map;
  const Columns& columns;
  const Windows<Accumulator<T>>* windows;  // null unless an entry is one value
  const GatherShape& shape;
  Accumulator<T>* dvalues;  // zeros at first
};

// Elements of the packed tiles of a step, for each thread: they are read from its nearby cache.
constexpr int64_t kPackedElements = int64_t{1} << 17;

template <class T>
class OuterProductsRun {
 public:
  using A = Accumulator<T>;

  OuterProductsRun(const OuterProducts<T>& products, int64_t tokens)
      : p_(products),
        tile_(products.shape.tile),
        gathered_(products.shape.in_features),
        blocked_(products.shape.row_blocks * products.shape.tile),
        tokens_(tokens),
        single_(products.windows != nullptr),
        lanes_(fills_vectors<A>(tile_)),
        packs_blocked_(!lanes_ || products.blocked_map) {}

  void run() {
    const int64_t count = packs_blocked_ ? blocked_ : 0;
    const auto padded = [&](int64_t features) {
      return (lanes_ ? (features + kSide - 1) / kSide * kSide : features) * kPlanes;
    };
    blocked_at_ = padded(gathered_) * kLane;
    plane_ = (lanes_ ? kSide : 1) * kLane;
    tile_size_ = (padded(gathered_) + padded(count)) * kLane;
    const Side gathered{p_.gathered, p_.gathered_stride, gathered_,
                        packed_rows(p_.gathered_map, gathered_), 0};
    const Side blocked{p_.blocked, p_.blocked_stride, count, packed_rows(p_.blocked_map, count),
                       blocked_at_};
    const int64_t step_tiles = threads() * kPackedElements / tile_size_;
    const int64_t step = std::max<int64_t>(1, step_tiles) * kTileTokens;
    const int64_t tiles = (std::min(step, tokens_) + kTileTokens - 1) / kTileTokens;
    Scratch scratch(tiles * tile_size_ * sizeof(A));
    A* packed = scratch.template as<A>();
    for (int64_t start = 0; start < tokens_; start += step) {
      const int64_t tokens = std::min(step, tokens_ - start);
      pack({&gathered, &blocked}, start, tokens, packed);
      add_up(start, tokens, packed);
    }
  }

 private:
  // One side of the products and where in a tile it is packed.
  struct Side {
    const T* rows;
    int64_t stride, features;
    std::vector<int32_t> packed_rows;
    int64_t at;
  };

  // Where a feature's first vector is.
  int64_t row_of(int64_t feature) const {
    return lanes_ ? packed_row(feature) : feature * kPlanes;
  }

  std::vector<int32_t> packed_rows(const int32_t* map, int64_t features) const {
    std::vector<int32_t> rows(features);
    for (int64_t f = 0; f < features; ++f) {
      rows[f] = static_cast<int32_t>(row_of(map ? map[f] : f));
    }
    return rows;
  }

  // Packs tokens [start, start + count), a task for each plane and chunk of features.
  void pack(std::initializer_list<const Side*> sides, int64_t start, int64_t count,
            A* packed) const {
    const int64_t planes = (count + kLane - 1) / kLane;
    for (const Side* side : sides) {
      const int64_t chunks = (side->features + kChunk - 1) / kChunk;
      parallel(planes * chunks, [&](int64_t first, int64_t last, int) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t plane = task / chunks, feature = task % chunks * kChunk;
          A* to = packed + plane / kPlanes * tile_size_ + side->at +
                  plane % kPlanes * plane_;
          pack_features(side->rows + (start + plane * kLane) * side->stride, side->stride,
                        std::min(kLane, count - plane * kLane), feature,
                        std::min(feature + kChunk, side->features), side->packed_rows.data(), 1,
                        to);
        }
      });
    }
  }

  // Each thread adds up its own row blocks.
  void add_up(int64_t start, int64_t count, const A* packed) const {
    parallel(p_.shape.row_blocks, [&](int64_t first, int64_t last, int) {
      Scratch scratch(kTileTokens * tile_ * sizeof(A));
      for (int64_t token = 0; token < count; token += kTileTokens) {
        const A* tile = packed + token / kTileTokens * tile_size_;
        const int64_t tokens = std::min(kTileTokens, count - token);
        if (single_) {
          add_single_entries(first, last, tokens, tile);
          continue;
        }
        for (int64_t r = first; r < last; ++r) {
          if (lanes_) {
            A* rows = scratch.template as<A>();
            collect_rows(r, start + token, tokens, tile, rows);
            add_with_lanes(r, tokens, tile, rows);
          } else {
            add_with_dots(r, tokens, tile);
          }
        }
      }
    });
  }

  // The lanes of a row block, token-major.
  void collect_rows(int64_t r, int64_t token, int64_t tokens, const A* tile, A* rows) const {
    constexpr int64_t n = std::is_same_v<A, float> && kLane >= 8 ? 8 : kLane;
    using V = Vector<A, n>;
    if (packs_blocked_) {
      // As many features at a time as lie side by side, wherever the row block begins.
      const int64_t step = tile_ % kSide == 0 ? kLane : n;
      for (int64_t t = 0; t < tokens; t += kLane) {
        for (int64_t v = 0; v < tile_; v += step) {
          const int64_t last = std::min(v + step, tile_);
          const int64_t feature = r * tile_ + v;
          unpack_features(tile + blocked_at_ + (packed_row(feature) + t / kLane * kSide) * kLane, 1,
                          nullptr, std::min(kLane, tokens - t), 0, last - v, rows + t * tile_ + v,
                          tile_, [](Vector<A> x, int64_t, int64_t) { return x; });
        }
      }
      return;
    }
    const T* from = p_.blocked + token * p_.blocked_stride + r * tile_;
    for (int64_t t = 0; t < tokens; ++t, from += p_.blocked_stride, rows += tile_) {
      for (int64_t v = 0; v < tile_; v += n) store(rows + v, load<V>(from + v));
    }
  }

  void add_with_lanes(int64_t r, int64_t tokens, const A* tile, const A* rows) const {
    const int64_t group = p_.shape.group;
    A* to = p_.dvalues + r * p_.shape.entries * group * tile_;
    const A* waiting[kWaiting];
    int64_t count = 0;
    const int64_t adjacent = p_.shape.window % group ? 1 : group;
    const auto flush = [&] {
      if (tile_ % kLane == 0) {
        add_outer_columns<Vector<A>>(waiting, count, adjacent, rows, tile_, tokens, to);
      } else {
        add_outer_columns<Vector<A, 8>>(waiting, count, adjacent, rows, tile_, tokens, to);
      }
      to += count * tile_;
      count = 0;
    };
    p_.columns.each(r, [&](int64_t, int64_t column) {
      for (int64_t s = 0; s < group; ++s) {
        waiting[count++] = tile + packed_row(column + s) * kLane;
        if (count == kWaiting) flush();
      }
    });
    flush();
  }

  void add_with_dots(int64_t r, int64_t tokens, const A* tile) const {
    const int64_t planes = (tokens + kLane - 1) / kLane, group = p_.shape.group;
    std::vector<const A*> rows(tile_);
    for (int64_t v = 0; v < tile_; ++v) {
      rows[v] = tile + blocked_at_ + row_of(r * tile_ + v) * kLane;
    }
    A* to = p_.dvalues + r * p_.shape.entries * group * tile_;
    const A* waiting[4];
    int count = 0;
    p_.columns.each(r, [&](int64_t, int64_t column) {
      for (int64_t s = 0; s < group; ++s) {
        waiting[count++] = tile + row_of(column + s) * kLane;
        if (count < 4) continue;
        add_dot_rows<A, 4>(waiting, rows.data(), tile_, planes, plane_, to, tile_);
        to += count * tile_;
        count = 0;
      }
    });
    for (int i = 0; i < count; ++i, to += tile_) {
      add_dot_rows<A, 1>(waiting + i, rows.data(), tile_, planes, plane_, to, tile_);
    }
  }

  // Rows [first, last) of one value an entry: a stretch of windows for some of the rows at a time.
  void add_single_entries(int64_t first, int64_t last, int64_t tokens, const A* tile) const {
    const Windows<A>& windows = *p_.windows;
    const int64_t planes = (tokens + kLane - 1) / kLane, entries = p_.shape.entries;
    const int64_t cached = windows.entries(windows.cached(kAtOnce));
    const int64_t step = std::max<int64_t>(1, cached / kSummed<A>) * kSummed<A>;
    for (int64_t plane = 0; plane < planes; plane += kAtOnce) {
      const A* at = tile + plane * plane_;
      const int64_t here = std::min(planes - plane, kAtOnce);
      for (int64_t row = first; row < last; row += kRowsAtOnce) {
        for (int64_t e = 0; e < entries; e += step) {
          windows.with_index([&](const auto* index) {
            add_rows<1>(row, std::min(row + kRowsAtOnce, last), e, std::min(e + step, entries),
                        here, at, index);
          });
        }
      }
    }
  }

  // The entries [first, end) of rows, over `planes` <= kAtOnce planes.
  template <int PLANES, class I>
  void add_rows(int64_t row, int64_t last_row, int64_t first, int64_t end, int64_t planes,
                const A* tile, const I* index) const {
    if constexpr (PLANES < kAtOnce) {
      if (planes > PLANES) {
        return add_rows<PLANES + 1>(row, last_row, first, end, planes, tile, index);
      }
    }
    constexpr int n = kSummed<A>;
    const int32_t* starts = p_.windows->starts();
    const A* blocked = tile + blocked_at_;
    for (; row < last_row; ++row) {
      const I* slots = index + row * p_.shape.entries;
      A* to = p_.dvalues + row * p_.shape.entries;
      for (int64_t e = first; e < end; e += n) {
        const A* columns[n];
        const int64_t count = std::min<int64_t>(n, end - e);
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) {
          const int64_t entry = i < count ? e + i : e;
          columns[i] = tile + (int64_t{starts[entry]} + int64_t{slots[entry]}) * (kPlanes * kLane);
        }
        add_row_dots<A, PLANES>(columns, blocked + row * (kPlanes * kLane), kLane, count, to + e);
      }
    }
  }

  // Vectors of tokens that are summed up in one go, and rows whose vectors stay in the second cache.
  static constexpr int64_t kAtOnce = kRegisters == 32 ? kPlanes : 4, kRowsAtOnce = 512;
  static constexpr int64_t kLane = kLanes<A>, kTileTokens = kPlanes * kLane;
  static constexpr int64_t kChunk = 16 * kSide, kWaiting = 64;

  const OuterProducts<T>& p_;
  int64_t tile_, gathered_, blocked_, tokens_;
  bool single_;  // one value an entry
  bool lanes_;  // row blocks fill vectors
  bool packs_blocked_;
  int64_t blocked_at_ = 0, plane_ = 0, tile_size_ = 0;
};

}  // namespace padst
