// Storage types of tensors and the types in which kernels add them up.
#pragma once

#include <cstdint>
#include <cstring>

namespace padst {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// double adds up in double, everything narrower in float.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

inline float widen(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // The exponent is rebiased by a product, which also normalises subnormal numbers.
  const float scaled = float_of(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return float_of(bits_of(scaled) | special | sign);
}

// Rounds to the nearest T, ties to even; NaN stays NaN.
template <class T>
T narrow(Accumulator<T> value) {
  return value;
}

template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1);
  const uint32_t kept = value == value ? rounded >> 16 : (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>(kept)};
}

template <>
inline Half narrow<Half>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Adding 0.5 leaves the subnormal half, correctly rounded, in the low bits of the sum.
    result = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    const uint32_t rebiased = magnitude - 0x38000000u;
    result = (rebiased + 0xfffu + ((rebiased >> 13) & 1)) >> 13;
  }
  return {static_cast<uint16_t>(result | sign)};
}

}  // namespace padst
