// Products for many tokens: tokens in vector lanes, a value for all of them at once.
//
// A tile of tokens is packed feature-major. Windows of neighbouring offsets are taken in turn, so
// that the sources which they reach slide through the first-level cache as the results advance.
#pragma once

#include "native/epilogue.h"
#include "native/transpose.h"
#include "shift/diagonals.h"

namespace padst {

#if defined(__AVX512F__) || defined(__aarch64__)
template <int vectors>
constexpr int kGroup = vectors == 1 ? 16 : 8;
#else
template <int vectors>
constexpr int kGroup = vectors == 1 ? 8 : 4;
#endif
constexpr int kMostVectors = 2;
constexpr int kPad = 16;
constexpr int64_t kWindowBytes = 24 << 10;
constexpr int64_t kPanel = 1024;

// Four values, each in all lanes.
template <class A>
inline void broadcast_four(const A* values, Vector<A>* out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    // Shuffles leave the load ports to the sources.
    const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(values));
    out[0] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0x00));
    out[1] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0x55));
    out[2] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0xaa));
    out[3] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0xff));
    return;
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) {
    const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(values));
    out[0] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0x00));
    out[1] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0x55));
    out[2] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0xaa));
    out[3] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0xff));
    return;
  }
#endif
  for (int i = 0; i < 4; ++i) out[i] = broadcast<Vector<A>>(values[i]);
}

// Brings rows that are needed soon into the second-level cache, a few lines at a time.
class Fetcher {
 public:
  Fetcher() = default;
  template <class T>
  Fetcher(const T* rows, int64_t count, int64_t stride, int64_t features)
      : row_(reinterpret_cast<const char*>(rows)),
        rows_(count),
        stride_(stride * sizeof(T)),
        bytes_(features * sizeof(T)) {}

  void fetch() {
    for (int line = 0; line < kLines && rows_ > 0; ++line) {
      __builtin_prefetch(row_ + at_, 0, 2);
      at_ += kLineBytes;
      if (at_ < bytes_) continue;
      at_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr int kLines = 4;
  static constexpr int64_t kLineBytes = 64;

  const char* row_ = nullptr;
  int64_t rows_ = 0, stride_ = 0, bytes_ = 0, at_ = 0;
};

// What a thread will touch after a tile's product: the next tile's sources, this tile's results.
struct Ahead {
  Fetcher sources, results;

  void fetch() {
    sources.fetch();
    results.fetch();
  }
};

// A tile's results for one group of rows, added to what the windows before have left there.
template <class A, bool spread, int vectors>
struct RowGroup {
  using V = Vector<A>;
  static constexpr int group = kGroup<vectors>;
  static constexpr int row = vectors * kLanes<A>;

  const Diagonals<A>& diagonals;
  const A* source;

  static __attribute__((always_inline)) void multiply(const A* from, const A* values, V* sums) {
#pragma GCC unroll 16
    for (int quarter = 0; quarter < group; quarter += 4) {
      V weights[4];
      broadcast_four(values + quarter, weights);
#pragma GCC unroll 16
      for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < vectors; ++c) {
          const int at = (quarter + r) * vectors + c;
          sums[at] += weights[r] * load<V>(from + at * kLanes<A>);
        }
      }
    }
  }

