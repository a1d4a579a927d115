// The tile operations of amx.h in software: slow, to verify kernels on any machine.
//
// A thread that has not configured its tiles finds them empty: operations do nothing.
#pragma once

#include <cstring>

#include "native/scalar.h"

namespace padst {

#if defined(PADST_EMULATE_AMX)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif

inline bool tiles_permitted() { return true; }

struct EmulatedTiles {
  int rows[8], row_bytes[8];
  alignas(64) uint8_t data[8][kTileRows][kTileRowBytes];
};

inline EmulatedTiles& emulated_tiles() {
  thread_local EmulatedTiles tiles{};
  return tiles;
}

inline void tiles_configure(const TileConfig& config) {
  EmulatedTiles& tiles = emulated_tiles() = {};
  for (int tile = 0; tile < 8; ++tile) {
    tiles.rows[tile] = config.rows[tile];
    tiles.row_bytes[tile] = config.row_bytes[tile];
  }
}

inline void tiles_release() { emulated_tiles() = {}; }

template <int TILE>
void tile_zero() {
  std::memset(emulated_tiles().data[TILE], 0, sizeof emulated_tiles().data[TILE]);
}

template <int TILE>
void tile_load(const void* from, int64_t stride) {
  EmulatedTiles& tiles = emulated_tiles();
  for (int m = 0; m < tiles.rows[TILE]; ++m) {
    std::memcpy(tiles.data[TILE][m], static_cast<const uint8_t*>(from) + m * stride,
                tiles.row_bytes[TILE]);
  }
}

template <int TILE>
void tile_store(void* to, int64_t stride) {
  const EmulatedTiles& tiles = emulated_tiles();
  for (int m = 0; m < tiles.rows[TILE]; ++m) {
    std::memcpy(static_cast<uint8_t*>(to) + m * stride, tiles.data[TILE][m],
                tiles.row_bytes[TILE]);
  }
}

inline float emulated_pair_sums(const uint8_t* row, int tile, int column) {
  const EmulatedTiles& tiles = emulated_tiles();
  float sums[2] = {};
  for (int k = 0; k < tiles.rows[tile]; ++k) {
    for (int i = 0; i < 2; ++i) {
      BFloat16 a, b;
      std::memcpy(&a, row + (2 * k + i) * sizeof a, sizeof a);
      std::memcpy(&b, tiles.data[tile][k] + (2 * column + i) * sizeof b, sizeof b);
      sums[i] += widen(a) * widen(b);  // the product is exact
    }
  }
  return sums[0] + sums[1];
}

template <int TOTAL, int A, int B>
void tile_multiply() {
  EmulatedTiles& tiles = emulated_tiles();
  for (int m = 0; m < tiles.rows[TOTAL]; ++m) {
    for (int n = 0; n < tiles.row_bytes[TOTAL] / 4; ++n) {
      float total;
      uint8_t* at = tiles.data[TOTAL][m] + n * sizeof total;
      std::memcpy(&total, at, sizeof total);
      total += emulated_pair_sums(tiles.data[A][m], B, n);
      std::memcpy(at, &total, sizeof total);
    }
  }
}

}  // namespace padst
