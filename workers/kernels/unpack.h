// Weights as codes of 2 to 8 bits, times activations as they are.
//
// The codes of SPAN inputs of a panel become numbers once for all rows of a unit: float32, or where
// the processor multiplies bfloat16 and the model is in it, bfloat16 (pairs.h), which has room for a
// code less its zero. Their scales multiply the sums of a span (a group is a whole number of spans,
// or a span a whole group), so that codes are exact. The spans' sums are added in their order, and
// behind each TOGETHER groups what their minimums add, which go with the sums of their activations:
// where there are any, half of all codes are taken off first, and the minimums make up for it, so
// that all sums are small. A row's result depends on it alone.
#pragma once
#include "codes.h"
#include "pairs.h"
#include "planes.h"
#include "spans.h"

#define TOGETHER 32 /* groups whose minimums are added to a row's result at once */

#if defined(__AVX512F__)
#define TABLED 5 /* most bits of codes whose numbers are taken from a table */
#elif AVX2_CODES
#define TABLED 4
#else
#define TABLED 0
#endif

/* Codes in the lanes' lowest bits, with others above them -> what they stand for. */
INLINE vec value_of(const int bits, const int kind, uvec codes, vec zero, const float *table) {
    const ivec code = (ivec)(codes & ((1u << bits) - 1));
    if (kind == CODE_E4M3) {
        /* The bits of a float32 whose exponent is that of the code: a factor corrects the bias. */
        const uvec magnitude = (uvec)(code & 127) << 20, sign = (uvec)(code & 128) << 24;
        return (vec)((uvec)((vec)magnitude * 0x1p120f) | sign);
    }
    if (kind == CODE_TABLE) {
#if defined(__AVX512F__)
        if (bits > 4)
            return (vec)_mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)codes,
                                               _mm512_loadu_ps(table + 16));
        return (vec)_mm512_permutexvar_ps((__m512i)codes, _mm512_loadu_ps(table));
#elif AVX2_CODES
        const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)codes);
        const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)codes);
        const __m256i upper = _mm256_slli_epi32((__m256i)codes, 28); /* its sign: code >= 8 */
        return (vec)_mm256_blendv_ps(low, high, (__m256)upper);
#else
        vec values;
        for (int i = 0; i < LANES; i++) values[i] = table[code[i]];
        return values;
#endif
    }
    return __builtin_convertvector(code, vec) - zero;
}

/* [inputs][width] float32 of the codes. */
INLINE void unpack(const int bits, const int kind, piece p, const char *zeros, const float *table,
                   float *to) {
    for (int64_t v = 0; v < p.width; v += LANES) {
        const vec zero = (vec)zeros_at(bits, 0, zeros, v);
        for (int64_t i = 0; i < p.inputs; i += SIXTEEN) {
            const sixteen codes = read_piece(bits, p, i, v);
#pragma GCC unroll 16
            for (int at = 0; at < SIXTEEN; at++)
                *(vec *)(to + (i + at) * p.width + v) = value_of(
                    bits, kind, codes_of(bits, &codes, at / 4, at % 4, 1), zero, table);
        }
    }
}

/* sums += the products of SIXTEEN inputs of one row. */
INLINE vec add_sixteen(const int bits, const int kind, const int paired, const sixteen *codes,
                       uvec zeros, const tables *t, const char *x, vec sums) {
#if BF16_CODES
    if (paired) {
#pragma GCC unroll 8
        for (int at = 0; at < SIXTEEN / 2; at++) {
            const uvec pair = pair_of(bits, codes, at);
            sums = add_pair(sums, x + at * 4, paired_values(bits, kind, pair, zeros, t->pairs));
        }
        return sums;
    }
#endif
    (void)paired;
#pragma GCC unroll 16
    for (int at = 0; at < SIXTEEN; at++) {
        const uvec code = codes_of(bits, codes, at / 4, at % 4, 1);
        const vec value = value_of(bits, kind, code, (vec)zeros, t->floats);
        sums = fused(((const float *)(const void *)x)[at] - (vec){0}, value, sums);
    }
    return sums;
}

/* A whole panel times one row: the same products in the same order as of unpacked codes, without
 * these. */
