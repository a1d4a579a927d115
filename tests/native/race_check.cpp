// Runs every C++ kernel on odd shapes with several threads, for a sanitizer to watch.
//
// Buffers have exactly the size that a call may touch. Results are compared between one thread and
// four: a race that no detector sees would still change them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "gather_gemm/cpu.h"
#include "native/scalar.h"
#include "shift/cpu.h"

namespace {

using padst::Activation;
using padst::narrow;
using padst::widen;

std::mt19937 generator(1);
int failures = 0;

template <class T>
std::vector<T> normal(int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<T> result(count);
  for (T& value : result) value = narrow<T>(distribution(generator));
  return result;
}

std::vector<int32_t> permutation(int64_t count) {
  std::vector<int32_t> result(count);
  std::iota(result.begin(), result.end(), 0);
  std::shuffle(result.begin(), result.end(), generator);
  return result;
}

// `count` distinct numbers below `limit`, ascending.
std::vector<int32_t> subset(int64_t limit, int64_t count) {
  std::vector<int32_t> result = permutation(limit);
  result.resize(count);
  std::sort(result.begin(), result.end());
  return result;
}

template <class T>
void compare(const char* name, int64_t size, const std::function<void(T*)>& call) {
  // A rounding of a 16-bit result may fall either way.
  const float share = sizeof(T) == 4 ? 1e-3f : 2e-2f;
  std::vector<T> alone(size, narrow<T>(NAN)), together(size, narrow<T>(NAN));
  setenv("OMP_NUM_THREADS", "1", 1);
  call(alone.data());
  setenv("OMP_NUM_THREADS", "4", 1);
  call(together.data());
  for (int64_t i = 0; i < size; ++i) {
    const float one = widen(alone[i]), four = widen(together[i]);
    if (!(std::abs(one - four) <= share * (1 + std::abs(one)))) {
      std::printf("%s: element %lld is %g with one thread, %g with four\n", name,
                  static_cast<long long>(i), one, four);
      ++failures;
      return;
    }
  }
}

template <class T>
void check_shift(int64_t out, int64_t in, int64_t diagonals, int64_t tokens, bool runs) {
  const padst::ShiftShape shape{tokens, out, in, diagonals};
  const int64_t length = std::min(out, in), count = std::max(out, in);
  std::vector<int32_t> offsets = subset(count, diagonals);
  if (runs) std::iota(offsets.begin(), offsets.end(), static_cast<int32_t>(count - diagonals));
  const auto values = normal<T>(diagonals * length), x = normal<T>(tokens * in);
  const auto grad = normal<T>(tokens * out), bias = normal<T>(out);
  const auto perm = permutation(in);
  // Every call makes its stream, so that threads do.
  for (const bool kept : {false, true}) {
    compare<T>("shift_forward", tokens * out, [&](T* y) {
      padst::Packed stream;
      if (kept) stream = padst::shift_forward_stream<T>(values.data(), offsets.data(), shape);
      padst::shift_forward<T>(x.data(), in, values.data(), offsets.data(), perm.data(),
                              {bias.data(), Activation::gelu}, y, shape, stream.form.get());
    });
    compare<T>("shift_input_grad", tokens * in, [&](T* dx) {
      padst::Packed stream;
      if (kept) stream = padst::shift_input_grad_stream<T>(values.data(), offsets.data(), shape);
      padst::shift_input_grad<T>(grad.data(), out, values.data(), offsets.data(), perm.data(), dx,
                                 shape, stream.form.get());
    });
  }
  compare<T>("shift_weight_grad", diagonals * length, [&](T* dvalues) {
    padst::shift_weight_grad<T>(grad.data(), out, x.data(), in, offsets.data(), perm.data(),
                                    dvalues, shape);
  });
}

// The entries of every row block spread over the windows, `per_window` in each.
template <class Index>
std::vector<Index> entries(const padst::GatherShape& shape, int64_t per_window) {
  std::vector<Index> result;
  for (int64_t r = 0; r < shape.row_blocks; ++r) {
    for (int64_t start = 0; start < shape.in_features; start += shape.window) {
      const int64_t inputs = std::min(shape.window, shape.in_features - start);
      for (int32_t slot : subset(inputs / shape.group, per_window)) result.push_back(slot);
    }
  }
  return result;
}

template <class T, class Index>
void check_blocks(int64_t row_blocks, int64_t group, int64_t tile, int64_t features, int64_t window,
                  int64_t per_window, int64_t tokens) {
  const int64_t windows = (features + window - 1) / window;
  const padst::GatherShape shape{tokens, features, row_blocks,  windows * per_window,
                                 group,  tile,     window};
  const auto index = entries<Index>(shape, per_window);
  const int bytes = sizeof(Index);
  const int64_t blocked = row_blocks * tile, count = row_blocks * shape.entries * group * tile;
  const auto values = normal<T>(count), pointed = normal<T>(tokens * features);
  const auto tiled = normal<T>(tokens * blocked), bias = normal<T>(std::max(features, blocked));
  const auto perm = permutation(features), tiled_perm = permutation(blocked);
  compare<T>("gather_gemm_forward", tokens * blocked, [&](T* y) {
    padst::gather_gemm_forward<T>(pointed.data(), features, values.data(), index.data(), bytes,
                                      perm.data(), {bias.data(), Activation::silu}, y, shape,
                                      nullptr);
  });
  compare<T>("gather_gemm_input_grad", tokens * features, [&](T* dx) {
    padst::gather_gemm_input_grad<T>(tiled.data(), blocked, values.data(), index.data(), bytes,
                                         perm.data(), dx, shape, nullptr);
  });
  compare<T>("gather_gemm_weight_grad", count, [&](T* dvalues) {
    padst::gather_gemm_weight_grad<T>(tiled.data(), blocked, pointed.data(), features,
                                          index.data(), bytes, perm.data(), dvalues, shape);
  });
  if (window != features) return;
  compare<T>("scatter_gemm_forward", tokens * features, [&](T* y) {
    padst::scatter_gemm_forward<T>(tiled.data(), blocked, values.data(), index.data(), bytes,
                                       tiled_perm.data(), {bias.data(), Activation::relu}, y, shape,
                                       nullptr);
  });
  compare<T>("scatter_gemm_input_grad", tokens * blocked, [&](T* dx) {
    padst::scatter_gemm_input_grad<T>(pointed.data(), features, values.data(), index.data(),
                                          bytes, tiled_perm.data(), dx, shape, nullptr);
  });
  compare<T>("scatter_gemm_weight_grad", count, [&](T* dvalues) {
    padst::scatter_gemm_weight_grad<T>(pointed.data(), features, tiled.data(), blocked,
                                           index.data(), bytes, tiled_perm.data(), dvalues, shape);
  });
}

template <class T>
void check_all(int64_t tokens) {
  check_shift<T>(37, 37, 5, tokens, false);
  check_shift<T>(101, 35, 13, tokens, false);
  check_shift<T>(35, 101, 13, tokens, true);
  check_shift<T>(130, 260, 26, tokens, false);
  check_blocks<T, int32_t>(5, 3, 3, 21, 21, 2, tokens);
  check_blocks<T, int32_t>(6, 8, 8, 40, 40, 3, tokens);
  check_blocks<T, int32_t>(7, 16, 16, 112, 112, 2, tokens);
  check_blocks<T, int32_t>(3, 32, 32, 128, 128, 2, tokens);
  check_blocks<T, uint8_t>(33, 1, 1, 47, 10, 1, tokens);
  check_blocks<T, uint8_t>(33, 1, 1, 47, 4, 2, tokens);
  check_blocks<T, uint8_t>(5, 1, 16, 64, 10, 1, tokens);
}

}  // namespace

int main() {
  for (int64_t tokens : {1, 2, 5, 17, 37, 197}) {
    check_all<float>(tokens);
    check_all<padst::BFloat16>(tokens);
    check_all<padst::Half>(tokens);
  }
  if (!failures) std::puts("every kernel agrees with itself on one thread and on four");
  return failures != 0;
}
