// Eight tile registers of 16 rows by 64 bytes, and their product of bf16 pairs summed up in float.
//
// PADST_EMULATE_AMX puts software in their place. Without it and without the instructions the
// functions still exist, so that their callers compile everywhere, but kHasTiles is false.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && !defined(PADST_EMULATE_AMX)
#define PADST_AMX_INSTRUCTIONS
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace padst {

constexpr int64_t kTileRows = 16, kTileRowBytes = 64;

// The operand of ldtilecfg: every tile has its full size.
struct alignas(64) TileConfig {
  TileConfig() {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = kTileRowBytes;
      rows[tile] = kTileRows;
    }
  }

  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace padst

#if defined(PADST_AMX_INSTRUCTIONS)

namespace padst {

constexpr bool kHasTiles = true;

// The kernel makes room for the tiles' state only in a process that has asked for it, once.
inline bool tiles_permitted() {
  static const bool permitted = [] {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return permitted;
}

inline void tiles_configure(const TileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config));
}

inline void tiles_release() { asm volatile("tilerelease" : : : "memory"); }

template <int TILE>
void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}

// Rows are `stride` bytes apart.
template <int TILE>
void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(TILE) : "memory");
}

// TOTAL[m][n] += sum over k, i of A[m][2k + i] * B[k][2n + i]. Subnormal numbers count as zeros.
template <int TOTAL, int A, int B>
void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(TOTAL), "i"(A), "i"(B));
}

}  // namespace padst

#else
#include "native/amx_emulated.h"
#endif

namespace padst {

// The tiles of this thread, for as long as the object lives.
class ConfiguredTiles {
 public:
  ConfiguredTiles() { tiles_configure(TileConfig{}); }
  ~ConfiguredTiles() { tiles_release(); }
  ConfiguredTiles(const ConfiguredTiles&) = delete;
  ConfiguredTiles& operator=(const ConfiguredTiles&) = delete;
};

}  // namespace padst
