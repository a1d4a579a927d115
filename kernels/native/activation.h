// Activations on vectors: a few float ulps from the exact functions, double by the C library.
#pragma once

#include <cmath>

#include "native/simd.h"

namespace padst {

enum class Activation { none, relu, gelu, gelu_tanh, silu };

// Comparisons with NaN are false, so clamped, relu and all that follows let NaN through.
template <class V>
V clamped(V x, Element<V> low, Element<V> high) {
  x = x < low ? broadcast<V>(low) : x;
  return x > high ? broadcast<V>(high) : x;
}

template <class V>
V relu(V x) {
  return x < Element<V>{0} ? V{} : x;
}

// e^x of floats: 2^n times a polynomial on [-ln(2)/2, ln(2)/2]; over- and underflow are right.
template <class V>
V exp(V x) {
  using Bits = Vector<int32_t, kLanesOf<V>>;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  constexpr float kRound = 12582912.0f;
  x = clamped(x, -105.0f, 89.0f);
  const V shifted = x * 1.44269504f + kRound;
  const V n = shifted - kRound;
  const V r = x - n * 0.693359375f + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // Two steps, because 2^n itself may not be a normal number.
  const Bits exponent = bit_cast<Bits>(shifted) - 0x4b400000;
  const Bits half = exponent >> 1;
  const V first = bit_cast<V>((half + 127) << 23);
  return p * first * bit_cast<V>((exponent - half + 127) << 23);
}

// erf(x / sqrt(2)) of floats to 2.2e-7: an odd polynomial on |x| <= 3.9 sqrt(2), +-1 beyond.
template <class V>
V erf_of_scaled(V x) {
  constexpr float kEnd = 3.9f;
  constexpr float kCoefficients[] = {
      -4.042678978294134e-03f, 2.9610220808535814e-03f, -3.4795240499079227e-03f,
      1.2248208746314049e-02f, -2.2151831537485123e-02f, 2.9963195323944092e-02f,
      -4.1785478591918945e-02f, 5.764394626021385e-02f, -7.399732619524002e-02f,
      9.070903062820435e-02f, -1.0951576381921768e-01f, 1.3468892872333527e-01f,
      -1.8101149797439575e-01f, 3.6258402466773987e-01f,
  };
  const V z = clamped(x * 0.707106781f, -kEnd, kEnd);
  const V u = z * (z * (2 / (kEnd * kEnd))) - 1.0f;
  V p = broadcast<V>(1.5960552264004946e-03f);
  for (const float coefficient : kCoefficients) p = p * u + coefficient;
  return clamped(p * z, -1.0f, 1.0f);
}

inline double activated(double x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x * 0.70710678118654752440));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

template <class V>
V activate(V x, Activation activation) {
  if constexpr (std::is_same_v<Element<V>, double>) {
    if (activation == Activation::none) return x;
    V result{};
    for (int i = 0; i < kLanesOf<V>; ++i) result[i] = activated(double{x[i]}, activation);
    return result;
  } else {
    switch (activation) {
      case Activation::relu:
        return relu(x);
      case Activation::gelu:
        return 0.5f * x * (1.0f + erf_of_scaled(x));
      case Activation::gelu_tanh:
        // 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u))
        return x / (1.0f + exp(x * -1.59576912f * (x * x * 0.044715f + 1.0f)));
      case Activation::silu:
        return x / (1.0f + exp(-x));
      default:
        return x;
    }
  }
}

}  // namespace padst
