// Packed forms of weights as kernels make them; `packed_weights.h` keeps them between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace padst {

struct Packed {
  std::shared_ptr<const void> form;
  int64_t bytes = 0;
};

// 64-byte aligned and uninitialised, no larger than asked for: what is kept must hold no more.
inline std::shared_ptr<void> aligned_memory(size_t bytes) {
  void* const memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!memory) throw std::bad_alloc();
  return {memory, std::free};
}

}  // namespace padst
