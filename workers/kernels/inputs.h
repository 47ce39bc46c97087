// Activations of a product with codes: rounded to int8, or as they are.
//
// What is rounded has a scale for each PART or CHUNK inputs of a row: some activations are a hundred
// times as large as all others, and would leave nothing of these with one scale for the whole row.
#pragma once
#include "panels.h"
#include "spans.h"

#include "../team.h"

/* Activations of some rows, rounded or in float32. What is rounded lies tile by tile, so that a tile
 * is read from its first byte to its last; the rows of a tile are those that are multiplied together
 * (`first_of_tile`). */
typedef struct {
    int8_t *codes;  /* of a tile: [padded k / 4][rows][4] */
    int32_t *sums;  /* of a tile: [parts][rows], what the sums of products begin with, or of the codes
                       of a part where weights have zeros or minimums */
    float *scales;  /* of a tile: [parts][rows] */
    char *whole;    /* rows of `stride` bytes as they are, and then none of the others: [padded k] in
                       float32, or in bfloat16 for pairs, of each four inputs the first, third, second
                       and fourth; behind them the sums of groups, if weights have minimums */
    int64_t k, part, parts; /* inputs that share a scale, and how often there are so many */
    int64_t stride;
} inputs;

#define PART 64 /* inputs that are rounded with one scale, where a group is so large */

typedef struct {
    const product *p;
    int64_t blocks;
    inputs rows;
} reading;

/* A row of activations in float32. */
INLINE void widen_row(const product *p, int64_t row, float *x) {
    const int64_t n = p->w->k, bf16 = p->w->bf16;
    const int32_t *order = p->w->order;
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t at = row * p->x_stride + i;
        if (!order && n - i >= LANES) {
            *(vec *)(x + i) = load(p->x, at, (int)bf16);
            continue;
        }
        for (int64_t k = i; k < least(i + LANES, n); k++) {
            const int64_t from = row * p->x_stride + (order ? order[k] : k);
            const uint32_t bits = bf16 ? (uint32_t)((const uint16_t *)p->x)[from] << 16
                                       : ((const uint32_t *)p->x)[from];
            memcpy(x + k, &bits, 4);
        }
    }
}

/* A row of bfloat16, in the order of pairs. */
INLINE void pair_row(const product *p, int64_t row, uint16_t *to, int64_t padded) {
    const uint16_t *x = (const uint16_t *)p->x + row * p->x_stride;
    const int32_t *order = p->w->order;
    int64_t i = 0;
#ifdef __AVX512BW__
    for (; !order && i + 32 <= p->w->k; i += 32) {
        const __m512i halves = _mm512_shufflelo_epi16(_mm512_loadu_si512(x + i), 0xd8);
        _mm512_storeu_si512(to + i, _mm512_shufflehi_epi16(halves, 0xd8));
    }
#endif
    for (; i < padded; i++) {
        const int64_t k = i % 4 == 1 ? i + 1 : i % 4 == 2 ? i - 1 : i;
        to[i] = k < p->w->k ? x[order ? order[k] : k] : 0;
    }
}

/* Round n inputs, a multiple of CHUNK. Where one is not finite, neither is the scale. */
INLINE void round_part(const float *x, int64_t n, int8_t *codes, float *scale, int32_t *sum) {
    /* The largest number has the largest bits, and what is not finite has larger ones. */
    int32_t largest_bits = 0, total = 0;
#if VNNI_CODES
    __m512i bits = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += LANES) {
        const uvec some = *(const uvec *)(const void *)(x + i) & 0x7fffffffu;
        bits = _mm512_max_epi32(bits, (__m512i)some);
    }
    largest_bits = _mm512_reduce_max_epi32(bits);
#else
#pragma omp simd reduction(max : largest_bits)
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
#endif
    float largest;
    memcpy(&largest, &largest_bits, 4);
    if (largest_bits >= 0x7f800000) {
        memset(codes, 0, (size_t)n);
        *scale = NAN;
        *sum = 0;
        return;
    }
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
#if VNNI_CODES
    __m512i totals = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += LANES) {
        const vec scaled = *(const vec *)(x + i) * inverse;
        const __m512i made = _mm512_cvtps_epi32((__m512)scaled);
        totals = _mm512_add_epi32(totals, made);
        _mm_storeu_si128((void *)(codes + i), _mm512_cvtepi32_epi8(made));
    }
    total = _mm512_reduce_add_epi32(totals);
