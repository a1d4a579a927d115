// Between token-major rows of any storage type and feature-major tiles of the accumulation type.
//
// A tile holds `vectors` vectors of tokens a feature: feature f of token t is at tile[row * vectors
// * lanes + t], where row is rows[f], or f where `rows` is null. A permutation of the features is
// thus applied while packing, for nothing.
#pragma once

#include "native/simd.h"

namespace padst {

namespace detail {

template <class V, int... I>
inline V shuffled(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  using Index = std::conditional_t<sizeof(Element<V>) == 8, int64_t, int32_t>;
  return __builtin_shuffle(a, b, Vector<Index, kLanesOf<V>>{I...});
#endif
}

// Lanes i with (i & distance) == 0 from a, the others from b, where a and b are two rows of a
// square that are `distance` apart: one half of exchanging its off-diagonal blocks.
template <int distance, bool high, class V, int... I>
inline V exchanged(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  if constexpr (high) {
    return shuffled(a, b, std::integer_sequence<int, (I & distance ? n + I : I + distance)...>{});
  } else {
    return shuffled(a, b, std::integer_sequence<int, (I & distance ? n + I - distance : I)...>{});
  }
}

// Interleaves the lower or upper halves of every four lanes: a0 b0 a1 b1, or a2 b2 a3 b3.
template <bool high, class V, int... I>
inline V interleaved(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return shuffled(
      a, b,
      std::integer_sequence<int, (I / 4 * 4 + I % 4 / 2 + (high ? 2 : 0) + (I % 2 ? n : 0))...>{});
}

template <int distance, class V>
inline void exchange(V* rows) {
  constexpr int n = kLanesOf<V>;
  using Lanes = std::make_integer_sequence<int, n>;
  if constexpr (distance < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (i & distance) continue;
      const V a = rows[i], b = rows[i + distance];
      rows[i] = exchanged<distance, false>(a, b, Lanes{});
      rows[i + distance] = exchanged<distance, true>(a, b, Lanes{});
    }
    exchange<distance * 2>(rows);
  }
}

}  // namespace detail

// Transposes a square of as many vectors as a vector has lanes.
template <class V>
inline void transpose(V* rows) {
  constexpr int n = kLanesOf<V>;
  if constexpr (n >= 4 && sizeof(Element<V>) == 4) {
    using Lanes = std::make_integer_sequence<int, n>;
#pragma GCC unroll 4
    for (int i = 0; i < n; i += 4) {
      const V low01 = detail::interleaved<false>(rows[i], rows[i + 1], Lanes{});
      const V low23 = detail::interleaved<false>(rows[i + 2], rows[i + 3], Lanes{});
      const V high01 = detail::interleaved<true>(rows[i], rows[i + 1], Lanes{});
      const V high23 = detail::interleaved<true>(rows[i + 2], rows[i + 3], Lanes{});
      rows[i] = detail::exchanged<2, false>(low01, low23, Lanes{});
      rows[i + 1] = detail::exchanged<2, true>(low01, low23, Lanes{});
      rows[i + 2] = detail::exchanged<2, false>(high01, high23, Lanes{});
      rows[i + 3] = detail::exchanged<2, true>(high01, high23, Lanes{});
    }
    detail::exchange<4>(rows);
  } else {
    detail::exchange<1>(rows);
  }
}

// Packs features [first, last) of `tokens` rows of x. Lanes beyond `tokens` are zero.
template <class A, class T>
void pack_features(const T* x, int64_t stride, int64_t tokens, int64_t first, int64_t last,
                   const int32_t* rows, int vectors, A* tile) {
  using V = Vector<A>;
  constexpr int lanes = kLanes<A>;
  // One vector of tokens after the other: the processor fetches ahead on a few rows, not on all.
  for (int c = 0; c < vectors; ++c, x += lanes * stride, tokens -= lanes) {
    for (int64_t f = first; f < last; f += lanes) {
      const int64_t width = last - f < lanes ? last - f : lanes;
      // Rows of a permutation are far apart: the first cache asks for them while this square turns.
      for (int i = 0; rows && i < width; ++i) {
        __builtin_prefetch(tile + (rows[f + i] * vectors + c) * lanes, 1);
      }
      V square[lanes];
      if (tokens >= lanes && width == lanes) {
#pragma GCC unroll 16
        for (int t = 0; t < lanes; ++t) square[t] = load<V>(x + t * stride + f);
      } else {
        for (int t = 0; t < lanes; ++t) {
          square[t] = t < tokens ? load_first<V>(x + t * stride + f, width) : V{};
        }
      }
      transpose(square);
      for (int i = 0; i < width; ++i) {
        const int64_t row = rows ? rows[f + i] : f + i;
        store(tile + (row * vectors + c) * lanes, square[i]);
      }
    }
  }
}

// Unpacks features [first, last) to `tokens` rows of y. `finish(vector, feature, count)` sees every
// vector of `count` neighbouring features of a token, from `feature` on, before it is stored.
template <class A, class T, class Finish>
void unpack_features(const A* tile, int vectors, const int32_t* rows, int64_t tokens, int64_t first,
                     int64_t last, T* y, int64_t stride, const Finish& finish) {
  using V = Vector<A>;
  constexpr int lanes = kLanes<A>;
  for (int c = 0; c < vectors; ++c, y += lanes * stride, tokens -= lanes) {
    for (int64_t f = first; f < last; f += lanes) {
      const int64_t width = last - f < lanes ? last - f : lanes;
      V square[lanes];
      for (int i = 0; i < lanes; ++i) {
        const int64_t feature = f + (i < width ? i : 0);
        const int64_t row = rows ? rows[feature] : feature;
        square[i] = load<V>(tile + (row * vectors + c) * lanes);
      }
      transpose(square);
      for (int t = 0; t < lanes && t < tokens; ++t) {
        store_first(y + t * stride + f, finish(square[t], f, width), width);
      }
    }
  }
}

}  // namespace padst