INLINE void multiply_row(const int bits, const int kind, const int paired, const weight *w,
                         const tables *t, const char *x, const char *panel, float *out) {
    const int64_t k = padded_inputs(w->k), size = group_of(w), span = span_of(w);
    const int64_t stretch = stretch_of(w), x_size = paired ? 2 : 4;
    const float *totals = (const float *)(const void *)(x + k * x_size);
    factors shared __attribute__((aligned(64)));
    vec made[VECTORS], added[VECTORS];
    int64_t kept = 0;
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) made[v] = (vec){0}, added[v] = (vec){0};
    for (int64_t first = 0; first < k; first += stretch) {
        const int64_t end = least(first + stretch, k);
        if (w->block) panel = read_factors(w, panel, first, PANEL, &shared);
        const piece p = {panel, 0, 0, PANEL};
        panel += (end - first) / CHUNK * chunk_bytes(bits, PANEL);
        for (int64_t begin = first; begin < end; begin += size) {
            const int64_t group_end = least(begin + size, end);
            const char *behind = panel + PANEL * scale_bytes(w), *own = w->zeros ? behind : NULL;
            vec scales[VECTORS];
            uvec zeros[VECTORS];
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) {
                scales[v] = scales_at(w, panel, v * LANES, shared.of_scales);
                zeros[v] = zeros_at(bits, paired, own, v * LANES);
            }
            for (int64_t at = begin; at < group_end; at += span) {
                const int64_t span_end = least(at + span, group_end);
                vec sums[VECTORS];
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++) sums[v] = (vec){0};
                for (int64_t i = at; i < span_end; i += SIXTEEN) {
#pragma GCC unroll 3
                    for (int v = 0; v < VECTORS; v++) {
                        const sixteen codes = read_piece(bits, p, i - first, v * LANES);
                        sums[v] = add_sixteen(bits, kind, paired, &codes, zeros[v], t,
                                              x + i * x_size, sums[v]);
                    }
                }
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++) made[v] = fused(sums[v], scales[v], made[v]);
            }
            if (w->minimums) {
                const vec total = totals[begin / size] - (vec){0};
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++)
                    added[v] = fused(
                        total, minimums_at(w, behind, v * LANES, shared.of_minimums, scales[v]),
                        added[v]);
                kept += 1;
                if (kept == TOGETHER || group_end == k) {
#pragma GCC unroll 3
                    for (int v = 0; v < VECTORS; v++) made[v] += added[v], added[v] = (vec){0};
                    kept = 0;
                }
            }
            panel += PANEL * group_bytes(w);
        }
    }
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) *(vec *)(out + v * LANES) = made[v];
}

/* A whole panel times one row, or the numbers of a span. */
typedef struct {
    const weight *w;
    const tables *t;
    const char *x, *panel; /* x is NULL for a span */
    piece span;
    const char *zeros; /* of the span's group, or NULL */
    float *to;
} taking;

INLINE void take(const int bits, const int kind, const int paired, const taking *j) {
    if (j->x) {
        multiply_row(bits, kind, paired, j->w, j->t, j->x, j->panel, j->to);
        return;
    }
#if BF16_CODES
    if (paired) {
        unpack_pairs(bits, kind, j->span, j->zeros, j->t->pairs, (char *)j->to);
        return;
    }
#endif
    unpack(bits, kind, j->span, j->zeros, j->t->floats, j->to);
}

INLINE void take_any(const int paired, const taking *j) {
    const int tabled = paired ? 6 : TABLED, kind = (int)j->w->kind, bits = (int)j->w->bits;
    if (kind == CODE_TABLE || (bits == 4 && !j->w->zeros && tabled)) {
        take(4, CODE_TABLE, paired, j);
    } else if (kind == CODE_E4M3) {
        take(8, CODE_E4M3, paired, j);
    } else {
        switch (bits) {
#define BITS(n, kind_of)                 \
    case n:                              \
        take(n, kind_of, paired, j);     \
        break;
#define TABLED_BITS(n) BITS(n, n <= tabled ? CODE_TABLE : CODE_MINUS_ZERO)
            TABLED_BITS(2) TABLED_BITS(3) TABLED_BITS(5) TABLED_BITS(6)
            BITS(4, CODE_MINUS_ZERO) BITS(8, CODE_MINUS_ZERO)
#undef TABLED_BITS
#undef BITS
        }
    }
}

