// The projection ops as the code that AOTInductor generates calls them: C functions on handles of
// tensors, named as it names them, without the dispatcher in between.
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include "gather_gemm/cpu_ops.h"
#include "native/visibility.h"
#include "shift/cpu_ops.h"

namespace {

using Product = decltype(padst::shift_op);

AOTITorchError call(Product* product, AtenTensorHandle x, AtenTensorHandle values,
                    AtenTensorHandle index, AtenTensorHandle perm, AtenTensorHandle bias,
                    int64_t extent, const char* activation, AtenTensorHandle* result) {
  const auto tensor = [](AtenTensorHandle handle) -> const at::Tensor& {
    return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handle);
  };
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(product(
        tensor(x), tensor(values), tensor(index), tensor(perm), tensor(bias), extent, activation));
  });
}

}  // namespace

#define PADST_SHIM(NAME)                                                                         \
  extern "C" PADST_EXPORT AOTITorchError aoti_torch_cpu_##NAME(                                  \
      AtenTensorHandle x, AtenTensorHandle values, AtenTensorHandle index, AtenTensorHandle perm, \
      AtenTensorHandle bias, int64_t extent, const char* activation, AtenTensorHandle* result) { \
    return call(padst::NAME##_op, x, values, index, perm, bias, extent, activation, result);     \
  }

PADST_SHIM(shift)
PADST_SHIM(gather_gemm)
PADST_SHIM(scatter_gemm)

#undef PADST_SHIM
