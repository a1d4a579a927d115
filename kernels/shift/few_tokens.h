// Products for few tokens: neighbouring results in vector lanes, values read once as they are
// stored.
#pragma once

#include "native/epilogue.h"
#include "shift/diagonals.h"

namespace padst {

constexpr int kBlockVectors = 4;
constexpr int kMostTogether = 4;
constexpr int64_t kFewWindowBytes = 16 << 10;
// Diagonals whose values are read side by side: the processor's prefetching follows no more.
constexpr int64_t kStreams = 24;

// Results [f, f + block) of `together` tokens whose sources, and results, are `stride` apart.
template <class A, bool spread, int together>
struct ResultBlock {
  using V = Vector<A>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int block = kBlockVectors * lanes;

  const Diagonals<A>& diagonals;
  int64_t source_stride, result_stride;

  __attribute__((always_inline)) void multiply(const A* from, const A* values, V* sums) const {
#pragma GCC unroll 8
    for (int u = 0; u < kBlockVectors; ++u) {
      const V weights = load<V>(values + u * lanes);
#pragma GCC unroll 8
      for (int t = 0; t < together; ++t) {
        sums[u * together + t] += weights * load<V>(from + t * source_stride + u * lanes);
      }
    }
  }

  void add(int64_t f, const Span* spans, int count, const A* source, A* result, bool fresh) const {
    V sums[kBlockVectors * together];
#pragma GCC unroll 8
    for (int u = 0; u < kBlockVectors; ++u) {
#pragma GCC unroll 8
      for (int t = 0; t < together; ++t) {
        sums[u * together + t] = fresh ? V{} : load<V>(result + t * result_stride + u * lanes);
      }
    }
    for (int s = 0; s < count; ++s) {
      const Span span = spans[s];
      for (int k = span.first; k < span.last; ++k) {
        const int64_t offset = diagonals.offsets[k];
        const int64_t at = spread ? span.base - offset : span.base + offset;
        const A* values = diagonals.values + k * diagonals.shorter + (spread ? at : f);
        A partial[block];
        if (__builtin_expect(span.partial, 0)) {
          partial_values<spread>(diagonals, k, f, at, block, partial);
          values = partial;
        }
        multiply(source + at, values, sums);
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < kBlockVectors; ++u) {
#pragma GCC unroll 8
      for (int t = 0; t < together; ++t) {
        store(result + t * result_stride + u * lanes, sums[u * together + t]);
      }
    }
  }
};

// A product of few tokens. One of the maps may be present: from which feature of x a source comes,
// or to which feature of y a result goes.
template <class T, bool spread>
class FewTokens {
 public:
  using A = Accumulator<T>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int block = kBlockVectors * lanes;

  FewTokens(const Diagonals<A>& diagonals, const int32_t* source_from, const int32_t* result_to,
            const Epilogue<T>& epilogue)
      : diagonals_(diagonals),
        source_from_(source_from),
        result_to_(result_to),
        epilogue_(epilogue),
        sources_(diagonals.template sources<spread>()),
        results_(diagonals.template results<spread>()) {}

  void run(const T* x, int64_t stride, int64_t tokens, T* y) const {
    parallel((results_ + block - 1) / block, [&](int64_t first, int64_t last, int) {
      const int64_t begin = first * block, end = std::min(last * block, results_);
      const int64_t source_stride = (sources_ + 2 * block + lanes - 1) / lanes * lanes;
      const int64_t result_stride = (last - first) * block;
      const Scratch scratch(tokens * (source_stride + result_stride) * sizeof(A));
      A* sources = scratch.as<A>();
      A* results = sources + tokens * source_stride;
      for (int64_t t = 0; t < tokens; ++t) {
        copy_source(x + t * stride, sources + t * source_stride + block);
      }
      multiply_all(sources + block, source_stride, tokens, begin, end, results, result_stride);
      for (int64_t t = 0; t < tokens; ++t) {
        finish(results + t * result_stride, begin, end, y + t * results_);
      }
    });
  }

 private:
  void copy_source(const T* x, A* source) const {
    if (source_from_) {
      for (int64_t i = 0; i < sources_; ++i) source[i] = widen(x[source_from_[i]]);
    } else {
      for (int64_t i = 0; i < sources_; i += lanes) {
        store(source + i, load_first<Vector<A>>(x + i, sources_ - i));
      }
    }
    const auto fill = [&](int64_t i) {
      const int64_t from = padded_source<spread>(diagonals_, i);
      source[i] = from < 0 ? A{0} : source[from];
    };
    for (int64_t i = 1 - block; i < 0; ++i) fill(i);
    for (int64_t i = sources_; i < sources_ + block - 1; ++i) fill(i);
  }

  void multiply_all(const A* sources, int64_t source_stride, int64_t tokens, int64_t begin,
                    int64_t end, A* results, int64_t result_stride) const {
    const int64_t rounds = (tokens + kMostTogether - 1) / kMostTogether;
    const int64_t together = (tokens + rounds - 1) / rounds;
    const int64_t reach = std::max<int64_t>(kFewWindowBytes / (together * sizeof(A)), block);
    const int32_t* offsets = diagonals_.offsets;
    const int64_t most = kStreams * (spread ? diagonals_.longer / diagonals_.shorter : 1);
    int first = 0;
    do {
      int last = first;
      while (last < diagonals_.count && last - first < most &&
             offsets[last] < offsets[first] + reach) {
        ++last;
      }
      for (int64_t t = 0; t < tokens; t += together) {
        const A* source = sources + t * source_stride;
        A* result = results + t * result_stride;
        const auto pass = [&](auto count) {
          const ResultBlock<A, spread, count> rows{diagonals_, source_stride, result_stride};
          window(rows, first, last, begin, end, source, result);
        };
        switch (std::min(together, tokens - t)) {
          case 1: pass(std::integral_constant<int, 1>{}); break;
          case 2: pass(std::integral_constant<int, 2>{}); break;
          case 3: pass(std::integral_constant<int, 3>{}); break;
          default: pass(std::integral_constant<int, 4>{});
        }
      }
      first = last;
    } while (first < diagonals_.count);
  }

  template <class Block>
  void window(const Block& rows, int first, int last, int64_t begin, int64_t end, const A* source,
              A* result) const {
    const int32_t* offsets = diagonals_.offsets;
    const auto rank = [&](int64_t o) {
      return static_cast<int>(std::lower_bound(offsets + first, offsets + last, o) - offsets);
    };
    for (int64_t f = begin; f < end; f += block) {
      Span spans[kMostSpans];
      const int count = spans_of<spread>(diagonals_, f, block, first, last, rank, spans);
      rows.add(f, spans, count, source, result + (f - begin), first == 0);
    }
  }

  void finish(const A* result, int64_t begin, int64_t end, T* y) const {
    using V = Vector<A>;
    for (int64_t f = begin; f < end; f += lanes) {
      const int64_t count = std::min<int64_t>(end - f, lanes);
      const V sums = finished(load<V>(result + (f - begin)), epilogue_, f, count);
      if (!result_to_) {
        store_first(y + f, sums, count);
        continue;
      }
      T rounded[lanes];
      store(rounded, sums);
      for (int64_t i = 0; i < count; ++i) y[result_to_[f + i]] = rounded[i];
    }
  }

  const Diagonals<A>& diagonals_;
  const int32_t* source_from_;
  const int32_t* result_to_;
  const Epilogue<T>& epilogue_;
  const int64_t sources_, results_;
};

}  // namespace padst
