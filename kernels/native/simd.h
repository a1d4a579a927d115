// Vectors of the machine's width, through the vector extensions of GCC and Clang: + - * /, compare
// and `mask ? a : b` are the language's own, `a * b + c` becomes one fused multiply-add.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "native/scalar.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace padst {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class A, int N>
struct VectorOf {
  typedef A type __attribute__((vector_size(N * sizeof(A))));
};

// N lanes of A; N is a power of two, and by default what fills a register.
template <class A, int N = kLanes<A>>
using Vector = typename VectorOf<A, N>::type;

template <class V>
using Element = std::decay_t<decltype(std::declval<V&>()[0])>;

template <class V>
constexpr int kLanesOf = sizeof(V) / sizeof(Element<V>);

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
V broadcast(Element<V> value) {
  return value - V{};
}

// Loads V from storage of any type, widened to V's lanes; no alignment is asked for.
template <class V, class T>
V load(const T* from) {
  constexpr int n = kLanesOf<V>;
  if constexpr (std::is_same_v<T, Element<V>>) {
    V result;
    std::memcpy(&result, from, sizeof result);
    return result;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const auto bits = load<Vector<uint16_t, n>>(&from->bits);
    return bit_cast<V>(__builtin_convertvector(bits, Vector<uint32_t, n>) << 16);
  } else {
#if defined(__AVX512F__)
    if constexpr (n == 16) {
      const auto bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      return bit_cast<V>(_mm512_cvtph_ps(bits));
    }
#endif
#if defined(__F16C__)
    if constexpr (n == 8) {
      const auto bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      return bit_cast<V>(_mm256_cvtph_ps(bits));
    }
#endif
    V result{};
    for (int i = 0; i < n; ++i) result[i] = widen(from[i]);
    return result;
  }
}

// Stores V to storage of any type, rounded to nearest even.
template <class T, class V>
void store(T* to, V value) {
  constexpr int n = kLanesOf<V>;
  if constexpr (std::is_same_v<T, Element<V>>) {
    std::memcpy(to, &value, sizeof value);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const auto bits = bit_cast<Vector<uint32_t, n>>(value);
    const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const auto kept = value == value ? rounded : ((bits >> 16) | 0x40u);
    store(&to->bits, __builtin_convertvector(kept, Vector<uint16_t, n>));
  } else {
#if defined(__AVX512F__)
    if constexpr (n == 16) {
      const auto bits = _mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
      return;
    }
#endif
#if defined(__F16C__)
    if constexpr (n == 8) {
      const auto bits = _mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bits);
      return;
    }
#endif
    for (int i = 0; i < n; ++i) to[i] = narrow<T>(value[i]);
  }
}

// The first `count` lanes from storage, zeros in the others; nothing beyond them is read.
template <class V, class T>
V load_first(const T* from, int64_t count) {
  constexpr int n = kLanesOf<V>;
  if (count >= n) return load<V>(from);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && n == 16) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    return bit_cast<V>(_mm512_maskz_loadu_ps(mask, from));
  } else if constexpr (std::is_same_v<T, float> && n == 8) {
    const auto mask = static_cast<__mmask8>((1u << count) - 1);
    return bit_cast<V>(_mm256_maskz_loadu_ps(mask, from));
  }
#endif
  T filled[n] = {};
  for (int64_t i = 0; i < count; ++i) filled[i] = from[i];
  return load<V>(filled);
}

// The first `count` lanes to storage; nothing beyond them is written.
template <class T, class V>
void store_first(T* to, V value, int64_t count) {
  constexpr int n = kLanesOf<V>;
  if (count >= n) return store(to, value);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && n == 16) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    _mm512_mask_storeu_ps(to, mask, bit_cast<__m512>(value));
    return;
  } else if constexpr (std::is_same_v<T, float> && n == 8) {
    const auto mask = static_cast<__mmask8>((1u << count) - 1);
    _mm256_mask_storeu_ps(to, mask, bit_cast<__m256>(value));
    return;
  }
#endif
  T filled[n];
  store(filled, value);
  for (int64_t i = 0; i < count; ++i) to[i] = filled[i];
}

template <class V>
Element<V> sum(V value) {
  if constexpr (kLanesOf<V> == 1) {
    return value[0];
  } else {
    using Part = Vector<Element<V>, kLanesOf<V> / 2>;
    Part parts[2];
    std::memcpy(parts, &value, sizeof value);
    return sum(parts[0] + parts[1]);
  }
}

}  // namespace padst