  template <bool fresh>
  void add(int64_t f, const Span* spans, int count, A* result) const {
    V sums[group * vectors];
    A* results = result + f * row;
#pragma GCC unroll 32
    for (int i = 0; i < group * vectors; ++i) {
      sums[i] = fresh ? V{} : load<V>(results + i * kLanes<A>);
    }
    for (int s = 0; s < count; ++s) {
      const Span span = spans[s];
      for (int k = span.first; k < span.last; ++k) {
        const int64_t offset = diagonals.offsets[k];
        const int64_t at = spread ? span.base - offset : span.base + offset;
        const A* values = diagonals.values + k * diagonals.shorter + (spread ? at : f);
        A partial[group];
        if (__builtin_expect(span.partial, 0)) {
          partial_values<spread>(diagonals, k, f, at, group, partial);
          values = partial;
        }
        multiply(source + at * row, values, sums);
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < group * vectors; ++i) store(results + i * kLanes<A>, sums[i]);
  }
};

// Results [first, last) of a tile, first a multiple of kPad; up to kPad rows beyond the results are
// written too.
template <class A, bool spread, int vectors>
void tile_product(const Diagonals<A>& diagonals, const int32_t* ranks, const A* source, A* result,
                  int64_t first, int64_t last, Ahead& ahead) {
  using Group = RowGroup<A, spread, vectors>;
  constexpr int group = Group::group;
  const Group rows{diagonals, source};
  const int64_t longer = diagonals.longer;
  const int64_t window = std::max<int64_t>(kWindowBytes / (Group::row * sizeof(A)), 1);
  const int64_t windows = (longer + window - 1) / window;
  bool fresh = true;
  for (int64_t w = 0; w < windows; ++w) {
    const int from = ranks[longer * w / windows], to = ranks[longer * (w + 1) / windows];
    if (from == to) continue;
    const auto rank = [&](int64_t o) {
      const int k = ranks[std::min(std::max<int64_t>(o, 0), longer)];
      return std::min(std::max(k, from), to);
    };
    const auto range = [&](int64_t begin, int64_t end) {
      begin = first + (std::max(begin, first) - first) / group * group;
      end = std::min(end, last);
      for (int64_t f = begin; f < end; f += group) {
        ahead.fetch();
        Span spans[kMostSpans];
        const int count = spans_of<spread>(diagonals, f, group, from, to, rank, spans);
        if (fresh) {
          rows.template add<true>(f, spans, count, result);
        } else {
          rows.template add<false>(f, spans, count, result);
        }
      }
    };
    // When spreading, the window reaches results [low, high) and, wrapped, those `longer` before.
    const int64_t low = diagonals.offsets[from] - group + 1;
    const int64_t high = diagonals.offsets[to - 1] + diagonals.shorter;
    if (fresh || !spread || high - low + 2 * group >= longer) {
      range(first, last);
    } else {
      range(low, high);
      range(low - longer, high - longer);
    }
    fresh = false;
  }
  if (fresh) {
    for (int64_t i = first * Group::row; i < last * Group::row; ++i) result[i] = A{0};
  }
}

template <class A, bool spread>
void tile_product(const Diagonals<A>& diagonals, const int32_t* ranks, int vectors,
                  const A* source, A* result, int64_t first, int64_t last, Ahead ahead) {
  for (int64_t panel = first; panel < last; panel += kPanel) {
    const int64_t end = std::min(panel + kPanel, last);
    if (vectors == 1) {
      tile_product<A, spread, 1>(diagonals, ranks, source, result, panel, end, ahead);
    } else {
      tile_product<A, spread, 2>(diagonals, ranks, source, result, panel, end, ahead);
    }
  }
}

// Fills the rows before and after a tile's sources that groups reach over its ends.
template <bool spread, class A>
void pad_sources(const Diagonals<A>& diagonals, int vectors, A* source) {
  const int64_t row = vectors * kLanes<A>, sources = diagonals.template sources<spread>();
  const auto fill = [&](int64_t t) {
    const int64_t from = padded_source<spread>(diagonals, t);
    for (int64_t i = 0; i < row; ++i) {
      source[t * row + i] = from < 0 ? A{0} : source[from * row + i];
    }
  };
  for (int64_t t = -kPad; t < 0; ++t) fill(t);
  for (int64_t t = sources; t < sources + kPad; ++t) fill(t);
}

// A product of many tokens. One of the maps may be present: the row of a tile in which a source
// feature stands, or from which a result feature comes.
template <class T, bool spread>
class ManyTokens {
 public:
  using A = Accumulator<T>;
  static constexpr int lanes = kLanes<A>;

  ManyTokens(const Diagonals<A>& diagonals, const int32_t* ranks, const int32_t* source_rows,
             const int32_t* result_rows, const Epilogue<T>& epilogue)
      : diagonals_(diagonals),
        ranks_(ranks),
        source_rows_(source_rows),
        result_rows_(result_rows),
        epilogue_(epilogue),
        sources_(diagonals.template sources<spread>()),
        results_(diagonals.template results<spread>()) {}

