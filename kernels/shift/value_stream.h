// The values of a product in the order in which a tile takes them, and from which of its rows.
//
// Panels of results are taken in turn; within a panel windows of neighbouring offsets, so that the
// sources which they reach slide through the first-level cache as the results advance; within a
// window groups of results. What one group takes in one window is a `Part`: runs of diagonals with
// neighbouring offsets first, which load a source once for several diagonals, then single ones.
// Ends of diagonals and wrapping are dealt with here, once for all tiles.
#pragma once

#include <memory>
#include <vector>

#include "shift/diagonals.h"
#include "shift/row_group.h"

namespace padst {

constexpr int kLongRun = 8, kShortRun = 4;

// `values`: in groups; `sources`: the first source rows of its runs and singles.
struct Part {
  uint32_t values, sources;
  uint16_t long_runs, short_runs, singles;
};

template <class A>
class ValueStream {
 public:
  // `window`: how many neighbouring offsets a window spans; `panel`: results, a multiple of kGroup.
  template <bool spread>
  static ValueStream of(const Diagonals<A>& diagonals, const int32_t* ranks, int64_t window,
                        int64_t panel) {
    ValueStream stream(diagonals.template results<spread>(), panel);
    stream.cut_windows(diagonals, ranks, window);
    stream.build<spread>(diagonals, ranks);
    return stream;
  }

  int64_t panel() const { return panel_groups_ * kGroup; }
  int windows() const { return static_cast<int>(window_ends_.size()) - 1; }
  const A* values() const { return values_->template as<A>(); }
  const int32_t* sources() const { return sources_.data(); }

  // The part of window w and of the results from f on, f a multiple of kGroup. Parts of the
  // following groups of the same panel and window follow it.
  const Part* part(int w, int64_t f) const { return parts_.data() + index(w, f / kGroup); }

 private:
  ValueStream(int64_t results, int64_t panel)
      : groups_((results + kGroup - 1) / kGroup), panel_groups_(panel / kGroup) {}

  int64_t index(int w, int64_t group) const {
    const int64_t begin = group / panel_groups_ * panel_groups_;
    const int64_t here = std::min(panel_groups_, groups_ - begin);
    return begin * windows() + w * here + (group - begin);
  }

  // Windows that hold no diagonal are left out. A cut does not go through a run.
  void cut_windows(const Diagonals<A>& diagonals, const int32_t* ranks, int64_t window) {
    const int32_t* offsets = diagonals.offsets;
    const int64_t longer = diagonals.longer, count = (longer + window - 1) / window;
    window_ends_ = {0};
    for (int64_t w = 1; w <= count; ++w) {
      int end = ranks[longer * w / count];
      for (int i = 0; i < kLongRun && 0 < end && end < diagonals.count; ++i) {
        if (offsets[end] != offsets[end - 1] + 1) break;
        --end;
      }
      if (end > window_ends_.back()) window_ends_.push_back(end);
    }
  }

  // Calls f(k, length, source row, partial) for the runs and single diagonals [k, k + length) of a
  // group and window; sources ascend within a run.
  template <bool spread, class F>
  void each_run(const Diagonals<A>& diagonals, const int32_t* ranks, int w, int64_t group,
                const F& f) const {
    const int from = window_ends_[w], to = window_ends_[w + 1];
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
      for (int k = span.first; k < span.last;) {
        int length = 1;
        while (length < kLongRun && k + length < span.last &&
               offsets[k + length] == offsets[k] + length) {
          ++length;
        }
        length = length < kShortRun ? 1 : length < kLongRun ? kShortRun : kLongRun;
        const int64_t row = spread ? span.base - offsets[k + length - 1] : span.base + offsets[k];
        f(k, length, row, span.partial);
        k += length;
      }
    }
  }

  template <bool spread>
  void build(const Diagonals<A>& diagonals, const int32_t* ranks) {
    parts_.resize(groups_ * windows());
    const auto each_part = [&](const auto& work) {
      parallel(groups_, [&](int64_t first, int64_t last, int) {
        for (int w = 0; w < windows(); ++w) {
          for (int64_t g = first; g < last; ++g) work(w, g, parts_[index(w, g)]);
        }
      });
    };
    each_part([&](int w, int64_t g, Part& part) {
      part = {};
      each_run<spread>(diagonals, ranks, w, g, [&](int, int length, int64_t, bool) {
        ++(length == kLongRun ? part.long_runs : length == kShortRun ? part.short_runs
                                                                     : part.singles);
      });
    });
    uint32_t values = 0, sources = 0;
    for (Part& part : parts_) {
      part.values = values;
      part.sources = sources;
      values += part.long_runs * kLongRun + part.short_runs * kShortRun + part.singles;
      sources += part.long_runs + part.short_runs + part.singles;
    }
    values_ = std::make_unique<Scratch>(static_cast<size_t>(values) * kGroup * sizeof(A));
    sources_.resize(sources);
    each_part([&](int w, int64_t g, const Part& part) { fill<spread>(diagonals, ranks, w, g, part); });
  }

  template <bool spread>
  void fill(const Diagonals<A>& diagonals, const int32_t* ranks, int w, int64_t g,
            const Part& part) {
    A* const values = values_->template as<A>() + static_cast<size_t>(part.values) * kGroup;
    int32_t* const sources = sources_.data() + part.sources;
    struct Place {
      A* values;
      int32_t* sources;
    };
    Place runs{values, sources};
    Place shorter{values + part.long_runs * kLongRun * kGroup, sources + part.long_runs};
    Place singles{shorter.values + part.short_runs * kShortRun * kGroup,
                  shorter.sources + part.short_runs};
    each_run<spread>(
        diagonals, ranks, w, g, [&](int k, int length, int64_t row, bool partial) {
          Place& place = length == kLongRun ? runs : length == kShortRun ? shorter : singles;
          *place.sources++ = static_cast<int32_t>(row);
          for (int j = 0; j < length; ++j, place.values += kGroup) {
            const int64_t diagonal = spread ? k + length - 1 - j : k + j;
            const int64_t f = g * kGroup, at = row + j;
            if (partial) {
              partial_values<spread>(diagonals, diagonal, f, at, kGroup, place.values);
            } else {
              const A* from = diagonals.values + diagonal * diagonals.shorter + (spread ? at : f);
              std::copy_n(from, kGroup, place.values);
            }
          }
        });
  }


  int64_t groups_, panel_groups_;
  std::vector<int> window_ends_;
  std::vector<Part> parts_;
  std::vector<int32_t> sources_;
  std::unique_ptr<Scratch> values_;
};

}  // namespace padst
