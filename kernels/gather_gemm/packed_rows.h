// N:M rows of one value an entry for a handful of tokens: rows in the lanes, from a packed form.
//
// Entry e of as many adjacent rows as a vector has lanes lies together, so that one lookup in the
// entry's window of x serves them all. Values come first, then the slots as bytes.
#pragma once

#include <vector>

#include "gather_gemm/few_tokens.h"
#include "gather_gemm/windows.h"

namespace padst {

#if defined(__AVX512F__) || defined(__AVX2__)
constexpr bool kLooksUp = true;
#else
constexpr bool kLooksUp = false;
#endif

struct PackedRows {
  static constexpr int64_t kLane = kLanes<float>, kMostTokens = kLane / 2;

  explicit PackedRows(const GatherShape& shape)
      : groups((shape.row_blocks + kLane - 1) / kLane), entries(groups * shape.entries) {}

  // Whether the packed form is used, and worth its memory.
  static bool used(const GatherShape& shape) {
    return kLooksUp && shape.group == 1 && shape.tile == 1 && shape.window <= 2 * kLane &&
           shape.entries > 0 && shape.tokens > 0 && shape.tokens <= kMostTokens;
  }

  int64_t bytes() const { return entries * kLane * static_cast<int64_t>(sizeof(float) + 1); }
  float* values(void* packed) const { return static_cast<float*>(packed); }
  const float* values(const void* packed) const { return static_cast<const float*>(packed); }
  uint8_t* slots(void* packed) const {
    return reinterpret_cast<uint8_t*>(values(packed) + entries * kLane);
  }
  const uint8_t* slots(const void* packed) const {
    return reinterpret_cast<const uint8_t*>(values(packed) + entries * kLane);
  }

  int64_t groups, entries;
};

template <class T>
void pack_rows(const T* values, const Windows<float>& windows, void* packed) {
  const GatherShape& shape = windows.shape();
  const PackedRows form(shape);
  constexpr int64_t lanes = PackedRows::kLane;
  windows.with_index([&](const auto* index) {
    for (int64_t i = 0; i < form.entries * lanes; ++i) {
      const int64_t row = i / lanes / shape.entries * lanes + i % lanes;
      const int64_t at = row * shape.entries + i / lanes % shape.entries;
      const bool there = row < shape.row_blocks;
      form.values(packed)[i] = there ? static_cast<float>(widen(values[at])) : 0.0f;
      form.slots(packed)[i] = there ? static_cast<uint8_t>(index[at]) : 0;
    }
  });
}

// x[slots[i]] in lane i, for slots below kLanes, or twice that if `wide`.
inline Vector<float> looked_up(const float* x, const uint8_t* slots,
                               [[maybe_unused]] bool wide) {
#if defined(__AVX512F__)
  const __m512i lanes =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(slots)));
  const __m512 low = _mm512_loadu_ps(x);
  return bit_cast<Vector<float>>(
      wide ? _mm512_permutex2var_ps(low, lanes, _mm512_loadu_ps(x + 16))
           : _mm512_permutexvar_ps(lanes, low));
#elif defined(__AVX2__)
  const __m256i lanes =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(slots)));
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x), lanes);
  if (!wide) return bit_cast<Vector<float>>(low);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + 8), lanes);
  const __m256i above = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(7));
  return bit_cast<Vector<float>>(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(above)));
#else
  Vector<float> result{};
  for (int i = 0; i < kLanes<float>; ++i) result[i] = x[slots[i]];
  return result;
#endif
}

template <bool WIDE>
Vector<float> packed_sums(const float* x, const float* values, const uint8_t* slots,
                          const int32_t* starts, int64_t entries) {
  using V = Vector<float>;
  constexpr int64_t lanes = PackedRows::kLane;
  V parts[4] = {};
  int64_t e = 0;
  for (; e + 4 <= entries; e += 4) {
    fetch_ahead(slots + e * lanes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      fetch_ahead(values + (e + i) * lanes);
      parts[i] += load<V>(values + (e + i) * lanes) *
                  looked_up(x + starts[e + i], slots + (e + i) * lanes, WIDE);
    }
  }
  for (; e < entries; ++e) {
    parts[0] += load<V>(values + e * lanes) * looked_up(x + starts[e], slots + e * lanes, WIDE);
  }
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

template <class T>
void gather_packed(const Product<T>& p, const Windows<float>& windows, const void* packed) {
  const GatherShape& shape = windows.shape();
  const PackedRows form(shape);
  constexpr int64_t lanes = PackedRows::kLane;
  // The last window is looked up as a whole, beyond the features.
  const int64_t padding = 2 * lanes, size = p.tokens * p.source_features;
  Scratch source((size + padding) * sizeof(float));
  std::fill_n(source.as<float>() + size, padding, 0.0f);
  copy_source(p, source.as<float>());
  parallel(form.groups, [&](int64_t first, int64_t last, int) {
    for (int64_t g = first; g < last; ++g) {
      const float* values = form.values(packed) + g * shape.entries * lanes;
      const uint8_t* slots = form.slots(packed) + g * shape.entries * lanes;
      const int64_t row = g * lanes, count = std::min(lanes, shape.row_blocks - row);
      for (int64_t t = 0; t < p.tokens; ++t) {
        const float* x = source.as<float>() + t * p.source_features;
        const auto sums = shape.window > lanes
                              ? packed_sums<true>(x, values, slots, windows.starts(), shape.entries)
                              : packed_sums<false>(x, values, slots, windows.starts(),
                                                   shape.entries);
        store_first(p.out + t * shape.row_blocks + row, finished(sums, p.epilogue, row, count),
                    count);
      }
    }
  });
}

}  // namespace padst
