// Sums over terms with tokens in the lanes: source rows are loaded once, values are broadcast.
#pragma once

#include "gather_gemm/entries.h"
#include "gather_gemm/feature_major.h"
#include "native/activation.h"
#include "native/parallel.h"
#include "native/scratch.h"
#include "native/simd.h"

namespace padst {

// out = act(sums + bias), written through out_map: output feature f is sum out_map[f].
template <class T>
struct Product {
  const T* source;
  int64_t stride, tokens, source_features;
  const int32_t* source_map;  // the tile row of a source feature
  const TermLists& lists;
  int64_t group;  // outputs of a list
  int64_t depth;  // source rows of a term
  int64_t value_stride, depth_stride;  // from one output, one source row to the next
  const Accumulator<T>* values;
  const Accumulator<T>* bias;
  Activation activation;
  T* out;
  const int32_t* out_map;

  int64_t outputs() const {
    return static_cast<int64_t>(lists.first.size() - 1) * group;
  }
};

template <class A>
struct Sums {
  const Term* first;
  const Term* last;
  int64_t depth, value_stride, depth_stride;
  const A* source;
  const A* values;
};

// ROWS sums of C vectors of tokens each. STRIDE is the value stride where it is known, else 0.
template <class A, int ROWS, int C, int STRIDE>
void add_up(const Sums<A>& sums, const A* bias, A* out) {
  using V = Vector<A>;
  constexpr int64_t width = C * kLanes<A>;
  const int64_t stride = STRIDE ? STRIDE : sums.value_stride;
  V total[ROWS][C];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) total[r][c] = bias ? broadcast<V>(bias[r]) : V{};
  }
  for (const Term* term = sums.first; term != sums.last; ++term) {
    const A* x = sums.source + term->source * width;
    const A* value = sums.values + term->value;
    for (int64_t k = 0; k < sums.depth; ++k, x += width, value += sums.depth_stride) {
      V row[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) row[c] = load<V>(x + c * kLanes<A>);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) total[r][c] += row[c] * value[r * stride];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(out + r * width + c * kLanes<A>, total[r][c]);
  }
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

template <class A, int C, int STRIDE>
void add_up_rows(Sums<A> sums, int64_t rows, const A* bias, A* out) {
  const auto step = [&](auto count, auto kernel) {
    for (; rows >= count; rows -= count) {
      kernel(sums, bias, out);
      sums.values += count * sums.value_stride;
      out += count * C * kLanes<A>;
      if (bias) bias += count;
    }
  };
  if constexpr (C == 1 && kRegisters == 32) step(16, add_up<A, 16, C, STRIDE>);
  if constexpr (C == 1 || kRegisters == 32) step(8, add_up<A, 8, C, STRIDE>);
  step(4, add_up<A, 4, C, STRIDE>);
  step(2, add_up<A, 2, C, STRIDE>);
  step(1, add_up<A, 1, C, STRIDE>);
}

template <class A, int C>
void add_up_group(const Sums<A>& sums, int64_t rows, const A* bias, A* out) {
  switch (sums.value_stride) {
    case 1: return add_up_rows<A, C, 1>(sums, rows, bias, out);
    case 8: return add_up_rows<A, C, 8>(sums, rows, bias, out);
    case 16: return add_up_rows<A, C, 16>(sums, rows, bias, out);
    case 32: return add_up_rows<A, C, 32>(sums, rows, bias, out);
    default: return add_up_rows<A, C, 0>(sums, rows, bias, out);
  }
}

constexpr int kMostVectors = 3;

template <class A>
void add_up_group(int vectors, const Sums<A>& sums, int64_t rows, const A* bias, A* out) {
  static_assert(kMostVectors == 3);
  if (vectors == 1) return add_up_group<A, 1>(sums, rows, bias, out);
  if (vectors == 2) return add_up_group<A, 2>(sums, rows, bias, out);
  return add_up_group<A, 3>(sums, rows, bias, out);
}

// Tokens cut into tiles of at most kMostVectors vectors, as even as can be.
struct TokenTiles {
  TokenTiles(int64_t tokens_, int64_t lanes_)
      : tokens(tokens_), lanes(lanes_), vectors((tokens + lanes - 1) / lanes),
        count((vectors + kMostVectors - 1) / kMostVectors) {}

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

// Computes the product: each thread an equal share of (vector of tokens, batch of groups).
template <class T>
class ProductRun {
 public:
  using A = Accumulator<T>;

