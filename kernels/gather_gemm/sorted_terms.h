// Sums over entries of one value each (N:M rows), forward and transposed, from a sorted packed form.
//
// Terms are sorted by stretch of source rows, whose vectors fit the first-level cache, then by batch
// of outputs, then by output. Within a batch outputs come in the order of their number of terms: a
// loop whose length is that of the last one costs no wrong guess of the processor's.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "gather_gemm/windows.h"
#include "native/parallel.h"

namespace padst {

// Where the parts of the packed form lie.
template <class A>
struct SortedTerms {
  // Source rows of a stretch, at four vectors each; outputs of a batch.
  static constexpr int64_t kStretch = (40 << 10) / (4 * kVectorBytes), kBatch = 512;
  // Units of a source row's place in a stretch, to be scaled by 8 in an address.
  static constexpr int64_t kUnit = kVectorBytes / 8;
  static_assert(kStretch * kUnit <= std::numeric_limits<uint16_t>::max());

  // An output of a batch and the number of its terms.
  struct Output {
    int32_t number, terms;
  };

  SortedTerms(const GatherShape& shape, bool transposed_)
      : transposed(transposed_),
        terms(shape.row_blocks * shape.entries),
        sources(transposed ? shape.row_blocks : shape.in_features),
        outputs(transposed ? shape.in_features : shape.row_blocks),
        stretches((sources + kStretch - 1) / kStretch),
        batches((outputs + kBatch - 1) / kBatch) {}

  static bool used(const GatherShape& shape) {
    return shape.group == 1 && shape.tile == 1 && shape.entries > 0;
  }

  int64_t bytes() const { return at_outputs() + stretches * outputs * sizeof(Output); }
  int64_t first_output(int64_t batch) const { return std::min(batch * kBatch, outputs); }

  // The first term of a batch in a stretch, one more at the end; values; places; outputs.
  template <class M>
  auto first(M* memory) const { return part<int64_t>(memory, 0); }
  template <class M>
  auto values(M* memory) const { return part<A>(memory, at_values()); }
  template <class M>
  auto places(M* memory) const { return part<uint16_t>(memory, at_places()); }
  template <class M>
  auto outputs_of(M* memory, int64_t stretch) const {
    return part<Output>(memory, at_outputs()) + stretch * outputs;
  }

  bool transposed;
  int64_t terms, sources, outputs, stretches, batches;

 private:
  int64_t at_values() const { return (stretches * batches + 1) * sizeof(int64_t); }
  int64_t at_places() const { return at_values() + terms * sizeof(A); }
  int64_t at_outputs() const { return (at_places() + terms * sizeof(uint16_t) + 3) / 4 * 4; }

  template <class P, class M>
  static auto part(M* memory, int64_t at) {
    using Byte = std::conditional_t<std::is_const_v<M>, const char, char>;
    using Element = std::conditional_t<std::is_const_v<M>, const P, P>;
    return reinterpret_cast<Element*>(static_cast<Byte*>(memory) + at);
  }
};

// Writes the packed form. Threads share what no other one counts: outputs, or stretches.
template <class A, class T>
class SortTerms {
 public:
  SortTerms(const SortedTerms<A>& form, const Windows<A>& windows, const T* values, void* memory)
      : form_(form), windows_(windows), values_(values), memory_(memory),
        next_(form.stretches * form.outputs) {}

  void run() {
    shared([&](int64_t, int64_t source, int64_t output) {
      ++next_[source / Form::kStretch * form_.outputs + output];
    });
    order();
    shared([&](int64_t entry, int64_t source, int64_t output) {
      const int64_t at = next_[source / Form::kStretch * form_.outputs + output]++;
      form_.values(memory_)[at] = widen(values_[entry]);
      form_.places(memory_)[at] =
          static_cast<uint16_t>(source % Form::kStretch * Form::kUnit);
    });
  }

 private:
  using Form = SortedTerms<A>;

