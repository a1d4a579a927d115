// Working memory of a kernel call: 64-byte aligned, uninitialised, reused by later calls.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace padst {

class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    Kept& kept = this_threads();
    if (kept.bytes >= bytes) {
      bytes_ = kept.bytes;
      data_ = kept.data;
      kept = {};
      return;
    }
    bytes_ = bytes;
    data_ = std::aligned_alloc(64, bytes);
    if (!data_) throw std::bad_alloc();
  }

  ~Scratch() {
    Kept& kept = this_threads();
    if (bytes_ <= kMostKept && bytes_ > kept.bytes) {
      std::free(kept.data);
      kept.data = data_;
      kept.bytes = bytes_;
    } else {
      std::free(data_);
    }
  }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  // A thread keeps its largest buffer up to this size: fresh pages cost more than a small kernel.
  static constexpr size_t kMostKept = size_t{8} << 20;

  struct Kept {
    void* data = nullptr;
    size_t bytes = 0;
    ~Kept() { std::free(data); }
  };

  static Kept& this_threads() {
    thread_local Kept kept;
    return kept;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace padst
