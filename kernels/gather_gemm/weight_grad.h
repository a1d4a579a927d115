// Sums of outer products over tokens, kept only under the index.
#pragma once

#include "gather_gemm/entries.h"
#include "gather_gemm/feature_major.h"
#include "gather_gemm/outer_products.h"
#include "native/parallel.h"
#include "native/scratch.h"
#include "native/simd.h"

namespace padst {

// dvalues[r, e, s, v] = sum over tokens of gathered[column(r, e) + s] * blocked[r * tile + v].
template <class T>
struct OuterProducts {
  const T* gathered;
  int64_t gathered_stride;
  const int32_t* gathered_map;  // the tile row of a feature
  const T* blocked;
  int64_t blocked_stride;
  const int32_t* blocked_map;
  const Columns& columns;
  const GatherShape& shape;
  Accumulator<T>* dvalues;  // zeros at first
};

// The most elements of all packed tiles of a step.
constexpr int64_t kPackedElements = int64_t{1} << 21;

// COLUMNS x ROWS dot products over `vectors` vectors of tokens, added to `to`.
template <class A, int COLUMNS, int ROWS>
void add_dots(const A* const* columns, const A* rows, int64_t row_stride, int64_t vectors, A* to,
              int64_t to_stride) {
  using V = Vector<A>;
  V total[COLUMNS][ROWS] = {};
  for (int64_t i = 0; i < vectors * kLanes<A>; i += kLanes<A>) {
    V row[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) row[r] = load<V>(rows + r * row_stride + i);
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      const V column = load<V>(columns[c] + i);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) total[c][r] += column * row[r];
    }
  }
  for (int c = 0; c < COLUMNS; ++c) {
    for (int r = 0; r < ROWS; ++r) to[c * to_stride + r] += sum(total[c][r]);
  }
}

