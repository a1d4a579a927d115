// Products for many tokens: tokens in vector lanes, a value for all of them at once.
//
// A tile of tokens is packed feature-major. Windows of neighbouring offsets are taken in turn, so
// that the sources which they reach slide through the first-level cache as the results advance.
#pragma once

#include "native/epilogue.h"
#include "native/transpose.h"
#include "shift/fetch_ahead.h"
#include "shift/row_group.h"
#include "shift/value_stream.h"

namespace padst {

constexpr int kMostVectors = 3;
constexpr int kPad = 16;

// Up to `vectors` vectors of tokens, feature-major: a row of them for each source and each result.
template <class A>
struct Tile {
  int vectors;
  A* source;
  A* result;
};

// Calls f with `vectors` as a constant.
template <class F>
void with_constant(int vectors, const F& f) {
  switch (vectors) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    default: return f(std::integral_constant<int, 3>{});
  }
}

// A product straight from the stored values, which takes diagonals in the order in which a stream
// has them: results are the same to the last bit.
template <class A, bool spread>
class StoredProduct {
 public:
  StoredProduct(const Diagonals<A>& diagonals, const int32_t* ranks)
      : diagonals_(diagonals), ranks_(ranks) {}

  // As `StreamedProduct` does.
  void operator()(const Tile<A>* tiles, int count, int64_t first, int64_t last,
                  const Ahead&) const {
    for (int i = 0; i < count; ++i) {
      with_constant(tiles[i].vectors, [&](auto vectors) {
        for (int64_t panel = first; panel < last; panel += kPanel) {
          results<vectors>(tiles[i], panel, std::min(panel + kPanel, last));
        }
      });
    }
  }

 private:
  static constexpr int64_t kWindowBytes = 24 << 10;

  template <int vectors>
  void results(const Tile<A>& tile, int64_t first, int64_t last) const {
    // One vector of tokens leaves registers for twice the results.
    constexpr int group = vectors == 1 ? 2 * kGroup : kGroup;
    using Group = RowGroup<A, vectors, group>;
    const int64_t longer = diagonals_.longer;
    const int64_t window = std::max<int64_t>(kWindowBytes / (Group::row * sizeof(A)), 1);
    const int64_t windows = (longer + window - 1) / window;
    bool fresh = true;
    for (int64_t i = 0; i < windows; ++i) {
      const int64_t w = in_turn<spread>(0, windows, i);
      const int from = ranks_[longer * w / windows], to = ranks_[longer * (w + 1) / windows];
      if (from == to) continue;
      const auto rank = [&](int64_t o) {
        const int k = ranks_[std::min(std::max<int64_t>(o, 0), longer)];
        return std::min(std::max(k, from), to);
      };
      const auto range = [&](int64_t begin, int64_t end) {
        begin = first + (std::max(begin, first) - first) / group * group;
        end = std::min(end, last);
        for (int64_t f = begin; f < end; f += group) {
          Span spans[kMostSpans];
          const int count = spans_of<spread>(diagonals_, f, group, from, to, rank, spans);
          Group sums;
          A* const result = tile.result + f * Group::row;
          sums.start(result, fresh);
          for (int s = 0; s < count; ++s) add(spans[s], f, tile.source, sums);
          sums.finish(result);
        }
      };
      // When spreading, the window reaches results [low, high) and, wrapped, those `longer` before.
      const int64_t low = diagonals_.offsets[from] - group + 1;
      const int64_t high = diagonals_.offsets[to - 1] + diagonals_.shorter;
      if (fresh || !spread || high - low + 2 * group >= longer) {
        range(first, last);
      } else {
        range(low, high);
        range(low - longer, high - longer);
      }
      fresh = false;
    }
  }

  template <int vectors, int group>
  __attribute__((always_inline)) void add(const Span& span, int64_t f, const A* source,
                                          RowGroup<A, vectors, group>& sums) const {
    for (int i = 0; i < span.last - span.first; ++i) {
      const int64_t k = in_turn<spread>(span.first, span.last - span.first, i);
      const int64_t at = span.base + kStep<spread> * diagonals_.offsets[k];
      const A* values = diagonals_.values + k * diagonals_.shorter + (spread ? at : f);
      A partial[group];
      if (__builtin_expect(span.partial, 0)) {
        partial_values<spread>(diagonals_, k, f, at, group, partial);
        values = partial;
      }
      sums.add(source + at * sums.row, values);
    }
  }

