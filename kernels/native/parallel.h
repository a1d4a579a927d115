// Work shared by threads: the one place where kernels start any.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>

#if defined(PADST_STD_THREADS)
#include <cstdlib>
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace padst {

// Threads that `parallel` would use now: 1 inside a parallel region.
inline int threads() {
#if defined(PADST_STD_THREADS)
  const char* count = std::getenv("OMP_NUM_THREADS");
  return count ? std::max(1, std::atoi(count)) : 2;
#elif defined(_OPENMP)
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls f(first, last, thread) on contiguous parts of [0, tasks), one part a thread. Which part a
// thread gets depends on `tasks` and the number of threads alone. What a part throws (memory may be
// short) is thrown here once all have ended, since no exception may leave a thread.
template <class F>
void parallel(int64_t tasks, const F& f) {
  const int count = static_cast<int>(std::min<int64_t>(threads(), tasks));
  if (count <= 1) {
    if (tasks > 0) f(int64_t{0}, tasks, 0);
    return;
  }
  std::exception_ptr thrown;
  std::mutex writing;
  const auto part = [&](int thread) {
    try {
      f(tasks * thread / count, tasks * (thread + 1) / count, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(writing);
      thrown = std::current_exception();
    }
  };
#if defined(PADST_STD_THREADS)
  // A race detector understands these threads; it does not understand those of OpenMP.
  std::vector<std::thread> running;
  for (int thread = 1; thread < count; ++thread) running.emplace_back(part, thread);
  part(0);
  for (auto& thread : running) thread.join();
#elif defined(_OPENMP)
  // Fewer threads than asked for may come; every part is still done.
#pragma omp parallel num_threads(count)
  for (int i = omp_get_thread_num(); i < count; i += omp_get_num_threads()) part(i);
#endif
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace padst