  // f(entry, source, output) for all entries, by threads that share no output of a stretch.
  template <class F>
  void shared(const F& f) const {
    const GatherShape& shape = windows_.shape();
    const int64_t step = form_.transposed ? Form::kStretch : 16;
    const int64_t tasks = (shape.row_blocks + step - 1) / step;
    const int32_t* starts = windows_.starts();
    windows_.with_index([&](const auto* index) {
      parallel(tasks, [&](int64_t first, int64_t last, int) {
        for (int64_t r = first * step; r < std::min(last * step, shape.row_blocks); ++r) {
          for (int64_t e = 0; e < shape.entries; ++e) {
            const int64_t entry = r * shape.entries + e;
            const int64_t column = int64_t{starts[e]} + int64_t{index[entry]};
            f(entry, form_.transposed ? r : column, form_.transposed ? column : r);
          }
        }
      });
    });
  }

  // Sorts the outputs of every batch by their number of terms, which `next_` turns from into the
  // place of an output's first one.
  void order() {
    int64_t at = 0;
    for (int64_t s = 0; s < form_.stretches; ++s) {
      auto* outputs = form_.outputs_of(memory_, s);
      for (int64_t b = 0; b < form_.batches; ++b) {
        form_.first(memory_)[s * form_.batches + b] = at;
        const int64_t begin = form_.first_output(b), end = form_.first_output(b + 1);
        int64_t* counts = &next_[s * form_.outputs];
        const int64_t most = *std::max_element(counts + begin, counts + end);
        std::vector<int64_t> places(most + 2);
        for (int64_t i = begin; i < end; ++i) ++places[counts[i] + 1];
        for (int64_t n = 1; n <= most; ++n) places[n] += places[n - 1];
        for (int64_t i = begin; i < end; ++i) {
          outputs[begin + places[counts[i]]++] = {static_cast<int32_t>(i - begin),
                                                  static_cast<int32_t>(counts[i])};
        }
        for (int64_t i = begin; i < end; ++i) {
          int64_t& next = counts[begin + outputs[i].number];
          next = at;
          at += outputs[i].terms;
        }
      }
    }
    form_.first(memory_)[form_.stretches * form_.batches] = at;
  }

  const Form& form_;
  const Windows<A>& windows_;
  const T* values_;
  void* memory_;
  std::vector<int64_t> next_;
};

// `count` terms of source rows in `tile`, C vectors each; `more` adds them to what `out` has.
template <int C, class A>
__attribute__((always_inline)) inline void add_terms(const A* tile, const A* values, const uint16_t* places, int64_t count, bool more,
               A* out) {
  using V = Vector<A>;
  V total[C] = {};
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; ++i) {
    const A* row = reinterpret_cast<const A*>(reinterpret_cast<const char*>(tile) +
                                              int64_t{places[i]} * (8 * C));
    const V value = broadcast<V>(values[i]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) total[c] += load<V>(row + c * kLanes<A>) * value;
  }
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    A* at = out + c * kLanes<A>;
    store(at, more ? load<V>(at) + total[c] : total[c]);
  }
}

template <class A>
class SortedSums {
 public:
  static constexpr int kMostVectors = 4;

  SortedSums(const SortedTerms<A>& form, const void* packed) : form_(form), packed_(packed) {}

  int64_t batches() const { return form_.batches; }
  int64_t first_output(int64_t batch) const { return form_.first_output(batch); }
  int64_t widest() const { return std::min(form_.kBatch, form_.outputs); }

  template <int C>
  void add_up(const A* source, int64_t batch, A* out) const {
    constexpr int64_t lanes = kLanes<A>;
    const int64_t begin = first_output(batch), end = first_output(batch + 1);
    for (int64_t s = 0; s < form_.stretches; ++s) {
      const int64_t at = form_.first(packed_)[s * form_.batches + batch];
      const A* values = form_.values(packed_) + at;
      const uint16_t* places = form_.places(packed_) + at;
      const auto* outputs = form_.outputs_of(packed_, s);
      const A* tile = source + s * form_.kStretch * C * lanes;
      for (int64_t i = begin; i < end; ++i) {
        const auto [number, terms] = outputs[i];
        add_terms<C>(tile, values, places, terms, s > 0, out + number * C * lanes);
        values += terms;
        places += terms;
      }
    }
  }

 private:
  const SortedTerms<A>& form_;
  const void* packed_;
};

}  // namespace padst