template <class A, int COLUMNS>
void add_dot_rows(const A* const* columns, const A* rows, int64_t count, int64_t row_stride,
                  int64_t vectors, A* to, int64_t to_stride) {
  const auto step = [&](auto n, auto kernel) {
    for (; count >= n; count -= n) {
      kernel(columns, rows, row_stride, vectors, to, to_stride);
      rows += n * row_stride;
      to += n;
    }
  };
  if constexpr (COLUMNS <= 4) step(4, add_dots<A, COLUMNS, 4>);
  if constexpr (COLUMNS <= 4) step(2, add_dots<A, COLUMNS, 2>);
  step(1, add_dots<A, COLUMNS, 1>);
}

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
        lanes_(tile_ % kLanes<A> == 0 || (tile_ % 8 == 0 && kLanes<A> == 16)),
        packs_blocked_(!lanes_ || products.blocked_map) {}

  void run() {
    const int64_t per_tile = tile_features() * kTileTokens;
    const int64_t step = std::max<int64_t>(1, kPackedElements / per_tile) * kTileTokens;
    const int64_t tiles = (std::min(step, tokens_) + kTileTokens - 1) / kTileTokens;
    Scratch scratch(tiles * per_tile * sizeof(A));
    for (int64_t start = 0; start < tokens_; start += step) {
      add_tokens(start, std::min(step, tokens_ - start), scratch.template as<A>());
    }
  }

 private:
  int64_t tile_features() const { return gathered_ + (packs_blocked_ ? blocked_ : 0); }

  // Tokens [start, start + count): all are packed, then each thread adds up its own row blocks.
  void add_tokens(int64_t start, int64_t count, A* packed) const {
    const int64_t tiles = (count + kTileTokens - 1) / kTileTokens;
    const auto tile_tokens = [&](int64_t tile) {
      return std::min(kTileTokens, count - tile * kTileTokens);
    };
    const auto tile_at = [&](int64_t tile) { return packed + tile * tile_features() * kTileTokens; };
    const int64_t chunks = (tile_features() + kChunk - 1) / kChunk;
    parallel(tiles * chunks, [&](int64_t first, int64_t last, int) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t tile = task / chunks;
        pack(task % chunks * kChunk, start + tile * kTileTokens, tile_tokens(tile), tile_at(tile));
      }
    });
    parallel(p_.shape.row_blocks, [&](int64_t first, int64_t last, int) {
      Scratch scratch(kTileTokens * tile_ * sizeof(A));
      for (int64_t tile = 0; tile < tiles; ++tile) {
        for (int64_t r = first; r < last; ++r) {
          const int64_t token = start + tile * kTileTokens;
          if (lanes_) {
            add_with_lanes(r, token, tile_tokens(tile), tile_at(tile), scratch.template as<A>());
          } else {
            add_with_dots(r, tile_tokens(tile), tile_at(tile));
          }
        }
      }
    });
  }

  // The features [first, first + kChunk) of both sides, one after the other.
  void pack(int64_t first, int64_t token, int64_t tokens, A* to) const {
    const int64_t last = std::min(first + kChunk, tile_features());
    const int64_t middle = std::clamp(gathered_, first, last);
    const auto part = [&](const T* rows, int64_t stride, const int32_t* map, int64_t from,
                          int64_t count, A* at) {
      if (count <= 0) return;
      to_feature_major(rows + token * stride + from, stride, tokens, count, map ? map + from : map,
                       map ? at : at + from * kTileTokens, padded(tokens), kTileTokens);
    };
    part(p_.gathered, p_.gathered_stride, p_.gathered_map, first, middle - first, to);
    part(p_.blocked, p_.blocked_stride, p_.blocked_map, middle - gathered_, last - middle,
         to + gathered_ * kTileTokens);
  }

  static int64_t padded(int64_t tokens) {
    return (tokens + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
  }

  // The lanes of a row block, token-major.
  void collect_rows(int64_t r, int64_t token, int64_t tokens, const A* packed, A* rows) const {
    if (packs_blocked_) {
      from_feature_major<A>(packed + (gathered_ + r * tile_) * kTileTokens, kTileTokens, nullptr,
                            tokens, tile_, rows, tile_);
      return;
    }
    const T* from = p_.blocked + token * p_.blocked_stride + r * tile_;
    for (int64_t t = 0; t < tokens; ++t, from += p_.blocked_stride) {
      for (int64_t v = 0; v < tile_; ++v) rows[t * tile_ + v] = widen(from[v]);
    }
  }

  void add_with_lanes(int64_t r, int64_t token, int64_t tokens, const A* packed, A* rows) const {
    collect_rows(r, token, tokens, packed, rows);
    const int64_t group = p_.shape.group;
    A* to = p_.dvalues + r * p_.shape.entries * group * tile_;
    const A* waiting[kWaiting];
    int64_t count = 0;
    const auto flush = [&] {
      if (tile_ % kLanes<A> == 0) {
        add_outer_columns<Vector<A>>(waiting, count, group, rows, tile_, tokens, to);
      } else {
        add_outer_columns<Vector<A, 8>>(waiting, count, group, rows, tile_, tokens, to);
      }
      to += count * tile_;
      count = 0;
    };
    p_.columns.each(r, [&](int64_t, int64_t column) {
      for (int64_t s = 0; s < group; ++s) {
        waiting[count++] = packed + (column + s) * kTileTokens;
        if (count == kWaiting) flush();
      }
    });
    flush();
  }

  void add_with_dots(int64_t r, int64_t tokens, const A* packed) const {
    const int64_t vectors = padded(tokens) / kLanes<A>;
    const A* rows = packed + (gathered_ + r * tile_) * kTileTokens;
    A* to = p_.dvalues + r * p_.shape.entries * p_.shape.group * tile_;
    const A* waiting[8];
    int count = 0;
    const int most = tile_ == 1 ? 8 : 4;
    p_.columns.each(r, [&](int64_t, int64_t column) {
      for (int64_t s = 0; s < p_.shape.group; ++s) {
        waiting[count++] = packed + (column + s) * kTileTokens;
        if (count < most) continue;
        if (most == 8) {
          add_dot_rows<A, 8>(waiting, rows, tile_, kTileTokens, vectors, to, tile_);
        } else {
          add_dot_rows<A, 4>(waiting, rows, tile_, kTileTokens, vectors, to, tile_);
        }
        to += count * tile_;
        count = 0;
      }
    });
    for (int i = 0; i < count; ++i, to += tile_) {
      add_dot_rows<A, 1>(waiting + i, rows, tile_, kTileTokens, vectors, to, tile_);
    }
  }

  static constexpr int64_t kChunk = 64, kWaiting = 64;

  const OuterProducts<T>& p_;
  int64_t tile_, gathered_, blocked_, tokens_;
  bool lanes_;  // row blocks fill vectors
  bool packs_blocked_;
};

}  // namespace padst
