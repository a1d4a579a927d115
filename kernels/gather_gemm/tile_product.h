// Products of dense entries in bf16 on tile registers: 32 tokens by 32 outputs at a time.
//
// The values are packed once a call. Of each step of tokens, first all panels are packed by all
// threads; then a task is a slice of 32 outputs for a block of panels, so that the slice's values
// are read from the first-level cache for all panels but one.
#pragma once

#include "gather_gemm/tile_rows.h"
#include "gather_gemm/tile_weights.h"
#include "native/amx.h"
#include "native/epilogue.h"
#include "native/parallel.h"
#include "native/scratch.h"

namespace padst {

// Entries are whole tiles and there are tokens for one; the process may use tiles.
inline bool tiles_fit(const GatherShape& shape) {
  const auto whole = [](int64_t size, int64_t unit) { return size > 0 && size % unit == 0; };
  return kHasTiles && shape.tokens >= kTileRows && whole(shape.group, kTileDepth) &&
         whole(shape.tile, kTileDepth) && whole(shape.window, shape.group) &&
         whole(shape.in_features, shape.group) && shape.row_blocks > 0 && tiles_permitted();
}

// out = act(sums + bias). A reordered output has an empty epilogue.
struct TileProduct {
  const BFloat16* source;
  int64_t stride, tokens, source_features;
  const int32_t* source_order;  // the feature that a source row is; null: as they come
  TileValues values;
  Epilogue<BFloat16> epilogue;
  BFloat16* out;
  const int32_t* out_order;  // the sum that an output feature is; null: as they come
};

// A vector of neighbouring features of a token.
inline void store_finished(const float* sums, const Epilogue<BFloat16>& epilogue, int64_t feature,
                           BFloat16* to) {
  using V = Vector<float>;
  const V value = finished(load<V>(sums), epilogue, feature, kLanes<float>);
#if defined(__AVX512BF16__)
  const auto rounded = _mm512_cvtneps_pbh(bit_cast<__m512>(value));
  std::memcpy(to, &rounded, sizeof rounded);
#else
  store(to, value);
#endif
}

// TILES times 16 tokens of a panel by 32 outputs, to totals[token][output]. A load does not wait
// for products that still read the register's last contents, so loads run ahead of the products;
// four totals cover the latency of a product.
template <int TILES>
void multiply_panel(const Term* first, const Term* last, int64_t depth, const BFloat16* panel,
                    const BFloat16* values, float* totals) {
  constexpr int64_t half = kTileValues, row = kTileOutputs * sizeof(float);
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (const Term* term = first; term != last; ++term) {
    const BFloat16* x = panel + panel_size(term->source);
    for (int64_t k = 0; k < depth; k += kTileDepth, x += 2 * half, values += 2 * half) {
      tile_load<6>(values, kTileRowBytes);
      tile_load<4>(x, kTileRowBytes);
      tile_load<7>(values + half, kTileRowBytes);
      tile_multiply<0, 4, 6>();
      if constexpr (TILES == 2) tile_load<5>(x + half, kTileRowBytes);
      tile_multiply<1, 4, 7>();
      if constexpr (TILES == 2) {
        tile_multiply<2, 5, 6>();
        tile_multiply<3, 5, 7>();
      }
    }
  }
  tile_store<0>(totals, row);
  tile_store<1>(totals + 16, row);
  if constexpr (TILES == 2) {
    tile_store<2>(totals + kTileRows * kTileOutputs, row);
    tile_store<3>(totals + kTileRows * kTileOutputs + 16, row);
  }
}

class TileProductRun {
 public:
  explicit TileProductRun(const TileProduct& product)
      : p_(product),
        outputs_(product.values.slices() * kTileOutputs),
        panel_(panel_size(product.source_features)) {}

  void run() const {
    const int64_t panels = (p_.tokens + kPanelTokens - 1) / kPanelTokens;
    const int64_t step = std::min(panels, std::max<int64_t>(threads(), kStepElements / panel_));
    const int64_t stage = p_.out_order ? step * kPanelTokens * outputs_ : 0;
    Scratch scratch((p_.values.packed_size() + step * panel_ + stage) * sizeof(BFloat16));
    BFloat16* values = scratch.as<BFloat16>();
    BFloat16* packed = values + p_.values.packed_size();
    pack_values(values);
    for (int64_t first = 0; first < panels; first += step) {
      const int64_t count = std::min(step, panels - first);
      BFloat16* rows = p_.out_order ? packed + step * panel_
                                    : p_.out + first * kPanelTokens * outputs_;
      pack(first, count, packed);
      multiply(first, count, values, packed, rows);
      if (p_.out_order) reorder(first, count, rows);
    }
  }

