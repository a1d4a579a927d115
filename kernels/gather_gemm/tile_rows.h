// Rows of bf16 features reordered, and packed for tiles.
//
// A panel holds up to 32 tokens, 32 features at a time: panel[feature / 32][token][feature % 32].
#pragma once

#include <algorithm>
#include <cstring>

#include "native/scalar.h"

namespace padst {

constexpr int64_t kPanelTokens = 32, kTileDepth = 32;

inline int64_t panel_size(int64_t features) { return features * kPanelTokens; }

// Four words are joined before they are stored: loads are what bounds this.
inline uint64_t gathered_words(const BFloat16* from, const int32_t* order) {
  const auto word = [&](int i) { return uint64_t{from[order[i]].bits} << (16 * i); };
  return (word(0) | word(1)) | (word(2) | word(3));
}

// Features `order`, in chunks of 32, of `tokens` rows; a chunk goes to `to` + token * to_stride,
// the next one `chunk_step` further. Four rows share the reading of `order`; where fewer are left
// the last one is done again.
inline void gather_rows(const BFloat16* from, int64_t from_stride, const int32_t* order,
                        int64_t features, int64_t tokens, BFloat16* to, int64_t to_stride,
                        int64_t chunk_step) {
  constexpr int rows = 4;
  for (int64_t token = 0; token < tokens; token += rows) {
    const BFloat16* source[rows];
    BFloat16* target[rows];
    for (int r = 0; r < rows; ++r) {
      const int64_t row = std::min(token + r, tokens - 1);
      source[r] = from + row * from_stride;
      target[r] = to + row * to_stride;
    }
    for (int64_t chunk = 0; chunk < features / kTileDepth; ++chunk) {
      for (int64_t i = 0; i < kTileDepth; i += 4) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          const uint64_t words = gathered_words(source[r], order + chunk * kTileDepth + i);
          std::memcpy(target[r] + chunk * chunk_step + i, &words, sizeof words);
        }
      }
    }
  }
}

inline void copy_rows(const BFloat16* from, int64_t stride, int64_t features, int64_t tokens,
                      BFloat16* panel) {
  for (int64_t token = 0; token < tokens; ++token, from += stride, panel += kTileDepth) {
    for (int64_t f = 0; f < features; f += kTileDepth) {
      std::memcpy(panel + f * kPanelTokens, from + f, kTileDepth * sizeof *from);
    }
  }
}

// Packs at most 32 rows; feature f of the panel is feature order[f], or f where `order` is null.
// Rows are zeros from `tokens` to the next multiple of 16.
inline void pack_panel(const BFloat16* from, int64_t stride, const int32_t* order,
                       int64_t features, int64_t tokens, BFloat16* panel) {
  if (order) {
    gather_rows(from, stride, order, features, tokens, panel, kTileDepth, panel_size(kTileDepth));
  } else {
    copy_rows(from, stride, features, tokens, panel);
  }
  const int64_t padding = -tokens & 15;
  for (int64_t f = 0; padding && f < features; f += kTileDepth) {
    std::memset(panel + f * kPanelTokens + tokens * kTileDepth, 0,
                padding * kTileDepth * sizeof *panel);
  }
}

}  // namespace padst