  explicit ProductRun(const Product<T>& product)
      : p_(product),
        tiles_(product.tokens, kLanes<A>),
        groups_(static_cast<int64_t>(product.lists.first.size()) - 1),
        batch_(std::max<int64_t>(1, 16 / product.group)),
        batches_((groups_ + batch_ - 1) / batch_) {}

  void run() {
    if (!p_.out_map) return straight();
    if (tiles_.vectors >= 16 * threads()) return mapped_by_tile();
    mapped_in_two_steps();
  }

 private:
  static constexpr int64_t kWidest = kMostVectors * kLanes<A>;

  int64_t width(int64_t tile) const { return tiles_.vectors_of(tile) * kLanes<A>; }

  void pack(int64_t tile, A* packed) const {
    to_feature_major(p_.source + tiles_.first_token(tile) * p_.stride, p_.stride,
                     tiles_.tokens_of(tile), p_.source_features, p_.source_map, packed,
                     width(tile), width(tile));
  }

  // The groups [first, last) of a tile: feature-major rows from `out` on.
  void add_up_groups(int64_t tile, int64_t first, int64_t last, const A* packed, A* out) const {
    const int vectors = tiles_.vectors_of(tile);
    const int64_t size = p_.group * width(tile);
    A* to = out;
    for (int64_t g = first; g < last; ++g, to += size) {
      const Term* terms = p_.lists.terms.data();
      const Sums<A> sums{terms + p_.lists.first[g], terms + p_.lists.first[g + 1], p_.depth,
                         p_.value_stride, p_.depth_stride, packed, p_.values};
      add_up_group(vectors, sums, p_.group, p_.bias ? p_.bias + g * p_.group : nullptr, to);
    }
    if (p_.activation == Activation::none) return;
    using V = Vector<A>;
    for (A* at = out; at < to; at += kLanes<A>) store(at, activate(load<V>(at), p_.activation));
  }

  void unpack(int64_t tile, const A* rows, const int32_t* map, int64_t first, int64_t count) const {
    from_feature_major(rows, width(tile), map, tiles_.tokens_of(tile), count,
                       p_.out + tiles_.first_token(tile) * p_.outputs() + first, p_.outputs());
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
      Scratch scratch((source_size + batch_ * p_.group * kWidest) * sizeof(A));
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
        const int64_t first = b * batch_, last = std::min(first + batch_, groups_);
        add_up_groups(tile, first, last, packed, stage);
        unpack(tile, stage, nullptr, first * p_.group, (last - first) * p_.group);
      }
    });
  }

  void mapped_by_tile() const {
    parallel(tiles_.count, [&](int64_t first, int64_t last, int) {
      Scratch scratch((p_.source_features + p_.outputs()) * kWidest * sizeof(A));
      A* packed = scratch.template as<A>();
      A* rows = packed + p_.source_features * kWidest;
      for (int64_t tile = first; tile < last; ++tile) {
        pack(tile, packed);
        add_up_groups(tile, 0, groups_, packed, rows);
        unpack(tile, rows, p_.out_map, 0, p_.outputs());
      }
    });
  }

  void mapped_in_two_steps() const {
    Scratch scratch(tiles_.vectors * kLanes<A> * p_.outputs() * sizeof(A));
    A* all = scratch.template as<A>();
    const auto rows_of = [&](int64_t tile) {
      return all + tiles_.first_vector(tile) * kLanes<A> * p_.outputs();
    };
    each_share([&](int64_t tile, int64_t from, int64_t to, const A* packed, A*) {
      const int64_t first = from * batch_, last = std::min(to * batch_, groups_);
      add_up_groups(tile, first, last, packed, rows_of(tile) + first * p_.group * width(tile));
    });
    const int64_t chunk = 64, chunks = (p_.outputs() + chunk - 1) / chunk;
    parallel(tiles_.count * chunks, [&](int64_t first, int64_t last, int) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t start = task % chunks * chunk;
        unpack(task / chunks, rows_of(task / chunks) , p_.out_map + start, start,
               std::min(chunk, p_.outputs() - start));
      }
    });
  }

  const Product<T>& p_;
  TokenTiles tiles_;
  int64_t groups_, batch_, batches_;
};

}  // namespace padst
