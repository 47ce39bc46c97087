// Spans: inputs whose codes become numbers together, and what these are looked up in.
#pragma once
#include "planes.h"

#define SPAN 128 /* inputs, in float32 */

/* Whether codes, of activations as they are, become pairs of bfloat16. */
INLINE int is_paired(const weight *w) { return BF16_CODES && w->bf16 && !w->round_inputs; }

INLINE int64_t span_of(const weight *w) {
    return least(group_of(w), is_paired(w) ? 2 * SPAN : SPAN);
}

/* Some inputs of a stretch of a panel: its codes, and which of them. */
typedef struct {
    const char *codes;
    int64_t first, inputs, width;
} piece;

/* From input i of it on, of the columns from `column` on. */
INLINE sixteen read_piece(const int bits, piece p, int64_t i, int64_t column) {
    const int64_t from = p.first + i;
    const char *chunk = p.codes + from / CHUNK * chunk_bytes(bits, p.width) + column * 4;
    return read_sixteen(bits, chunk, p.width, from / SIXTEEN % 2);
}

/* What codes stand for that are taken from a table: those of a weight's own, and integers of which half
 * are below 0. Codes of fewer bits than a table has repeat in it, whatever is above them. */
typedef struct {
    float floats[32];
    uint16_t pairs[64]; /* bfloat16; or of e4m3 what is denormal, or of 4 bits with zeros -16 to 15 */
} tables;

static void fill_tables(const weight *w, tables *to) {
    const int codes = 1 << least(w->bits, 6);
    for (int i = 0; i < 64; i++) {
        float number = (float)(i % codes - codes / 2);
        if (w->kind == CODE_TABLE) number = w->table[i % 16];
        if (i < 32) to->floats[i] = number;
        if (w->kind == CODE_E4M3) number = (float)(i % 8) * 0x1p-9f;
        if (w->zeros) number = (float)(i % 32 < 16 ? i % 32 : i % 32 - 32);
        to->pairs[i] = rounded(number);
    }
}

typedef uint8_t bytes_of_lanes __attribute__((vector_size(LANES), aligned(1), may_alias));

/* What is taken off the codes of LANES columns: float32, or of pairs 2^23 more, and of those of 4 bits
 * two numbers of 16 bits. `from`: a group's zeros, or NULL, and half of all codes are below 0. */
INLINE uvec zeros_at(const int bits, const int paired, const char *from, int64_t column) {
    uvec zeros = (1u << (bits - 1)) - (uvec){0};
    if (from)
        zeros = __builtin_convertvector(*(const bytes_of_lanes *)(const void *)(from + column), uvec);
    if (paired && bits == 4) return zeros * 0x10001u;
    return (uvec)(__builtin_convertvector(zeros, vec) + (paired ? 0x1p23f : 0.0f));
}
