// Products for a handful of tokens: vectors run along the values as they are stored.
#pragma once

#include <vector>

#include "gather_gemm/dots.h"
#include "gather_gemm/entries.h"
#include "gather_gemm/product.h"
#include "gather_gemm/windows.h"

namespace padst {

// More tokens than this fill enough lanes of a vector.
template <class A>
constexpr int64_t kFewTokens = kLanes<A> / 3 > 0 ? kLanes<A> / 3 : 1;

// Bytes between a value that is read and one that is asked for meanwhile: a page, since the
// processor's own prefetching ends with one.
constexpr int64_t kFetchedAhead = 4096;

inline void fetch_ahead(const void* from) {
  __builtin_prefetch(static_cast<const char*>(from) + kFetchedAhead, 0, 2);
}

// The rows of the source in the sums' order, [tokens, source_features].
template <class T>
void copy_source(const Product<T>& p, Accumulator<T>* to) {
  for (int64_t t = 0; t < p.tokens; ++t, to += p.source_features) {
    const T* row = p.source + t * p.stride;
    for (int64_t f = 0; f < p.source_features; ++f) {
      to[p.source_map ? p.source_map[f] : f] = widen(row[f]);
    }
  }
}

// Sums over `count` rows of x[k] times row k of `values`, C vectors wide. Values are read in order,
// and those that come later asked for.
template <int C, class V, class T>
void weighted_sums(const Element<V>* x, int64_t count, const T* values, int64_t stride, V* sums) {
  constexpr int lanes = kLanesOf<V>, chains = 4 / C;
  V parts[chains][C] = {};
  const auto add = [&](int64_t k, V* to) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const T* row = values + k * stride + c * lanes;
      fetch_ahead(row);
      to[c] += load<V>(row) * x[k];
    }
  };
  int64_t k = 0;
  for (; k + chains <= count; k += chains) {
#pragma GCC unroll 4
    for (int i = 0; i < chains; ++i) add(k + i, parts[i]);
  }
  for (; k < count; ++k) add(k, parts[0]);
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    sums[c] = parts[0][c];
#pragma GCC unroll 4
    for (int i = 1; i < chains; ++i) sums[c] += parts[i][c];
  }
}

// Row blocks whose lanes fill V, C vectors at a time.
template <int C, class V, class T>
void gather_few(const Product<T>& p, const T* values, const Columns& columns,
                const GatherShape& shape) {
  using A = Accumulator<T>;
  constexpr int lanes = kLanesOf<V>;
  const int64_t terms = shape.entries * shape.group, outputs = shape.row_blocks * shape.tile;
  Scratch source(p.tokens * p.source_features * sizeof(A));
  copy_source(p, source.template as<A>());
  parallel(shape.row_blocks, [&](int64_t first, int64_t last, int) {
    const Scratch gathered(terms * sizeof(A));
    A* x = gathered.template as<A>();
    for (int64_t r = first; r < last; ++r) {
      for (int64_t t = 0; t < p.tokens; ++t) {
        const A* row = source.template as<A>() + t * p.source_features;
        if (shape.group == 1) {
          columns.each(r, [&](int64_t e, int64_t column) { x[e] = row[column]; });
        } else {
          columns.each(r, [&](int64_t e, int64_t column) {
            std::copy_n(row + column, shape.group, x + e * shape.group);
          });
        }
        for (int64_t v = 0; v < shape.tile; v += C * lanes) {
          V sums[C];
          weighted_sums<C>(x, terms, values + r * terms * shape.tile + v, shape.tile, sums);
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) {
            const int64_t feature = r * shape.tile + v + c * lanes;
            store(p.out + t * outputs + feature, finished(sums[c], p.epilogue, feature, lanes));
          }
        }
      }
    }
  });
}

// The sums of one token over `last - first` terms for kSummed outputs whose values are `stride`
// apart; outputs beyond `count` repeat the last. If `fetches`, the values of later terms, before
// `end`, are asked for meanwhile: terms are far apart.
template <bool fetches, class V, class T>
auto term_dots(const Element<V>* x, const Term* first, const Term* last, const Term* end,
               int64_t depth, const T* values, int64_t stride, int64_t count) {
  constexpr int n = kSummed<Element<V>>;
  const int64_t ahead = kFetchedAhead / (n * depth * static_cast<int64_t>(sizeof(T))) + 1;
  V total[n] = {};
  for (const Term* term = first; term != last; ++term) {
    const T* value = values + term->value;
    const T* later = values + term[std::min<int64_t>(ahead, end - 1 - term)].value;
    for (int64_t k = 0; k < depth; k += kLanesOf<V>) {
      const V row = load<V>(x + term->source + k);
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) {
        const int64_t at = std::min<int64_t>(i, count - 1) * stride + k;
        if (fetches) __builtin_prefetch(later + at, 0, 2);
        total[i] += load<V>(value + at) * row;
      }
    }
  }
  return summed(total);
}

