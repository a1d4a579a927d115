// Values as the right operand of tile products.
//
// A tile holds 16 outputs of 32 source rows in pairs: tile[row / 2][output][row % 2]. Packed tiles
// lie in the order in which they are multiplied: by 32 outputs, term, 32 rows, 16 outputs.
#pragma once

#include <cstring>

#include "gather_gemm/entries.h"
#include "gather_gemm/tile_rows.h"
#include "native/parallel.h"
#include "native/simd.h"
#include "native/transpose.h"

namespace padst {

constexpr int64_t kTileOutputs = 32, kTileValues = 512;

// Values for groups of `group` outputs whose terms have `depth` source rows; adjacent in memory are
// the outputs of a source row, or, transposed, the source rows of an output.
struct TileValues {
  const BFloat16* values;
  const TermLists& lists;
  int64_t group, depth;
  bool transposed;

  int64_t slices() const {
    return static_cast<int64_t>(lists.first.size() - 1) * (group / kTileOutputs);
  }
  const Term* first_term(int64_t slice) const { return terms_from(slice * kTileOutputs / group); }
  const Term* last_term(int64_t slice) const {
    return terms_from(slice * kTileOutputs / group + 1);
  }
  int64_t packed_size() const {
    return static_cast<int64_t>(lists.terms.size()) * group * depth;
  }

  // Where the packed tiles of a slice of 32 outputs start.
  int64_t packed_at(int64_t slice) const {
    const int64_t before = first_term(slice) - lists.terms.data();
    const int64_t terms = last_term(slice) - first_term(slice);
    return before * group * depth + slice * kTileOutputs % group * terms * depth;
  }

 private:
  const Term* terms_from(int64_t g) const { return lists.terms.data() + lists.first[g]; }
};

inline TileValues gathered_values(const BFloat16* values, const TermLists& lists,
                                  const GatherShape& shape) {
  return {values, lists, shape.tile, shape.group, false};
}

inline TileValues scattered_values(const BFloat16* values, const TermLists& lists,
                                   const GatherShape& shape) {
  return {values, lists, shape.group, shape.tile, true};
}

// From 32 rows of 16 adjacent outputs.
inline void pack_rows_tile(const BFloat16* from, int64_t stride, BFloat16* tile) {
  using Words = Vector<uint16_t, 16>;
  using Pairs = Vector<uint32_t, 16>;
  for (int64_t k = 0; k < kTileDepth; k += 2, from += 2 * stride, tile += 32) {
    Words even, odd;
    std::memcpy(&even, from, sizeof even);
    std::memcpy(&odd, from + stride, sizeof odd);
    const Pairs pairs = __builtin_convertvector(even, Pairs) |
                        (__builtin_convertvector(odd, Pairs) << 16);
    std::memcpy(tile, &pairs, sizeof pairs);
  }
}

// From 16 outputs of 32 adjacent rows: pairs, which are 32 bits wide, are transposed.
inline void pack_outputs_tile(const BFloat16* from, int64_t stride, BFloat16* tile) {
  using V = Vector<float>;
  constexpr int lanes = kLanes<float>;
  for (int output = 0; output < 16; output += lanes) {
    for (int pair = 0; pair < 16; pair += lanes) {
      V square[lanes];
      for (int i = 0; i < lanes; ++i) {
        std::memcpy(&square[i], from + (output + i) * stride + 2 * pair, sizeof square[i]);
      }
      transpose(square);
      for (int i = 0; i < lanes; ++i) {
        std::memcpy(tile + (pair + i) * 32 + 2 * output, &square[i], sizeof square[i]);
      }
    }
  }
}

// Packs a slice of 32 outputs to `packed`.
inline void pack_slice(const TileValues& v, int64_t slice, BFloat16* packed) {
  const int64_t first = slice * kTileOutputs % v.group;
  for (const Term* term = v.first_term(slice); term != v.last_term(slice); ++term) {
    const BFloat16* from = v.values + term->value;
    for (int64_t k = 0; k < v.depth; k += kTileDepth) {
      for (int64_t n = first; n < first + kTileOutputs; n += 16, packed += kTileValues) {
        if (v.transposed) {
          pack_outputs_tile(from + n * v.depth + k, v.depth, packed);
        } else {
          pack_rows_tile(from + k * v.group + n, v.group, packed);
        }
      }
    }
  }
}

// Packs all slices; `packed` has room for `packed_size()` values.
inline void pack_tiles(const TileValues& v, BFloat16* packed) {
  parallel(v.slices(), [&](int64_t first, int64_t last, int) {
    for (int64_t slice = first; slice < last; ++slice) {
      pack_slice(v, slice, packed + v.packed_at(slice));
    }
  });
}

}  // namespace padst