  const Diagonals<A>& diagonals_;
  const int32_t* ranks_;
};

// A product from a stream of values. Tiles share what of the stream is in the second-level cache.
template <class A, bool spread>
class StreamedProduct {
 public:
  explicit StreamedProduct(const ValueStream<A, spread>& stream) : stream_(stream) {}

  // Results [first, last) of the tiles, first a multiple of kPad; up to kPad rows beyond the
  // results are written too.
  void operator()(const Tile<A>* tiles, int count, int64_t first, int64_t last,
                  Ahead ahead) const {
    for (int64_t begin = first; begin < last;) {
      const int64_t end = std::min(last, (begin / kPanel + 1) * kPanel);
      for (int w = 0; w < stream_.windows(); ++w) {
        for (int i = 0; i < count; ++i) {
          with_constant(tiles[i].vectors, [&](auto vectors) {
            results<vectors>(tiles[i], w, begin, end, ahead);
          });
        }
      }
      begin = end;
    }
  }

 private:
  // How far values are fetched ahead, in groups of them.
  static constexpr int64_t kFetched = 32;

  template <int vectors>
  void results(const Tile<A>& tile, int w, int64_t first, int64_t last, Ahead& ahead) const {
    using Group = RowGroup<A, vectors, kGroup>;
    const Part* part = stream_.part(w, first);
    const Item* item = stream_.items() + part->items;
    const A* values = stream_.values() + static_cast<size_t>(part->values) * kGroup;
    for (int64_t f = first; f < last; f += kGroup, ++item) {
      ahead.fetch();
      if (w > 0 && item->length == 0) continue;
      A* const result = tile.result + f * Group::row;
      Group sums;
      sums.start(result, w == 0);
      while (item->length > 0) {
        for (; item->length == 1; ++item, values += kGroup) {
          fetch(values);
          sums.add(tile.source + item->row * Group::row, values);
        }
        for (; item->length == kShortRun; ++item, values += kShortRun * kGroup) {
          sums.template add_run<kShortRun>(tile.source + item->row * Group::row, values);
        }
        for (; item->length == kLongRun; ++item, values += kLongRun * kGroup) {
          fetch(values);
          sums.template add_run<kLongRun>(tile.source + item->row * Group::row, values);
        }
      }
      sums.finish(result);
    }
  }

  static void fetch(const A* values) { __builtin_prefetch(values + kFetched * kGroup); }