  void run(const T* x, int64_t stride, int64_t tokens, T* y) const {
    const int64_t vectors = (tokens + lanes - 1) / lanes, workers = threads();
    if (vectors % workers == 0 || vectors >= 6 * workers) {
      parallel(vectors, [&](int64_t first, int64_t last, int) {
        const Scratch scratch(tile_bytes());
        for (int64_t v = first; v < last; v += kMostVectors) {
          const int wide = static_cast<int>(std::min<int64_t>(kMostVectors, last - v));
          const int64_t token = v * lanes, here = std::min(tokens - token, int64_t{wide} * lanes);
          const int64_t end = std::min(tokens, last * lanes);
          const int64_t next = std::min(end - token - here, here);
          whole_tile(x + token * stride, stride, here, wide, next, scratch.as<A>(),
                     y + token * results_);
        }
      });
    } else {
      shared_tiles(x, stride, tokens, y);
    }
  }

 private:
  size_t tile_bytes() const {
    return (sources_ + results_ + 3 * kPad) * kMostVectors * lanes * sizeof(A);
  }

  A* source_of(A* tile, int vectors) const { return tile + kPad * vectors * lanes; }
  A* result_of(A* tile, int vectors) const {
    return tile + (sources_ + 2 * kPad) * vectors * lanes;
  }

  void unpack(const A* result, int vectors, int64_t tokens, int64_t first, int64_t last,
              T* y) const {
    unpack_features(result, vectors, result_rows_, tokens, first, last, y, results_,
                    [&](Vector<A> sums, int64_t feature, int64_t count) {
                      return finished(sums, epilogue_, feature, count);
                    });
  }

  // `next`: tokens of the tile that the thread takes up after this one.
  void whole_tile(const T* x, int64_t stride, int64_t tokens, int vectors, int64_t next, A* tile,
                  T* y) const {
    A* source = source_of(tile, vectors);
    A* result = result_of(tile, vectors);
    pack_features(x, stride, tokens, 0, sources_, source_rows_, vectors, source);
    pad_sources<spread>(diagonals_, vectors, source);
    tile_product<A, spread>(diagonals_, ranks_, vectors, source, result, 0, results_,
                            {{x + tokens * stride, next, stride, sources_},
                             {y, tokens, results_, results_}});
    unpack(result, vectors, tokens, 0, results_, y);
  }

  // Too few tiles to go round: all threads work on every tile, each on its own features.
  void shared_tiles(const T* x, int64_t stride, int64_t tokens, T* y) const {
    constexpr int wide = kMostVectors * lanes;
    const int64_t tiles = (tokens + wide - 1) / wide;
    const Scratch scratch(tiles * tile_bytes());
    const auto each_tile = [&](auto&& work) {
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t here = std::min<int64_t>(tokens - i * wide, wide);
        const int vectors = static_cast<int>((here + lanes - 1) / lanes);
        work(i * wide, here, vectors, scratch.as<A>() + i * (tile_bytes() / sizeof(A)));
      }
    };
    parallel((sources_ + lanes - 1) / lanes, [&](int64_t first, int64_t last, int) {
      each_tile([&](int64_t token, int64_t here, int vectors, A* tile) {
        pack_features(x + token * stride, stride, here, first * lanes,
                      std::min(last * lanes, sources_), source_rows_, vectors,
                      source_of(tile, vectors));
      });
    });
    each_tile([&](int64_t, int64_t, int vectors, A* tile) {
      pad_sources<spread>(diagonals_, vectors, source_of(tile, vectors));
    });
    parallel((results_ + kPad - 1) / kPad, [&](int64_t first, int64_t last, int) {
      const int64_t begin = first * kPad, end = std::min(last * kPad, results_);
      each_tile([&](int64_t token, int64_t here, int vectors, A* tile) {
        A* result = result_of(tile, vectors);
        tile_product<A, spread>(diagonals_, ranks_, vectors, source_of(tile, vectors), result,
                                begin, end, {});
        if (!result_rows_) unpack(result, vectors, here, begin, end, y + token * results_);
      });
    });
    if (!result_rows_) return;
    parallel((results_ + lanes - 1) / lanes, [&](int64_t first, int64_t last, int) {
      each_tile([&](int64_t token, int64_t here, int vectors, A* tile) {
        unpack(result_of(tile, vectors), vectors, here, first * lanes,
               std::min(last * lanes, results_), y + token * results_);
      });
    });
  }

  const Diagonals<A>& diagonals_;
  const int32_t* ranks_;
  const int32_t* source_rows_;
  const int32_t* result_rows_;
  const Epilogue<T>& epilogue_;
  const int64_t sources_, results_;
};

}  // namespace padst
