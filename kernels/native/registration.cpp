// The CPU kernels as torch's dispatcher knows them. Only Python asks for it: a packaged model calls
// its kernels directly, and leaves a process that also imports padst_fx as it is.
//
// No other source includes torch's library header: reading it takes longer than most of them.
#include <torch/library.h>

#include "gather_gemm/cpu_ops.h"
#include "native/autograd.h"
#include "native/packed_weights.h"
#include "native/visibility.h"
#include "shift/cpu_ops.h"

using torch::Library;

extern "C" PADST_EXPORT void padst_register() {
  static Library cpu(Library::IMPL, "padst", c10::DispatchKey::CPU, __FILE__, __LINE__);
  static Library autograd(Library::IMPL, "padst", c10::DispatchKey::AutogradCPU, __FILE__,
                          __LINE__);
#define PADST_REGISTER(NAME)               \
  cpu.impl(#NAME, padst::NAME##_op);       \
  autograd.impl(#NAME, padst::NAME##_autograd);
  PADST_REGISTER(shift)
  PADST_REGISTER(shift_input_grad)
  PADST_REGISTER(shift_weight_grad)
  PADST_REGISTER(gather_gemm)
  PADST_REGISTER(gather_gemm_input_grad)
  PADST_REGISTER(gather_gemm_weight_grad)
  PADST_REGISTER(scatter_gemm)
  PADST_REGISTER(scatter_gemm_input_grad)
  PADST_REGISTER(scatter_gemm_weight_grad)
#undef PADST_REGISTER
  static Library more(Library::FRAGMENT, "padst", std::nullopt, __FILE__, __LINE__);
  more.def("packed_bytes() -> int", padst::packed_bytes);
  more.def("packed_count() -> int", padst::packed_count);
}