  const ValueStream<A, spread>& stream_;
};

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

  ManyTokens(const Diagonals<A>& diagonals, const int32_t* source_rows,
             const int32_t* result_rows, const Epilogue<T>& epilogue)
      : diagonals_(diagonals),
        source_rows_(source_rows),
        result_rows_(result_rows),
        epilogue_(epilogue),
        sources_(diagonals.template sources<spread>()),
        results_(diagonals.template results<spread>()) {}

  template <class Product>
  void run(const T* x, int64_t stride, int64_t tokens, T* y, const Product& product) const {
    const int64_t vectors = (tokens + lanes - 1) / lanes, workers = threads();
    if (vectors % workers == 0 || vectors >= 6 * workers) {
      parallel(vectors, [&](int64_t first, int64_t last, int) {
        const int64_t begin = first * lanes, end = std::min(tokens, last * lanes);
        own_tiles(x + begin * stride, stride, end - begin, y + begin * results_, product);
      });
    } else {
      shared_tiles(x, stride, tokens, y, product);
    }
  }

 private:
  static constexpr int kMostTiles = 2;
  static constexpr int64_t kTogetherBytes = 1 << 20;

  size_t tile_elements(int64_t vectors) const {
    return (sources_ + results_ + 3 * kPad) * vectors * lanes;
  }

  Tile<A> tile_in(A* memory, int64_t tokens) const {
    const int vectors = static_cast<int>((tokens + lanes - 1) / lanes);
    return {vectors, memory + kPad * vectors * lanes,
            memory + (sources_ + 2 * kPad) * vectors * lanes};
  }

  // How many of `tokens` the next tile takes: two vectors, or the last three.
  static int64_t tokens_of_tile(int64_t tokens) {
    return tokens <= kMostVectors * lanes ? tokens : (kMostVectors - 1) * lanes;
  }

  void unpack(const Tile<A>& tile, int64_t tokens, int64_t first, int64_t last, T* y) const {
    unpack_features(tile.result, tile.vectors, result_rows_, tokens, first, last, y, results_,
                    [&](Vector<A> sums, int64_t feature, int64_t count) {
                      return finished(sums, epilogue_, feature, count);
                    });
  }

  // A thread's own tokens, as many tiles at a time as stay in the second-level cache.
  template <class Product>
  void own_tiles(const T* x, int64_t stride, int64_t tokens, T* y, const Product& product) const {
    const int64_t bytes = sources_ * (kMostVectors - 1) * kVectorBytes;
    const int together = static_cast<int>(std::clamp<int64_t>(kTogetherBytes / bytes, 1, kMostTiles));
    const int64_t most = tile_elements(kMostVectors);
    const Scratch scratch(together * most * sizeof(A));
    while (tokens > 0) {
      Tile<A> tiles[kMostTiles];
      int64_t taken[kMostTiles], all = 0;
      int count = 0;
      for (; count < together && all < tokens; all += taken[count++]) {
        taken[count] = tokens_of_tile(tokens - all);
        tiles[count] = tile_in(scratch.as<A>() + count * most, taken[count]);
        pack_features(x + all * stride, stride, taken[count], 0, sources_, source_rows_,
                      tiles[count].vectors, tiles[count].source);
        pad_sources<spread>(diagonals_, tiles[count].vectors, tiles[count].source);
      }
      product(tiles, count, 0, results_,
              Ahead{{x + all * stride, std::min(tokens - all, all), stride, sources_},
                    {y, all, results_, results_}});
      for (int i = 0; i < count; y += taken[i++] * results_) {
        unpack(tiles[i], taken[i], 0, results_, y);
      }
      x += all * stride;
      tokens -= all;
    }
  }

  // Too few tiles to go round: all threads work on every tile, each on its own features.
  template <class Product>
  void shared_tiles(const T* x, int64_t stride, int64_t tokens, T* y,
                    const Product& product) const {
    const int64_t most = tile_elements(kMostVectors);
    const Scratch scratch((tokens / ((kMostVectors - 1) * lanes) + 1) * most * sizeof(A));
    const auto each_tile = [&](auto&& work) {
      A* memory = scratch.as<A>();
      for (int64_t token = 0; token < tokens; memory += most) {
        const int64_t here = tokens_of_tile(tokens - token);
        work(token, here, tile_in(memory, here));
        token += here;
      }
    };
    parallel((sources_ + lanes - 1) / lanes, [&](int64_t first, int64_t last, int) {
      each_tile([&](int64_t token, int64_t here, const Tile<A>& tile) {
        pack_features(x + token * stride, stride, here, first * lanes,
                      std::min(last * lanes, sources_), source_rows_, tile.vectors, tile.source);
      });
    });
    each_tile([&](int64_t, int64_t, const Tile<A>& tile) {
      pad_sources<spread>(diagonals_, tile.vectors, tile.source);
    });
    parallel((results_ + kPad - 1) / kPad, [&](int64_t first, int64_t last, int) {
      const int64_t begin = first * kPad, end = std::min(last * kPad, results_);
      each_tile([&](int64_t token, int64_t here, const Tile<A>& tile) {
        product(&tile, 1, begin, end, Ahead{});
        if (!result_rows_) unpack(tile, here, begin, end, y + token * results_);
      });
    });
    if (!result_rows_) return;
    parallel((results_ + lanes - 1) / lanes, [&](int64_t first, int64_t last, int) {
      each_tile([&](int64_t token, int64_t here, const Tile<A>& tile) {
        unpack(tile, here, first * lanes, std::min(last * lanes, results_),
               y + token * results_);
      });
    });
  }

  const Diagonals<A>& diagonals_;
  const int32_t* source_rows_;
  const int32_t* result_rows_;
  const Epilogue<T>& epilogue_;
  const int64_t sources_, results_;
};

}  // namespace padst
