// The bf16 products of gather-GEMM as plain C functions of one signature, for ctypes. `packs`: with
// the packed form of the values.
#include <vector>

#include "gather_gemm/cpu.h"
#include "gather_gemm/tile_product.h"

using padst::Activation;
using padst::BFloat16;
using padst::GatherShape;

namespace {

std::vector<BFloat16> packed_values(const BFloat16* values, const int32_t* index,
                                    const GatherShape& shape, bool transposed) {
  const int64_t bytes = transposed
                            ? padst::gather_gemm_input_grad_packed_bytes<BFloat16>(shape)
                            : padst::gather_gemm_forward_packed_bytes<BFloat16>(shape);
  std::vector<BFloat16> packed(bytes / sizeof(BFloat16));
  const auto pack = transposed ? padst::gather_gemm_input_grad_pack<BFloat16>
                               : padst::gather_gemm_forward_pack<BFloat16>;
  pack(values, index, 4, shape, packed.data());
  return packed;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int uses_tiles(const GatherShape* shape) { return padst::tiles_fit(*shape); }

void gather_forward(const BFloat16* x, int64_t stride, const BFloat16* values,
                    const int32_t* index, const int32_t* perm, const BFloat16* bias,
                    int activation, BFloat16* y, const GatherShape* shape, int packs) {
  const auto packed = packed_values(values, index, *shape, false);
  padst::gather_gemm_forward<BFloat16>(x, stride, values, index, 4, perm,
                                       {bias, static_cast<Activation>(activation)}, y, *shape,
                                       packs ? packed.data() : nullptr);
}

void gather_input_grad(const BFloat16* grad, int64_t stride, const BFloat16* values,
                       const int32_t* index, const int32_t* perm, const BFloat16*, int,
                       BFloat16* dx, const GatherShape* shape, int packs) {
  const auto packed = packed_values(values, index, *shape, true);
  padst::gather_gemm_input_grad<BFloat16>(grad, stride, values, index, 4, perm, dx, *shape,
                                          packs ? packed.data() : nullptr);
}

void scatter_forward(const BFloat16* x, int64_t stride, const BFloat16* values,
                     const int32_t* index, const int32_t* perm, const BFloat16* bias,
                     int activation, BFloat16* y, const GatherShape* shape, int packs) {
  const auto packed = packed_values(values, index, *shape, true);
  padst::scatter_gemm_forward<BFloat16>(x, stride, values, index, 4, perm,
                                        {bias, static_cast<Activation>(activation)}, y, *shape,
                                        packs ? packed.data() : nullptr);
}

void scatter_input_grad(const BFloat16* grad, int64_t stride, const BFloat16* values,
                        const int32_t* index, const int32_t* perm, const BFloat16*, int,
                        BFloat16* dx, const GatherShape* shape, int packs) {
  const auto packed = packed_values(values, index, *shape, false);
  padst::scatter_gemm_input_grad<BFloat16>(grad, stride, values, index, 4, perm, dx, *shape,
                                           packs ? packed.data() : nullptr);
}

}  // extern "C"
#pragma GCC visibility pop
