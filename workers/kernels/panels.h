// How packed weights lie in memory.
//
// A weight is packed once into panels of PANEL output columns (the last one narrower, in steps of
// LANES). A panel of numbers is [k][columns] of float32, or [k / 2][columns][2] of bfloat16:
// vdpbf16ps multiplies a pair of k of 16 columns with one pair of k of a row. Of a gate and an up
// projection, each panel of the one is followed by that of the other.
//
// A panel of codes goes group by group: the codes, then the columns' scales, then their zeros or
// minimums. The inputs are padded to a multiple of CHUNK; smaller groups have their codes together,
// chunk by chunk, and then their scales. Where groups share factors of their scales, and of their
// minimums, those of a block are before its first group, in float16.
//
// The codes of a chunk are words of 4 bytes a column, [words][columns], a byte for every fourth input:
// codes of 8 bits, eight words. Others are taken apart into their four lowest bits, the two behind
// them and the last one, as far as they have so many, so that of 5 bits there are 4 and 1: four words
// with two codes a byte, the first four inputs' in the lower halves; two words with four a byte; one
// word with eight.
#pragma once
#include "linear.h"

#include "../vector.h"

#if LANES == 16
#define ROWS 8
#define VECTORS 3
#else
#define ROWS 4
#define VECTORS 3
#endif
#define PANEL (VECTORS * LANES)
#define CODE_ROWS 4 /* sums in integers and in float32 are registers */

#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(PORTABLE_CODES)
#define AVX2_CODES 1
#else
#define AVX2_CODES 0
#endif

#if defined(__AVX512VNNI__) && !defined(PORTABLE_CODES)
#define VNNI_CODES 1
#else
#define VNNI_CODES 0
#endif

#if defined(__AVX512BF16__) && !defined(PORTABLE_CODES)
#define BF16_CODES 1
#else
#define BF16_CODES 0
#endif

#define CHUNK 32 /* inputs whose sum AVX2 keeps in 16 bits */

/* How 8 bits are stored: AVX2 multiplies a signed code, VNNI one without a sign. */
#define FLIP (AVX2_CODES ? 0x80 : 0)
#define MIDDLE(bits) ((bits) == 8 ? 128 ^ FLIP : 1 << ((bits) - 1))

// A step along k takes 4 bytes a column: one float32 or two bfloat16.
INLINE int64_t steps_of(int64_t k, int64_t bf16) { return bf16 ? ceil_div(k, 2) : k; }

INLINE int64_t padded_inputs(int64_t k) { return ceil_div(k, CHUNK) * CHUNK; }

INLINE int64_t group_of(const weight *w) { return w->group ? w->group : padded_inputs(w->k); }

/* Inputs whose codes are together. */
INLINE int64_t stretch_of(const weight *w) { return most(group_of(w), CHUNK); }

INLINE int64_t chunk_bytes(int64_t bits, int64_t width) { return CHUNK / 8 * bits * width; }

INLINE int64_t scale_bytes(const weight *w) {
    return w->scale_type == SCALE_FLOAT ? 4 : w->scale_type == SCALE_INT8 ? 1 : 2;
}

/* What a group has beside its codes, a column. */
INLINE int64_t group_bytes(const weight *w) {
    return scale_bytes(w) * (w->minimums ? 2 : 1) + (w->zeros ? 1 : 0);
}

/* The factors that groups share, a column. */
INLINE int64_t factor_bytes(const weight *w) { return w->minimums ? 4 : 2; }

/* Whether there are factors before the group that begins with this input. */
INLINE int64_t begins_block(const weight *w, int64_t first) {
    return w->block && first % w->block == 0;
}

/* Bytes of a panel of this many columns. */
INLINE int64_t codes_panel_bytes(const weight *w, int64_t width) {
    const int64_t k = padded_inputs(w->k), groups = ceil_div(k, group_of(w));
    const int64_t blocks = w->block ? ceil_div(k, w->block) : 0;
    return width * (k * w->bits / 8 + groups * group_bytes(w) + blocks * factor_bytes(w));
}

// Bytes of a panel of this many columns, of one part of a pair.
INLINE int64_t panel_bytes(const weight *w, int64_t width) {
    return w->bits ? codes_panel_bytes(w, width) : width * steps_of(w->k, w->bf16) * 4;
}

// Bytes before a panel. All panels before it are whole.
INLINE int64_t panel_at(const weight *w, int64_t panel) {
    return panel * panel_bytes(w, PANEL) * (w->gated ? 2 : 1);
}

INLINE int64_t width_of(int64_t n, int64_t panel) {
    return least(PANEL, ceil_div(n - panel * PANEL, LANES) * LANES);
}

/* The rows of a product are divided into blocks, and those of a block into tiles of up to ROWS, or
 * CODE_ROWS, all of about the same size. These are the first rows of one. */
INLINE int64_t first_of_block(int64_t m, int64_t blocks, int64_t block) {
    return m * block / blocks;
}

INLINE int64_t first_of_tile(int64_t m, int64_t tiles, int64_t tile) { return m * tile / tiles; }