#else
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) {
        const int32_t code = (int32_t)rintf(x[i] * inverse);
        codes[i] = (int8_t)code;
        total += code;
    }
#endif
    *scale = largest / 127.0f;
    *sum = total;
}

/* Row r of a tile that begins with row `first` and has `rows` rows. */
INLINE void round_row(const reading *j, int64_t first, int64_t rows, int64_t r) {
    const inputs *to = &j->rows;
    const weight *w = j->p->w;
    const int32_t middle = MIDDLE(w->bits);
    float x[to->k] __attribute__((aligned(64)));
    int8_t codes[to->k];
    widen_row(j->p, first + r, x);
    memset(x + w->k, 0, (size_t)(to->k - w->k) * 4);
    for (int64_t part = 0; part < to->parts; part++) {
        const int64_t from = part * to->part, at = first * to->parts + part * rows + r;
        int32_t sum;
        round_part(x + from, least(to->part, to->k - from), codes + from, to->scales + at, &sum);
        to->sums[at] = w->zeros || w->minimums ? sum : -middle * sum;
    }
    int8_t *tile = to->codes + first * to->k + r * 4;
    for (int64_t k = 0; k < to->k; k += 4) memcpy(tile + k * rows, codes + k, 4);
}

INLINE void sum_groups(const void *x, int64_t k, int64_t size, float *sums, const int bf16) {
    for (int64_t first = 0; first < k; first += size) {
        vec sum = {0};
        for (int64_t i = first; i < least(first + size, k); i += LANES) sum += load(x, i, bf16);
        float total = 0.0f;
        for (int i = 0; i < LANES; i++) total += sum[i];
        sums[first / size] = total;
    }
}

/* A unit is a tile. */
static void read_tile(void *job, int64_t unit, int64_t next) {
    (void)next;
    const reading *j = job;
    const int64_t each = ceil_div(ceil_div(j->p->m, j->blocks), CODE_ROWS);
    const int64_t block = unit / each, tile = unit % each, k = j->rows.k;
    const int64_t from = first_of_block(j->p->m, j->blocks, block);
    const int64_t m = first_of_block(j->p->m, j->blocks, block + 1) - from;
    const int64_t tiles = ceil_div(m, CODE_ROWS);
    if (tile >= tiles) return;
    const int64_t first = from + first_of_tile(m, tiles, tile);
    const int64_t rows = from + first_of_tile(m, tiles, tile + 1) - first;
    for (int64_t r = 0; r < rows; r++) {
        if (!j->rows.whole) {
            round_row(j, first, rows, r);
        } else if (is_paired(j->p->w)) {
            uint16_t *to = (uint16_t *)(void *)(j->rows.whole + (first + r) * j->rows.stride);
            pair_row(j->p, first + r, to, k);
            if (j->p->w->minimums) sum_groups(to, k, group_of(j->p->w), (float *)(void *)(to + k), 1);
        } else {
            float *to = (float *)(void *)(j->rows.whole + (first + r) * j->rows.stride);
            widen_row(j->p, first + r, to);
            memset(to + j->p->w->k, 0, (size_t)(k - j->p->w->k) * 4);
            if (j->p->w->minimums) sum_groups(to, k, group_of(j->p->w), to + k, 0);
        }
    }
}

/* The activations of a product with codes, in memory that is kept; none where there is no memory. */
static inputs read_inputs(const product *p, int64_t blocks, int64_t threads) {
    static __thread void *kept;
    static __thread size_t kept_size;
    const weight *w = p->w;
    inputs x = {.k = padded_inputs(w->k), .part = w->group % PART ? CHUNK : PART};
    x.parts = ceil_div(w->k, x.part);
    x.stride = x.k * (is_paired(w) ? 2 : 4) + (w->minimums ? 4 * ceil_div(x.k, group_of(w)) : 0);
    const int64_t row = w->round_inputs ? x.k + 8 * x.parts : x.stride;
    kept = grow(kept, &kept_size, (size_t)(p->m * row));
    if (!kept) return x;
    if (w->round_inputs) {
        x.codes = kept;
        x.sums = (int32_t *)(void *)(x.codes + p->m * x.k);
        x.scales = (float *)(void *)(x.sums + p->m * x.parts);
    } else {
        x.whole = kept;
    }
    reading job = {p, blocks, x};
    team_run(read_tile, &job, blocks * ceil_div(ceil_div(p->m, blocks), CODE_ROWS), threads);
    return x;
}
