// The inner loops of products with tokens in vector lanes: a group of neighbouring results of a
// tile, summed in registers over diagonals. A value is one number for all lanes.
#pragma once

#include "native/simd.h"

namespace padst {

// Results summed together where there are two or three vectors of tokens.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kGroup = 8;
#else
constexpr int kGroup = 4;
#endif

// Four values, each in all lanes. Shuffles leave the load ports to the sources; where multiply-adds
// share a port with shuffles, every other four is better loaded.
template <class A>
inline void broadcast_four(const A* values, [[maybe_unused]] bool shuffle, Vector<A>* out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    if (shuffle) {
      const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(values));
      out[0] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0x00));
      out[1] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0x55));
      out[2] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0xaa));
      out[3] = bit_cast<Vector<A>>(_mm512_permute_ps(four, 0xff));
      return;
    }
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) {
    if (shuffle) {
      const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(values));
      out[0] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0x00));
      out[1] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0x55));
      out[2] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0xaa));
      out[3] = bit_cast<Vector<A>>(_mm256_permute_ps(four, 0xff));
      return;
    }
  }
#endif
  for (int i = 0; i < 4; ++i) out[i] = broadcast<Vector<A>>(values[i]);
}

// AMX means Intel, whose 512-bit shuffles run on the second multiply-add port.
#if defined(__AMX_TILE__)
constexpr bool kShufflesCost = true;
#else
constexpr bool kShufflesCost = false;
#endif

template <class A, int vectors, int group>
struct RowGroup {
  using V = Vector<A>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int row = vectors * lanes;

  V sums[group * vectors];

  __attribute__((always_inline)) void start(const A* results, bool fresh) {
#pragma GCC unroll 32
    for (int i = 0; i < group * vectors; ++i) sums[i] = fresh ? V{} : load<V>(results + i * lanes);
  }

  __attribute__((always_inline)) void finish(A* results) const {
#pragma GCC unroll 32
    for (int i = 0; i < group * vectors; ++i) store(results + i * lanes, sums[i]);
  }

  // One diagonal: result r takes values[r] times the row `from` + r.
  __attribute__((always_inline)) void add(const A* from, const A* values) {
#pragma GCC unroll 16
    for (int quarter = 0; quarter < group; quarter += 4) {
      V weights[4];
      broadcast_four(values + quarter, !kShufflesCost || quarter / 4 % 2 == 1, weights);
#pragma GCC unroll 16
      for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < vectors; ++c) {
          const int at = (quarter + r) * vectors + c;
          sums[at] += weights[r] * load<V>(from + at * lanes);
        }
      }
    }
  }

  // A run of diagonals whose sources follow each other: result r takes values[j * group + r] times
  // the row `from` + j + r. Each row is loaded once for all of them.
  template <int run>
  __attribute__((always_inline)) void add_run(const A* from, const A* values) {
#pragma GCC unroll 16
    for (int q = 0; q < group + run - 1; ++q) {
      V source[vectors];
#pragma GCC unroll 4
      for (int c = 0; c < vectors; ++c) source[c] = load<V>(from + (q * vectors + c) * lanes);
#pragma GCC unroll 8
      for (int j = 0; j < run; ++j) {
        const int r = q - j;
        if (r < 0 || r >= group) continue;
        const V weight = broadcast<V>(values[j * group + r]);
#pragma GCC unroll 4
        for (int c = 0; c < vectors; ++c) sums[r * vectors + c] += weight * source[c];
      }
    }
  }
};

}  // namespace padst
