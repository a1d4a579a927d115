// Width-1 wrapped diagonals on the CPU. README.md has the maths.
//
// Rows of x and grad are `ldx` and `ldg` elements apart, their features adjacent; everything else
// is contiguous. offsets: sorted, distinct. perm: null when absent.
#pragma once

#include <cstdint>

#include "native/epilogue.h"
#include "native/packed.h"

namespace padst {

struct ShiftShape {
  int64_t tokens, out_features, in_features, diagonals;
};

// Whether a product of so many tokens reads a stream: values in the order in which it takes them.
template <class T>
bool shift_streams(int64_t tokens);

// The streams of the two products, for any number of tokens.
template <class T>
Packed shift_forward_stream(const T* values, const int32_t* offsets, ShiftShape shape);
template <class T>
Packed shift_input_grad_stream(const T* values, const int32_t* offsets, ShiftShape shape);

// `stream`: null where none is at hand; results are the same.

// y[m] = act(S x[m, perm] + bias), [tokens, out_features].
template <class T>
void shift_forward(const T* x, int64_t ldx, const T* values, const int32_t* offsets,
                   const int32_t* perm, Epilogue<T> epilogue, T* y, ShiftShape shape,
                   const void* stream);

// dx[m, perm[j]] = sum_i S[i, j] grad[m, i], [tokens, in_features].
template <class T>
void shift_input_grad(const T* grad, int64_t ldg, const T* values, const int32_t* offsets,
                      const int32_t* perm, T* dx, ShiftShape shape, const void* stream);

// dvalues[k, t] = sum_m grad[m, row] x[m, perm[column]] at the entry's row and column.
template <class T>
void shift_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx, const int32_t* offsets,
                       const int32_t* perm, T* dvalues, ShiftShape shape);

}  // namespace padst