// Groups of outputs whose terms' depth fills V.
template <class V, class T>
void scatter_few(const Product<T>& p, const T* values, const TermLists& lists, int64_t group,
                 int64_t depth) {
  using A = Accumulator<T>;
  constexpr int n = kSummed<A>;
  const int64_t groups = static_cast<int64_t>(lists.first.size()) - 1, outputs = groups * group;
  const int64_t size = p.source_features + outputs;
  Scratch scratch(p.tokens * (size + outputs) * sizeof(A));
  A* source = scratch.template as<A>();
  A* sums = source + p.tokens * p.source_features;
  copy_source(p, source);
  parallel(groups, [&](int64_t first, int64_t last, int) {
    for (int64_t g = first; g < last; ++g) {
      const Term* terms = lists.terms.data();
      for (int64_t t = 0; t < p.tokens; ++t) {
        for (int64_t s = 0; s < group; s += n) {
          const int64_t count = std::min<int64_t>(n, group - s);
          const auto dots_of = t == 0 ? term_dots<true, V, T> : term_dots<false, V, T>;
          const auto dots = dots_of(source + t * p.source_features, terms + lists.first[g],
                                    terms + lists.first[g + 1], terms + lists.terms.size(), depth,
                                    values + s * depth, depth, count);
          store_first(sums + t * outputs + g * group + s, dots, count);
        }
      }
    }
  });
  A* row = sums + p.tokens * outputs;
  for (int64_t t = 0; t < p.tokens; ++t, sums += outputs) {
    for (int64_t f = 0; f < outputs; ++f) row[f] = sums[p.out_map ? p.out_map[f] : f];
    using W = Vector<A>;
    for (int64_t f = 0; f < outputs; f += kLanes<A>) {
      const int64_t count = std::min<int64_t>(kLanes<A>, outputs - f);
      store_first(p.out + t * outputs + f,
                  finished(load_first<W>(row + f, count), p.epilogue, f, count), count);
    }
  }
}

// Outer products of a few tokens under entries of one value each: dvalues[r, e].
template <class T>
void outer_few(const T* gathered, int64_t gathered_stride, const int32_t* gathered_map,
               const T* blocked, int64_t blocked_stride, const int32_t* blocked_map,
               const Windows<Accumulator<T>>& windows, T* dvalues) {
  using A = Accumulator<T>;
  const GatherShape& shape = windows.shape();
  const int64_t columns = shape.in_features, rows = shape.row_blocks, entries = shape.entries;
  Scratch scratch(shape.tokens * (columns + rows) * sizeof(A));
  A* x = scratch.template as<A>();
  A* factors = x + shape.tokens * columns;
  const Epilogue<T> none{nullptr, Activation::none};
  copy_source<T>({gathered, gathered_stride, shape.tokens, columns, gathered_map, none, nullptr,
                  nullptr}, x);
  copy_source<T>({blocked, blocked_stride, shape.tokens, rows, blocked_map, none, nullptr,
                  nullptr}, factors);
  const int32_t* starts = windows.starts();
  windows.with_index([&](const auto* index) {
    parallel(rows, [&](int64_t first, int64_t last, int) {
      std::vector<A> sums(entries);
      for (int64_t r = first; r < last; ++r) {
        const auto* slots = index + r * entries;
        std::fill(sums.begin(), sums.end(), A{0});
        for (int64_t t = 0; t < shape.tokens; ++t) {
          const A* row = x + t * columns;
          const A factor = factors[t * rows + r];
          for (int64_t e = 0; e < entries; ++e) {
            sums[e] += factor * row[int64_t{starts[e]} + int64_t{slots[e]}];
          }
        }
        std::transform(sums.begin(), sums.end(), dvalues + r * entries, narrow<T>);
      }
    });
  });
}

}  // namespace padst
