// Products of dense entries in bf16 on tile registers: 32 tokens by 32 outputs at a time.
//
// The values are packed once a call, unless a packed form is at hand. Each thread then takes tokens
// of its own, packs a block of panels of them, and goes through slices of 32 outputs, whose values
// are read from the first-level cache for all panels of the block but one.
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
  const BFloat16* packed;  // the values, packed; null: they are packed now
  const BFloat16* source;
  int64_t stride, tokens, source_features;
  const int32_t* source_order;  // the feature that a source row is; null: as they come
  TileValues values;
  Epilogue<BFloat16> epilogue;
  BFloat16* out;
  const int32_t* out_order;  // the sum that an output feature is; null: as they come
};

// The 32 features of a token in a slice.
inline void store_finished(const float* sums, const Epilogue<BFloat16>& epilogue, int64_t feature,
                           BFloat16* to) {
  using V = Vector<float>;
  constexpr int lanes = kLanes<float>;
#if defined(__AVX512BF16__)
  const V low = finished(load<V>(sums), epilogue, feature, lanes);
  const V high = finished(load<V>(sums + lanes), epilogue, feature + lanes, lanes);
  const auto rounded = _mm512_cvtne2ps_pbh(bit_cast<__m512>(high), bit_cast<__m512>(low));
  std::memcpy(to, &rounded, sizeof rounded);
#else
  for (int64_t n = 0; n < kTileOutputs; n += lanes) {
    store(to + n, finished(load<V>(sums + n), epilogue, feature + n, lanes));
  }
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
    const int64_t rows = (p_.tokens + kTileRows - 1) / kTileRows;
    const int64_t most = p_.out_order ? rows : std::max<int64_t>(1, rows / kLeastRows);
    const int64_t token_parts = std::min<int64_t>(threads(), most);
    const int64_t output_parts = p_.out_order ? 1 : threads() / token_parts;
    const int64_t slices = p_.values.slices();
    const Scratch scratch(p_.packed ? 0 : p_.values.packed_size() * sizeof(BFloat16));
    if (!p_.packed) pack_tiles(p_.values, scratch.as<BFloat16>());
    const BFloat16* values = p_.packed ? p_.packed : scratch.as<BFloat16>();
    parallel(token_parts * output_parts, [&](int64_t first, int64_t last, int) {
      const ConfiguredTiles tiles;
      for (int64_t part = first; part < last; ++part) {
        const int64_t t = part / output_parts, o = part % output_parts;
        const auto token = [&](int64_t i) {
          return std::min(p_.tokens, rows * i / token_parts * kTileRows);
        };
        multiply_part(token(t), token(t + 1), slices * o / output_parts,
                      slices * (o + 1) / output_parts, values);
      }
    });
  }

 private:
  // Tiles of tokens below which a thread is better off with fewer outputs.
  static constexpr int64_t kLeastRows = 3;
  // Packed elements of a block: the second-level cache holds them.
  static constexpr int64_t kBlockElements = int64_t{1} << 16;

  // Tokens [first, last) and a range of slices, by a thread on its own: what another core has
  // written is slow to read.
  void multiply_part(int64_t first, int64_t last, int64_t first_slice, int64_t last_slice,
                     const BFloat16* values) const {
    const int64_t panels = (last - first + kPanelTokens - 1) / kPanelTokens;
    const int64_t most = std::clamp<int64_t>(kBlockElements / panel_, 1, panels);
    const int64_t stage = p_.out_order ? most * kPanelTokens * outputs_ : 0;
    const Scratch scratch((most * panel_ + stage) * sizeof(BFloat16));
    BFloat16* packed = scratch.as<BFloat16>();
    for (int64_t begin = first; begin < last; begin += most * kPanelTokens) {
      const int64_t end = std::min(last, begin + most * kPanelTokens);
      BFloat16* out = p_.out + begin * outputs_;
      BFloat16* rows = p_.out_order ? packed + most * panel_ : out;
      const auto each_panel = [&](const auto& f) {
        for (int64_t token = begin; token < end; token += kPanelTokens) {
          const int64_t at = token - begin;
          f(token, std::min(kPanelTokens, end - token), packed + at / kPanelTokens * panel_,
            rows + at * outputs_);
        }
      };
      each_panel([&](int64_t token, int64_t count, BFloat16* panel, BFloat16*) {
        pack_panel(p_.source + token * p_.stride, p_.stride, p_.source_order, p_.source_features,
                   count, panel);
      });
      for (int64_t slice = first_slice; slice < last_slice; ++slice) {
        const BFloat16* of_slice = values + p_.values.packed_at(slice);
        each_panel([&](int64_t, int64_t count, const BFloat16* panel, BFloat16* to) {
          multiply_slice(slice, count, panel, of_slice, to);
        });
      }
      if (!p_.out_order) continue;
      each_panel([&](int64_t token, int64_t count, BFloat16*, const BFloat16* from) {
        gather_rows(from, outputs_, p_.out_order, outputs_, count, p_.out + token * outputs_,
                    outputs_, kTileDepth);
      });
    }
  }

  void multiply_slice(int64_t slice, int64_t tokens, const BFloat16* panel, const BFloat16* values,
                      BFloat16* rows) const {
    alignas(64) float totals[kPanelTokens * kTileOutputs];
    const auto kernel = tokens > kTileRows ? multiply_panel<2> : multiply_panel<1>;
    kernel(p_.values.first_term(slice), p_.values.last_term(slice), p_.values.depth, panel, values,
           totals);
    const int64_t feature = slice * kTileOutputs;
    BFloat16* to = rows + feature;
    for (int64_t t = 0; t < tokens; ++t, to += outputs_) {
      store_finished(totals + t * kTileOutputs, p_.epilogue, feature, to);
    }
  }

  const TileProduct& p_;
  int64_t outputs_, panel_;
};

// Row blocks as sums over their entries.
inline void gather_tiles(const BFloat16* x, int64_t ldx, const int32_t* x_order,
                         const BFloat16* values, const Columns& columns,
                         Epilogue<BFloat16> epilogue, BFloat16* y, const int32_t* y_order,
                         const GatherShape& shape, const BFloat16* packed) {
  const TermLists lists = gather_terms(columns, shape);
  TileProductRun({packed, x, ldx, shape.tokens, shape.in_features, x_order,
                  gathered_values(values, lists, shape), epilogue, y, y_order})
      .run();
}

// Blocks of columns as sums over the entries that cover them.
inline void scatter_tiles(const BFloat16* x, int64_t ldx, const int32_t* x_order,
                          const BFloat16* values, const Columns& columns,
                          Epilogue<BFloat16> epilogue, BFloat16* y, const int32_t* y_order,
                          const GatherShape& shape, const BFloat16* packed) {
  const TermLists lists = scatter_terms(columns, shape);
  TileProductRun({packed, x, ldx, shape.tokens, shape.row_blocks * shape.tile, x_order,
                  scattered_values(values, lists, shape), epilogue, y, y_order})
      .run();
}

}  // namespace padst
