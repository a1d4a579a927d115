// Memory that is needed soon, brought into the second-level cache while something else is done.
#pragma once

#include <cstdint>

namespace padst {

// Fetches rows, a few cache lines at a time.
class Fetcher {
 public:
  Fetcher() = default;
  template <class T>
  Fetcher(const T* rows, int64_t count, int64_t stride, int64_t features)
      : row_(reinterpret_cast<const char*>(rows)),
        rows_(count),
        stride_(stride * sizeof(T)),
        bytes_(features * sizeof(T)) {}

  void fetch() {
    for (int line = 0; line < kLines && rows_ > 0; ++line) {
      __builtin_prefetch(row_ + at_, 0, 2);
      at_ += kLineBytes;
      if (at_ < bytes_) continue;
      at_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr int kLines = 6;
  static constexpr int64_t kLineBytes = 64;

  const char* row_ = nullptr;
  int64_t rows_ = 0, stride_ = 0, bytes_ = 0, at_ = 0;
};

// What a thread will touch after a product: the next tiles' sources, these tiles' results.
struct Ahead {
  Fetcher sources, results;

  void fetch() {
    sources.fetch();
    results.fetch();
  }
};

}  // namespace padst
