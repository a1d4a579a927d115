// Gather-GEMM and scatter-GEMM on the CPU; README.md has the maths.
#pragma once

#include <cstdint>

#include "native/epilogue.h"

namespace padst {

// values [row_blocks, entries, group, tile] and index [row_blocks, entries], whose entries point
// into `in_features` features: the inputs in the gather form, the outputs in the scatter form.
struct GatherShape {
  int64_t tokens, in_features, row_blocks, entries, group, tile, window;
};

// x, grad: rows of `ldx`, `ldg` elements. y, dx, dvalues: contiguous, written whole. index: uint8
// or int32 (index_bytes 1 or 4). perm, bias: null when absent.

template <class T>
void gather_gemm_forward(const T* x, int64_t ldx, const T* values, const void* index,
                         int index_bytes, const int32_t* perm, Epilogue<T> epilogue, T* y,
                         GatherShape shape, const void* packed);

template <class T>
void gather_gemm_input_grad(const T* grad, int64_t ldg, const T* values, const void* index,
                            int index_bytes, const int32_t* perm, T* dx, GatherShape shape,
                            const void* packed);

template <class T>
void gather_gemm_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx,
                             const void* index, int index_bytes, const int32_t* perm, T* dvalues,
                             GatherShape shape);

template <class T>
void scatter_gemm_forward(const T* x, int64_t ldx, const T* values, const void* index,
                          int index_bytes, const int32_t* perm, Epilogue<T> epilogue, T* y,
                          GatherShape shape, const void* packed);

template <class T>
void scatter_gemm_input_grad(const T* grad, int64_t ldg, const T* values, const void* index,
                             int index_bytes, const int32_t* perm, T* dx, GatherShape shape,
                             const void* packed);

template <class T>
void scatter_gemm_weight_grad(const T* grad, int64_t ldg, const T* x, int64_t ldx,
                              const void* index, int index_bytes, const int32_t* perm, T* dvalues,
                              GatherShape shape);

// Whether the products of a shape go to tile registers. A single call does as well without their
// packed form, and with it reads the index all the same.
template <class T>
bool gather_gemm_on_tiles(GatherShape shape);

// Bytes of a packed form of the values that is worth keeping between calls, 0 where none is; it
// goes into `packed`, which may be null all the same. The scatter form's forward takes the form of
// the gather form's input gradient, and the other way round.
template <class T>
int64_t gather_gemm_forward_packed_bytes(GatherShape shape);

template <class T>
void gather_gemm_forward_pack(const T* values, const void* index, int index_bytes,
                              GatherShape shape, void* packed);

template <class T>
int64_t gather_gemm_input_grad_packed_bytes(GatherShape shape);

template <class T>
void gather_gemm_input_grad_pack(const T* values, const void* index, int index_bytes,
                                 GatherShape shape, void* packed);

}  // namespace padst
