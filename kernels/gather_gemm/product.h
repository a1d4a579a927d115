// A product for all tokens: tiles of tokens are packed, summed up by one of the kinds of sums, and
// written through the epilogue.
//
// A tile of C vectors of tokens holds them side by side for each feature: tile[feature][C][lanes].
// Sums have batches of outputs [first_output(b), first_output(b + 1)), at most `widest` each;
// add_up<C>(tile of source rows, batch, tile to write from its first output on) computes one.
#pragma once

#include <algorithm>

#include "native/epilogue.h"
#include "native/parallel.h"
#include "native/scratch.h"
#include "native/simd.h"
#include "native/transpose.h"

namespace padst {

// out = act(sums + bias), written through out_map: output feature f is sum out_map[f].
template <class T>
struct Product {
  const T* source;
  int64_t stride, tokens, source_features;
  const int32_t* source_map;  // the sums' source row of a feature
  Epilogue<T> epilogue;
  T* out;
  const int32_t* out_map;
};

// Tokens cut into tiles of at most `most` vectors, as even as can be.
struct TokenTiles {
  TokenTiles(int64_t tokens_, int64_t lanes_, int64_t most)
      : tokens(tokens_), lanes(lanes_), vectors((tokens + lanes - 1) / lanes),
        count((vectors + most - 1) / most) {}

  int64_t first_vector(int64_t tile) const { return vectors * tile / count; }
  int vectors_of(int64_t tile) const {
    return static_cast<int>(first_vector(tile + 1) - first_vector(tile));
  }
  int64_t first_token(int64_t tile) const { return first_vector(tile) * lanes; }
  int64_t tokens_of(int64_t tile) const {
    return std::min(tokens, first_token(tile + 1)) - first_token(tile);
  }

  int64_t tokens, lanes, vectors, count;
};

// Each thread does an equal share of (vector of tokens, batch).
template <class T, class Sums>
class ProductRun {
 public:
  using A = Accumulator<T>;

  ProductRun(const Product<T>& product, const Sums& sums)
      : p_(product), sums_(sums), tiles_(product.tokens, kLanes<A>, Sums::kMostVectors),
        batches_(sums.batches()), outputs_(sums.first_output(batches_)) {}

  void run() {
    if (!p_.out_map) return straight();
    if (tiles_.vectors >= 16 * threads()) return mapped_by_tile();
    mapped_in_two_steps();
  }

 private:
  static constexpr int64_t kLane = kLanes<A>, kWidest = Sums::kMostVectors * kLane;

  // Elements of a tile for each feature.
  int64_t width(int64_t tile) const { return tiles_.vectors_of(tile) * kLane; }

  void pack(int64_t tile, A* packed) const {
    pack_features(p_.source + tiles_.first_token(tile) * p_.stride, p_.stride,
                  tiles_.tokens_of(tile), 0, p_.source_features, p_.source_map,
                  tiles_.vectors_of(tile), packed);
  }

  // The batches [from, to) of a tile to rows of which row 0 is output 0.
  void add_up(int64_t tile, int64_t from, int64_t to, const A* packed, A* rows) const {
    for (int64_t b = from; b < to; ++b) {
      add_up_batch<1>(tiles_.vectors_of(tile), packed, b,
                      rows + sums_.first_output(b) * width(tile));
    }
  }

  template <int C>
  void add_up_batch(int vectors, const A* packed, int64_t batch, A* out) const {
    if constexpr (C < Sums::kMostVectors) {
      if (vectors > C) return add_up_batch<C + 1>(vectors, packed, batch, out);
    }
    sums_.template add_up<C>(packed, batch, out);
  }

  // Outputs [first, last) of a tile from rows of which row 0 is output `origin`.
  void unpack(int64_t tile, const A* rows, int64_t first, int64_t last, int64_t origin) const {
    const auto finish = [&](Vector<A> sums, int64_t feature, int64_t count) {
      return finished(sums, p_.epilogue, feature + origin, count);
    };
    unpack_features(rows, tiles_.vectors_of(tile), p_.out_map, tiles_.tokens_of(tile),
                    first - origin, last - origin,
                    p_.out + tiles_.first_token(tile) * outputs_ + origin, outputs_, finish);
  }

  // f(tile, first batch, last batch) over this thread's share [first, last) of vectors * batches.
  template <class F>
  void shares(int64_t first, int64_t last, const F& f) const {
    for (int64_t tile = 0; tile < tiles_.count; ++tile) {
      const int64_t start = tiles_.first_vector(tile) * batches_, per = tiles_.vectors_of(tile);
      const auto batch = [&](int64_t position) {
        return std::clamp<int64_t>((position - start + per - 1) / per, 0, batches_);
      };
      if (first >= start + per * batches_ || last <= start) continue;
      const int64_t from = first <= start ? 0 : batch(first), to = batch(last);
      if (from < to) f(tile, from, to);
    }
  }

  template <class F>
  void each_share(const F& f) const {
    parallel(tiles_.vectors * batches_, [&](int64_t first, int64_t last, int) {
      const int64_t source_size = p_.source_features * kWidest;
      Scratch scratch((source_size + sums_.widest() * kWidest) * sizeof(A));
      A* packed = scratch.template as<A>();
      shares(first, last, [&](int64_t tile, int64_t from, int64_t to) {
        pack(tile, packed);
        f(tile, from, to, packed, packed + source_size);
      });
    });
  }

  void straight() const {
    each_share([&](int64_t tile, int64_t from, int64_t to, const A* packed, A* stage) {
      for (int64_t b = from; b < to; ++b) {
        const int64_t first = sums_.first_output(b);
        add_up(tile, b, b + 1, packed, stage - first * width(tile));
        unpack(tile, stage, first, sums_.first_output(b + 1), first);
      }
    });
  }

  void mapped_by_tile() const {
    parallel(tiles_.count, [&](int64_t first, int64_t last, int) {
      Scratch scratch((p_.source_features + outputs_) * kWidest * sizeof(A));
      A* packed = scratch.template as<A>();
      A* rows = packed + p_.source_features * kWidest;
      for (int64_t tile = first; tile < last; ++tile) {
        pack(tile, packed);
        add_up(tile, 0, batches_, packed, rows);
        unpack(tile, rows, 0, outputs_, 0);
      }
    });
  }

  void mapped_in_two_steps() const {
    const int64_t size = outputs_ * kLane;
    Scratch scratch(tiles_.vectors * size * sizeof(A));
    A* all = scratch.template as<A>();
    each_share([&](int64_t tile, int64_t from, int64_t to, const A* packed, A*) {
      add_up(tile, from, to, packed, all + tiles_.first_vector(tile) * size);
    });
    const int64_t chunk = 64, chunks = (outputs_ + chunk - 1) / chunk;
    parallel(tiles_.count * chunks, [&](int64_t first, int64_t last, int) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t tile = task / chunks, start = task % chunks * chunk;
        unpack(tile, all + tiles_.first_vector(tile) * size, start,
               std::min(start + chunk, outputs_), 0);
      }
    });
  }

  const Product<T>& p_;
  const Sums& sums_;
  TokenTiles tiles_;
  int64_t batches_, outputs_;
};

template <class T, class Sums>
void run_product(const Product<T>& product, const Sums& sums) {
  ProductRun<T, Sums>(product, sums).run();
}

}  // namespace padst
