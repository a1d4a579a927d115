// The CPU kernels as torch's dispatcher knows them. Only Python asks for it: a packaged model calls
// its kernels directly, and leaves a process that also imports padst_fx as it is.
#include <torch/library.h>

#include "gather_gemm/cpu_ops.h"
#include "native/autograd.h"
#include "native/packed_weights.h"
#include "native/visibility.h"
#include "shift/cpu_ops.h"

using torch::Library;

extern "C" PADST_EXPORT void padst_register() {
  static Library cpu(Library::IMPL, "padst", c10::DispatchKey::CPU, __FILE__, __LINE__);
  padst::register_shift(cpu);
  padst::register_gather_gemm(cpu);
  static Library autograd(Library::IMPL, "padst", c10::DispatchKey::AutogradCPU, __FILE__,
                          __LINE__);
  padst::register_autograd(autograd);
  static Library more(Library::FRAGMENT, "padst", std::nullopt, __FILE__, __LINE__);
  padst::register_packed_weights(more);
}
