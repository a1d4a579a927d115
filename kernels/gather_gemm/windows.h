// The windows of an N:M layer whose entries are one column each.
#pragma once

#include <algorithm>
#include <vector>

#include "gather_gemm/cpu.h"
#include "native/simd.h"

namespace padst {

// Bytes of a stretch of vectors that is read or added to at random.
constexpr int64_t kStretchBytes = 24 << 10;

// Where the windows of an N:M layer lie: per_window entries for every `window` columns.
template <class A>
class Windows {
 public:
  Windows(const void* index, int index_bytes, const GatherShape& shape)
      : shape_(shape), index_(index), index_bytes_(index_bytes) {
    count_ = std::max<int64_t>(1, (shape.in_features + shape.window - 1) / shape.window);
    per_window_ = std::max<int64_t>(1, shape.entries / count_);
    starts_.resize(shape.entries);
    for (int64_t e = 0; e < shape.entries; ++e) {
      starts_[e] = static_cast<int32_t>(e / per_window_ * shape.window);
    }
  }

  // Windows whose vectors of tokens, `vectors` a column, stay cached.
  int64_t cached(int vectors) const {
    const int64_t bytes = shape_.window * vectors * kLanes<A> * static_cast<int64_t>(sizeof(A));
    return std::max<int64_t>(1, kStretchBytes / bytes);
  }

  // f(index) with the slots of all row blocks, in their type.
  template <class F>
  void with_index(const F& f) const {
    if (index_bytes_ == 1) {
      f(static_cast<const uint8_t*>(index_));
    } else {
      f(static_cast<const int32_t*>(index_));
    }
  }

  const GatherShape& shape() const { return shape_; }
  int64_t count() const { return count_; }
  int64_t entries(int64_t windows) const { return windows * per_window_; }
  int64_t column(int64_t window) const {
    return std::min(window * shape_.window, shape_.in_features);
  }
  const int32_t* starts() const { return starts_.data(); }

 private:
  const GatherShape& shape_;
  const void* index_;
  int index_bytes_;
  int64_t count_, per_window_;
  std::vector<int32_t> starts_;  // the first column of an entry's window
};

}  // namespace padst