 private:
  // Packed elements of a step, and of a block: the second-level cache holds a block.
  static constexpr int64_t kStepElements = int64_t{1} << 21, kBlockElements = int64_t{1} << 18;

  int64_t tokens_of(int64_t panel) const {
    return std::min(kPanelTokens, p_.tokens - panel * kPanelTokens);
  }

  void pack_values(BFloat16* values) const {
    parallel(p_.values.slices(), [&](int64_t first, int64_t last, int) {
      for (int64_t slice = first; slice < last; ++slice) {
        pack_slice(p_.values, slice, values + p_.values.packed_at(slice));
      }
    });
  }

  void pack(int64_t start, int64_t count, BFloat16* packed) const {
    parallel(count, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first; i < last; ++i) {
        pack_panel(p_.source + (start + i) * kPanelTokens * p_.stride, p_.stride, p_.source_order,
                   p_.source_features, tokens_of(start + i), packed + i * panel_);
      }
    });
  }

  void multiply(int64_t start, int64_t count, const BFloat16* values, const BFloat16* packed,
                BFloat16* rows) const {
    const int64_t fitting = std::min(kBlockElements / panel_, count / threads());
    const int64_t most = std::max<int64_t>(1, fitting), blocks = (count + most - 1) / most;
    const int64_t slices = p_.values.slices();
    parallel(blocks * slices, [&](int64_t first, int64_t last, int) {
      const ConfiguredTiles tiles;
      for (int64_t task = first; task < last; ++task) {
        const int64_t block = task / slices, slice = task % slices;
        for (int64_t i = count * block / blocks; i < count * (block + 1) / blocks; ++i) {
          multiply_slice(slice, tokens_of(start + i), packed + i * panel_,
                         values + p_.values.packed_at(slice), rows + i * kPanelTokens * outputs_);
        }
      }
    });
  }

  void multiply_slice(int64_t slice, int64_t tokens, const BFloat16* panel, const BFloat16* values,
                      BFloat16* rows) const {
    alignas(64) float totals[kPanelTokens * kTileOutputs];
    const auto kernel = tokens > kTileRows ? multiply_panel<2> : multiply_panel<1>;
    kernel(p_.values.first_term(slice), p_.values.last_term(slice), p_.values.depth, panel, values,
           totals);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t n = 0; n < kTileOutputs; n += kLanes<float>) {
        const int64_t feature = slice * kTileOutputs + n;
        store_finished(totals + t * kTileOutputs + n, p_.epilogue, feature,
                       rows + t * outputs_ + feature);
      }
    }
  }

  void reorder(int64_t start, int64_t count, const BFloat16* rows) const {
    parallel(count, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first; i < last; ++i) {
        gather_rows(rows + i * kPanelTokens * outputs_, outputs_, p_.out_order, outputs_,
                    tokens_of(start + i), p_.out + (start + i) * kPanelTokens * outputs_,
                    outputs_, kTileDepth);
      }
    });
  }

  const TileProduct& p_;
  int64_t outputs_, panel_;
};

// Row blocks as sums over their entries.
inline void gather_tiles(const BFloat16* x, int64_t ldx, const int32_t* x_order,
                         const BFloat16* values, const Columns& columns,
                         Epilogue<BFloat16> epilogue, BFloat16* y, const int32_t* y_order,
                         const GatherShape& shape) {
  const TermLists lists = gather_terms(columns, shape);
  const TileValues tiles{values, lists, shape.tile, shape.group, false};
  TileProductRun({x, ldx, shape.tokens, shape.in_features, x_order, tiles, epilogue, y, y_order})
      .run();
}

// Blocks of columns as sums over the entries that cover them.
inline void scatter_tiles(const BFloat16* x, int64_t ldx, const int32_t* x_order,
                          const BFloat16* values, const Columns& columns,
                          Epilogue<BFloat16> epilogue, BFloat16* y, const int32_t* y_order,
                          const GatherShape& shape) {
  const TermLists lists = scatter_terms(columns, shape);
  const TileValues tiles{values, lists, shape.group, shape.tile, true};
  TileProductRun({x, ldx, shape.tokens, shape.row_blocks * shape.tile, x_order, tiles, epilogue, y,
                  y_order})
      .run();
}

}  // namespace padst
