// The library that a packaged model is linked with. It lies beside the model, together with kernel
// libraries for one or more instruction sets, and calls the first that this processor can run. It is
// itself compiled for any processor.
//
// PADST_VARIANTS lists the kernel libraries, widest first: {"avx512", "file"}, {"avx2", "file"}.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/shim_exception_state.h>
#include <torch/headeronly/version.h>

#include <cstdio>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

struct Variant {
  std::string isa, file;
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_amx() {
  constexpr unsigned avx512_bf16 = 1u << 5, amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  unsigned eax, ebx, ecx, edx, more, unused;
  return has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
         __get_cpuid_count(7, 1, &more, &unused, &ebx, &ecx) && (more & avx512_bf16) &&
         (edx & amx_bf16) && (edx & amx_tile);
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_amx() { return false; }
#endif

bool runs(const std::string& isa) {
  if (isa == "amx") return has_amx();
  if (isa == "avx512") return has_avx512();
  if (isa == "avx2") return has_avx2();
  return isa == "portable";
}

std::string folder() {
  Dl_info self;
  if (!dladdr(reinterpret_cast<void*>(&runs), &self)) return "";
  const std::string path = self.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

void* open_widest() {
  if (aoti_torch_abi_version() != TORCH_ABI_VERSION) {
    throw std::runtime_error("this package was made with torch " TORCH_VERSION
                             ", and runs with that version only");
  }
  const Variant variants[] = {PADST_VARIANTS};
  std::string names;
  for (const Variant& variant : variants) {
    names += (names.empty() ? "" : ", ") + variant.isa;
    if (!runs(variant.isa)) continue;
    // Never unloaded: threads keep memory of theirs.
    void* const library =
        dlopen((folder() + variant.file).c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) throw std::runtime_error(dlerror());
    return library;
  }
  throw std::runtime_error("this package has kernels for " + names +
                           ", and this processor has none of these instruction sets");
}

struct Opened {
  Opened() {
    try {
      library = open_widest();
    } catch (const std::exception& error) {
      problem = std::string("padst_fx: ") + error.what();
    }
  }

  void* library = nullptr;
  std::string problem;
};

const Opened& opened() {
  static const Opened instance;
  return instance;
}

// A library that is being loaded cannot refuse: it says so, and its functions fail.
__attribute__((constructor)) void open_while_loading() {
  if (!opened().library) std::fprintf(stderr, "%s\n", opened().problem.c_str());
}

AOTITorchError refuse() {
  namespace state = torch::csrc::shim::details;
  state::set_torch_exception_what(opened().problem);
  state::set_torch_exception_what_without_backtrace(opened().problem);
  return AOTI_TORCH_FAILURE;
}

using Product = AOTITorchError(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
                               AtenTensorHandle, AtenTensorHandle, int64_t, const char*,
                               AtenTensorHandle*);

Product* find(const char* name) {
  void* const library = opened().library;
  return library ? reinterpret_cast<Product*>(dlsym(library, name)) : nullptr;
}

}  // namespace

#define PADST_FORWARD(NAME)                                                                       \
  extern "C" __attribute__((visibility("default"))) AOTITorchError NAME(                          \
      AtenTensorHandle x, AtenTensorHandle values, AtenTensorHandle index, AtenTensorHandle perm, \
      AtenTensorHandle bias, int64_t extent, const char* activation, AtenTensorHandle* result) {  \
    static Product* const product = find(#NAME);                                                  \
    if (!product) return refuse();                                                                \
    return product(x, values, index, perm, bias, extent, activation, result);                     \
  }

PADST_FORWARD(aoti_torch_cpu_shift)
PADST_FORWARD(aoti_torch_cpu_gather_gemm)
PADST_FORWARD(aoti_torch_cpu_scatter_gemm)

#undef PADST_FORWARD
