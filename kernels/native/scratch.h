// Working memory of a kernel call: 64-byte aligned, uninitialised, reused by later calls.
#pragma once

#include <array>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace padst {

class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    Kept* best = nullptr;
    for (Kept& kept : this_threads()) {
      if (kept.bytes >= bytes && (!best || kept.bytes < best->bytes)) best = &kept;
    }
    if (best) {
      std::swap(bytes_, best->bytes);
      std::swap(data_, best->data);
      return;
    }
    bytes_ = bytes;
    data_ = std::aligned_alloc(64, bytes);
    if (!data_) throw std::bad_alloc();
  }

  ~Scratch() {
    Kept* least = nullptr;
    for (Kept& kept : this_threads()) {
      if (!least || kept.bytes < least->bytes) least = &kept;
    }
    if (bytes_ <= kMostKept && bytes_ > least->bytes) {
      std::swap(bytes_, least->bytes);
      std::swap(data_, least->data);
    }
    std::free(data_);
  }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  // A thread keeps its largest buffers up to this size: fresh pages cost more than a small kernel.
  static constexpr int kBuffers = 3;
  static constexpr size_t kMostKept = size_t{8} << 20;

  struct Kept {
    void* data = nullptr;
    size_t bytes = 0;
    ~Kept() { std::free(data); }
  };

  using AllKept = std::array<Kept, kBuffers>;

  static AllKept& this_threads() {
    thread_local AllKept kept;
    return kept;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace padst
