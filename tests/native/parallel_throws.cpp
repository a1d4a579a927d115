// Exits with 0 if an exception in any part of `parallel` reaches the caller, after all have ended.
#include <atomic>
#include <cstdint>
#include <new>

#include "native/parallel.h"

int main() {
  for (int64_t thrower = 0; thrower < 8; ++thrower) {
    std::atomic<int64_t> begun{0};
    bool caught = false;
    try {
      padst::parallel(8, [&](int64_t first, int64_t last, int) {
        begun += last - first;
        if (first <= thrower && thrower < last) throw std::bad_alloc();
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    if (!caught || begun != 8) return 1;
  }
  return 0;
}
