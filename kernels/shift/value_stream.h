// The values of a product in the order in which a tile takes them, and from which of its rows.
//
// Panels of results are taken in turn; within a panel windows of neighbouring offsets, so that the
// sources which they reach slide through the first-level cache as the results advance; within a
// window groups of results. What one group takes in one window is a `Part`: diagonals in the order
// of `kStep`, those with neighbouring offsets in runs, which load a source once for all of them.
// Ends of diagonals and wrapping are dealt with here, once for all tiles and, where the stream is
// kept, for all calls.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "native/packed.h"
#include "shift/diagonals.h"
#include "shift/row_group.h"

namespace padst {

constexpr int kLongRun = 8, kShortRun = 4;
// Results that all windows are taken for in turn.
constexpr int64_t kPanel = 1024;

// A run of diagonals or a single one: the number of diagonals and the first source row; length 0
// ends a part.
struct Item {
  uint32_t length : 4;
  int32_t row : 28;
};

// Where its values, in groups, and its items begin.
struct Part {
  uint32_t values, items;
};

// The memory of a stream that does not outlive its call.
inline std::shared_ptr<void> working_memory(size_t bytes) {
  const auto scratch = std::make_shared<Scratch>(bytes);
  return {scratch, scratch->as<void>()};
}

template <class A, bool spread>
class ValueStream {
 public:
  // `kept`: beyond this call, in memory of its own.
  ValueStream(const Diagonals<A>& diagonals, const int32_t* ranks, bool kept)
      : groups_((diagonals.template results<spread>() + kGroup - 1) / kGroup) {
    cut_windows(diagonals, ranks);
    build(diagonals, ranks, kept);
  }

  int windows() const { return static_cast<int>(windows_.size()); }
  const A* values() const { return static_cast<const A*>(values_.get()); }
  const Item* items() const { return items_.data(); }

  // The part of window w and of the results from f on, f a multiple of kGroup. Parts of the
  // following groups of the same panel and window follow it.
  const Part* part(int w, int64_t f) const { return parts_.data() + index(w, f / kGroup); }

  int64_t bytes() const {
    return sizeof *this + windows_.size() * sizeof(Window) + parts_.size() * sizeof(Part) +
           items_.size() * sizeof(Item) + value_bytes_;
  }

 private:
  // Diagonals [first, last).
  struct Window {
    int first, last;
  };

  static constexpr int step = kStep<spread>;
  static constexpr int64_t kPanelGroups = kPanel / kGroup;
  // Neighbouring offsets whose sources, at two vectors each, stay in the first-level cache.
  static constexpr int64_t kWindow = (32 << 10) / (2 * kVectorBytes);

  int64_t index(int w, int64_t group) const {
    const int64_t begin = group / kPanelGroups * kPanelGroups;
    const int64_t here = std::min(kPanelGroups, groups_ - begin);
    return begin * windows() + w * here + (group - begin);
  }

  // Windows that hold no diagonal are left out. A cut does not go through a run.
  void cut_windows(const Diagonals<A>& diagonals, const int32_t* ranks) {
    const int32_t* offsets = diagonals.offsets;
    const int64_t longer = diagonals.longer, count = (longer + kWindow - 1) / kWindow;
    int begin = 0;
    for (int64_t w = 1; w <= count; ++w) {
      int end = ranks[longer * w / count];
      for (int i = 0; i < kLongRun && 0 < end && end < diagonals.count; ++i) {
        if (offsets[end] != offsets[end - 1] + 1) break;
        --end;
      }
      if (end > begin) windows_.push_back({begin, end});
      begin = std::max(begin, end);
    }
    if (spread) std::reverse(windows_.begin(), windows_.end());
  }

  // Calls f(k, length, row, partial) for the runs and single diagonals of a group and window in
  // their order: `length` of them from k on, number j with the first source row + j.
  template <class F>
  void each_run(const Diagonals<A>& diagonals, const int32_t* ranks, int w, int64_t group,
                const F& f) const {
    const auto [from, to] = windows_[w];
    const auto rank = [&](int64_t o) {
      const int k = ranks[std::min(std::max<int64_t>(o, 0), diagonals.longer)];
      return std::min(std::max(k, from), to);
    };
    Span spans[kMostSpans];
    const int count =
        spans_of<spread>(diagonals, group * kGroup, kGroup, from, to, rank, spans);
    const int32_t* offsets = diagonals.offsets;
    for (int s = 0; s < count; ++s) {
      const Span span = spans[s];
      int k = spread ? span.last - 1 : span.first;
      for (int left = span.last - span.first; left > 0;) {
        int length = 1;
        while (length < std::min(kLongRun, left) &&
               offsets[k + step * length] == offsets[k] + step * length) {
          ++length;
        }
        length = length < kShortRun ? 1 : length < kLongRun ? kShortRun : kLongRun;
        f(k, length, span.base + step * offsets[k], span.partial);
        k += step * length;
        left -= length;
      }
    }
  }

  void build(const Diagonals<A>& diagonals, const int32_t* ranks, bool kept) {
    parts_.resize(groups_ * windows());
    const auto each_part = [&](const auto& work) {
      parallel(groups_, [&](int64_t first, int64_t last, int) {
        for (int w = 0; w < windows(); ++w) {
          for (int64_t g = first; g < last; ++g) work(w, g, parts_[index(w, g)]);
        }
      });
    };
    each_part([&](int w, int64_t g, Part& part) {
      each_run(diagonals, ranks, w, g, [&](int, int length, int64_t, bool) {
        part.values += length;
        ++part.items;
      });
      ++part.items;
    });
    uint32_t values = 0, items = 0;
    for (Part& part : parts_) {
      part.values = std::exchange(values, values + part.values);
      part.items = std::exchange(items, items + part.items);
    }
    items_.resize(items);
    value_bytes_ = static_cast<size_t>(values) * kGroup * sizeof(A);
    values_ = kept ? aligned_memory(value_bytes_) : working_memory(value_bytes_);
    each_part([&](int w, int64_t g, const Part& part) { fill(diagonals, ranks, w, g, part); });
  }

  void fill(const Diagonals<A>& diagonals, const int32_t* ranks, int w, int64_t g,
            const Part& part) {
    A* values = static_cast<A*>(values_.get()) + static_cast<size_t>(part.values) * kGroup;
    Item* item = items_.data() + part.items;
    const int64_t f = g * kGroup;
    each_run(diagonals, ranks, w, g, [&](int k, int length, int64_t row, bool partial) {
      *item++ = {static_cast<uint32_t>(length), static_cast<int32_t>(row)};
      for (int j = 0; j < length; ++j, values += kGroup) {
        const int64_t diagonal = k + step * j, at = row + j;
        if (partial) {
          partial_values<spread>(diagonals, diagonal, f, at, kGroup, values);
        } else {
          const A* from = diagonals.values + diagonal * diagonals.shorter + (spread ? at : f);
          std::copy_n(from, kGroup, values);
        }
      }
    });
  }

  int64_t groups_;
  std::vector<Window> windows_;
  std::vector<Part> parts_;
  std::vector<Item> items_;
  std::shared_ptr<void> values_;
  size_t value_bytes_ = 0;
};

}  // namespace padst
