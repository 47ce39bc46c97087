// How packed weights lie in memory.
//
// A weight is packed once into panels of PANEL output columns (the last one narrower, in steps of
// LANES). A panel of numbers is [k][columns] of float32, or [k / 2][columns][2] of bfloat16:
// vdpbf16ps multiplies a pair of k of 16 columns with one pair of k of a row. Of a gate and an up
// projection, each panel of the one is followed by that of the other.
//
// A panel of codes goes group by group: [group / 4][columns][4] codes of 8 bits, or
// [group / 8][columns][4] pairs of codes of 4 bits, those of the first four inputs in the lower
// halves; then the columns' scales, then their zeros. The inputs are padded to a multiple of CHUNK.
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
#define MIDDLE(bits) ((bits) == 4 ? 8 : 128 ^ FLIP)

// A step along k takes 4 bytes a column: one float32 or two bfloat16.
INLINE int64_t steps_of(int64_t k, int64_t bf16) { return bf16 ? ceil_div(k, 2) : k; }

INLINE int64_t padded_inputs(int64_t k) { return ceil_div(k, CHUNK) * CHUNK; }

INLINE int64_t group_of(const weight *w) { return w->group ? w->group : padded_inputs(w->k); }

/* Whether codes, of activations as they are, become pairs of bfloat16. */
INLINE int is_paired(const weight *w) { return BF16_CODES && w->bf16 && !w->round_inputs; }

INLINE int64_t scale_bytes(const weight *w) { return w->scale_type == SCALE_FLOAT ? 4 : 2; }

/* Bytes of a panel of this many columns. */
INLINE int64_t codes_panel_bytes(const weight *w, int64_t width) {
    const int64_t k = padded_inputs(w->k), groups = ceil_div(k, group_of(w));
    return width * (k * w->bits / 8 + groups * (scale_bytes(w) + (w->zeros ? 1 : 0)));
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
