// Weights as codes of 4 or 8 bits, times activations as they are.
//
// The codes of SPAN inputs of a panel become float32 once for all rows of a unit. Their scales
// multiply the sums of a span (a group is a whole number of spans, or a span a whole group), so that
// codes are exact; the spans' sums are added in their order. A row's result depends on it alone.
#pragma once
#include "codes.h"

#define SPAN 128

INLINE int64_t span_of(const weight *w) { return least(group_of(w), SPAN); }

/* Codes of a byte or half a byte each, in the lanes' lowest bits -> what they stand for. */
INLINE vec value_of(const int kind, ivec code, vec zero, const float *table) {
    if (kind == CODE_E4M3) {
        /* The bits of a float32 whose exponent is that of the code: a factor corrects the bias. */
        const uvec magnitude = (uvec)(code & 127) << 20, sign = (uvec)(code & 128) << 24;
        return (vec)((uvec)((vec)magnitude * 0x1p120f) | sign);
    }
    if (kind == CODE_TABLE) {
#if defined(__AVX512F__)
        return (vec)_mm512_permutexvar_ps((__m512i)code, _mm512_loadu_ps(table));
#elif AVX2_CODES
        const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)code);
        const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)code);
        const __m256i upper = _mm256_slli_epi32((__m256i)code, 28); /* its sign: code >= 8 */
        return (vec)_mm256_blendv_ps(low, high, (__m256)upper);
#else
        vec values;
        for (int i = 0; i < LANES; i++) values[i] = table[code[i]];
        return values;
#endif
    }
    return __builtin_convertvector(code, vec) - zero;
}

/* [inputs][width] float32 of the codes of `inputs` inputs. */
INLINE void unpack(const int bits, const int kind, const weight *w, const char *from,
                   int64_t inputs, int64_t width, const float *zeros, float *to) {
    const int64_t step = bits == 4 ? 8 : 4;
    for (int64_t v = 0; v < width; v += LANES) {
        const vec zero = *(const vec *)(zeros + v);
        for (int64_t i = 0; i < inputs; i += step) {
            const uvec codes = *(const uvec *)(const void *)(from + (i * width / step + v) * 4);
#pragma GCC unroll 8
            for (int64_t at = 0; at < step; at++) {
                const int shift = (int)(bits == 4 ? at % 4 * 8 + at / 4 * 4 : at * 8);
                const ivec code = (ivec)((codes >> shift) & (bits == 4 ? 15u : 255u));
                *(vec *)(to + (i + at) * width + v) = value_of(kind, code, zero, w->table);
            }
        }
    }
}

/* sums[0] of one row: the same products in the same order as of unpacked codes, without these. */
INLINE void multiply_codes(const int vectors, const int bits, const int kind, const weight *w,
                           const char *from, int64_t inputs, int64_t width, const float *zeros,
                           const float *x, float *sums) {
    const int64_t step = bits == 4 ? 8 : 4;
    vec made[VECTORS], zero[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++)
        made[v] = (vec){0}, zero[v] = *(const vec *)(zeros + v * LANES);
    for (int64_t i = 0; i < inputs; i += step) {
        uvec codes[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++)
            codes[v] = *(const uvec *)(const void *)(from + (i * width / step + v * LANES) * 4);
#pragma GCC unroll 8
        for (int64_t at = 0; at < step; at++) {
            const int shift = (int)(bits == 4 ? at % 4 * 8 + at / 4 * 4 : at * 8);
            const vec given = x[i + at] - (vec){0};
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) {
                const ivec code = (ivec)((codes[v] >> shift) & (bits == 4 ? 15u : 255u));
                made[v] = fused(given, value_of(kind, code, zero[v], w->table), made[v]);
            }
        }
    }
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) *(vec *)(sums + v * LANES) = made[v];
}

/* Unpack the codes of a span to `to`, or with one row of activations `x` multiply them: `to` is the
 * sums then. */
INLINE void take_span(const int bits, const int kind, const weight *w, const char *from,
                      int64_t inputs, int64_t width, const float *zeros, const float *x, float *to) {
    if (!x) {
        unpack(bits, kind, w, from, inputs, width, zeros, to);
    } else if (width == PANEL) {
        multiply_codes(VECTORS, bits, kind, w, from, inputs, width, zeros, x, to);
    } else {
        for (int64_t c = 0; c < width; c += LANES)
            multiply_codes(1, bits, kind, w, from + c * 4, inputs, width, zeros + c, x, to + c);
    }
}

static void run_span(const weight *w, const char *from, int64_t inputs, int64_t width,
                     const float *zeros, const float *x, float *to) {
    if (w->bits == 4) {
        if (w->kind == CODE_TABLE)
            take_span(4, CODE_TABLE, w, from, inputs, width, zeros, x, to);
        else
            take_span(4, CODE_MINUS_ZERO, w, from, inputs, width, zeros, x, to);
    } else if (w->kind == CODE_E4M3) {
        take_span(8, CODE_E4M3, w, from, inputs, width, zeros, x, to);
    } else {
        take_span(8, CODE_MINUS_ZERO, w, from, inputs, width, zeros, x, to);
    }
}

static void read_zeros(const weight *w, const char *from, int64_t width, float *zeros) {
    for (int64_t c = 0; c < width; c++)
        zeros[c] = w->zeros ? (float)(uint8_t)from[c] : (float)(1 << (w->bits - 1));
}

/* A panel of `width` columns times m rows of float32, [m][PANEL]. */
static void multiply_unpacked(const weight *w, const float *x, int64_t x_stride, int64_t m,
                              const char *panel, int64_t width, float (*out)[PANEL], fetch next) {
    const int64_t k = padded_inputs(w->k), size = group_of(w), span = span_of(w);
    const int64_t tiles = ceil_div(m, ROWS);
    float values[SPAN * PANEL] __attribute__((aligned(64)));
    float group_scales[PANEL] __attribute__((aligned(64)));
    float zeros[PANEL] __attribute__((aligned(64))), sums[ROWS][PANEL] __attribute__((aligned(64)));
    memset(out, 0, (size_t)m * sizeof *out);
    for (int64_t first = 0; first < k; first += size) {
        const int64_t end = least(first + size, k);
        const char *scales = panel + (end - first) * width * w->bits / 8;
        const char *group_zeros = scales + width * scale_bytes(w);
        read_scales(w, scales, width, group_scales);
        read_zeros(w, group_zeros, width, zeros);
        for (int64_t at = first; at < end; at += span) {
            const int64_t inputs = least(span, end - at);
            for (int64_t line = 0; line < next.lines * inputs / CHUNK; line++) {
                __builtin_prefetch(next.from, 0, 2);
                next.from += 64;
            }
            run_span(w, panel, inputs, width, zeros, m == 1 ? x + at : NULL,
                     m == 1 ? sums[0] : values);
            panel += inputs * width * w->bits / 8;
            for (int64_t i = 0; i < tiles; i++) {
                const int64_t row = first_of_tile(m, tiles, i), rows = first_of_tile(m, tiles, i + 1) - row;
                if (m > 1)
                    run_float(rows, width / LANES, (const char *)(x + row * x_stride + at),
                              x_stride * 4, (const char *)values, inputs, sums, (fetch){NULL, 0});
                for (int64_t v = 0; v < width; v += LANES) {
                    const vec scale = *(const vec *)(group_scales + v);
                    for (int64_t r = 0; r < rows; r++) {
                        vec *to = (vec *)(out[row + r] + v);
                        *to = fused(*(const vec *)(sums[r] + v), scale, *to);
                    }
                }
            }
        }
        panel = group_zeros + (w->zeros ? width : 0);
    }
}
