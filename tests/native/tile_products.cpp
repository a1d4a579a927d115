// The bf16 products of gather-GEMM as plain C functions of one signature, for ctypes.
#include "gather_gemm/cpu.h"
#include "gather_gemm/tile_product.h"

using padst::Activation;
using padst::BFloat16;
using padst::GatherShape;

#pragma GCC visibility push(default)
extern "C" {

int uses_tiles(const GatherShape* shape) { return padst::tiles_fit(*shape); }

void gather_forward(const BFloat16* x, int64_t stride, const BFloat16* values,
                    const int32_t* index, const int32_t* perm, const BFloat16* bias,
                    int activation, BFloat16* y, const GatherShape* shape) {
  padst::gather_gemm_forward<BFloat16>(x, stride, values, index, 4, perm,
                                       {bias, static_cast<Activation>(activation)}, y, *shape,
                                       nullptr);
}

void gather_input_grad(const BFloat16* grad, int64_t stride, const BFloat16* values,
                       const int32_t* index, const int32_t* perm, const BFloat16*, int,
                       BFloat16* dx, const GatherShape* shape) {
  padst::gather_gemm_input_grad<BFloat16>(grad, stride, values, index, 4, perm, dx, *shape,
                                          nullptr);
}

void scatter_forward(const BFloat16* x, int64_t stride, const BFloat16* values,
                     const int32_t* index, const int32_t* perm, const BFloat16* bias,
                     int activation, BFloat16* y, const GatherShape* shape) {
  padst::scatter_gemm_forward<BFloat16>(x, stride, values, index, 4, perm,
                                        {bias, static_cast<Activation>(activation)}, y, *shape);
}

void scatter_input_grad(const BFloat16* grad, int64_t stride, const BFloat16* values,
                        const int32_t* index, const int32_t* perm, const BFloat16*, int,
                        BFloat16* dx, const GatherShape* shape) {
  padst::scatter_gemm_input_grad<BFloat16>(grad, stride, values, index, 4, perm, dx, *shape);
}

}  // extern "C"
#pragma GCC visibility pop