static void take_floats(const taking *j) { take_any(0, j); }

#if BF16_CODES
static void take_pairs(const taking *j) { take_any(1, j); }
#else
#define take_pairs take_floats
#endif

/* A panel of `width` columns times m rows, [m][PANEL]. */
static void multiply_unpacked(const weight *w, const tables *t, const char *x, int64_t x_stride,
                              int64_t m, const char *panel, int64_t width, float (*out)[PANEL],
                              fetch next) {
    const int64_t k = padded_inputs(w->k), size = group_of(w), span = span_of(w);
    const int64_t tiles = ceil_div(m, ROWS), x_size = is_paired(w) ? 2 : 4;
    const int64_t stretch = stretch_of(w);
    if (m == 1 && width == PANEL) { /* what it reads, in its order, the processor fetches by itself */
        const taking job = {.w = w, .t = t, .x = x, .panel = panel, .to = *out};
        (is_paired(w) ? take_pairs : take_floats)(&job);
        return;
    }
    float values[SPAN * PANEL] __attribute__((aligned(64)));
    float minimums[TOGETHER * PANEL] __attribute__((aligned(64)));
    float scales[PANEL] __attribute__((aligned(64))), ones[PANEL] __attribute__((aligned(64)));
    factors shared __attribute__((aligned(64)));
    int64_t kept = 0; /* groups whose minimums are not added yet */
    for (int64_t c = 0; c < PANEL; c++) ones[c] = 1.0f;
    memset(out, 0, (size_t)m * sizeof *out);
    for (int64_t first = 0; first < k; first += stretch) {
        const int64_t end = least(first + stretch, k);
        panel = read_factors(w, panel, first, width, &shared);
        const char *codes = panel;
        panel += (end - first) / CHUNK * chunk_bytes(w->bits, width);
        for (int64_t begin = first; begin < end; begin += size) {
            const int64_t group_end = least(begin + size, end);
            const char *behind = panel + width * scale_bytes(w);
            for (int64_t v = 0; v < width; v += LANES)
                *(vec *)(scales + v) = scales_at(w, panel, v, shared.of_scales);
            for (int64_t at = begin; at < group_end; at += span) {
                const int64_t inputs = least(span, group_end - at);
                const int64_t steps = steps_of(inputs, is_paired(w)), bursts = ceil_div(steps, STEP);
                const int64_t lines = next.lines * inputs / CHUNK;
                fetch share = {next.from, ceil_div(lines, tiles * bursts)};
                next.from += lines * 64;
                const taking job = {.w = w, .t = t, .span = {codes, at - first, inputs, width},
                                    .zeros = w->zeros ? behind : NULL, .to = values};
                (is_paired(w) ? take_pairs : take_floats)(&job);
                for (int64_t i = 0; i < tiles; i++) {
                    const int64_t row = first_of_tile(m, tiles, i);
                    const int64_t rows = first_of_tile(m, tiles, i + 1) - row;
                    const char *from = x + row * x_stride + at * x_size;
                    (is_paired(w) ? run_bf16 : run_float)(rows, width / LANES, from, x_stride,
                                                          (const char *)values, steps, scales,
                                                          out + row, share);
                    share.from += bursts * share.lines * 64;
                }
            }
            if (w->minimums) {
                for (int64_t v = 0; v < width; v += LANES)
                    *(vec *)(minimums + kept * width + v) = minimums_at(
                        w, behind, v, shared.of_minimums, *(const vec *)(scales + v));
                kept += 1;
                if (kept == TOGETHER || group_end == k) {
                    const char *totals = x + k * x_size + (begin / size + 1 - kept) * 4;
                    for (int64_t i = 0; i < tiles; i++) {
                        const int64_t row = first_of_tile(m, tiles, i);
                        const int64_t rows = first_of_tile(m, tiles, i + 1) - row;
                        run_float(rows, width / LANES, totals + row * x_stride, x_stride,
                                  (const char *)minimums, kept, ones, out + row,
                                  (fetch){NULL, 0});
                    }
                    kept = 0;
                }
            }
            panel += width * group_bytes(w);
        }
    }
}
