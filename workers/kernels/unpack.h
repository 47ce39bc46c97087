// Weights as codes of 4 or 8 bits, times activations as they are.
//
// The codes of SPAN inputs of a panel become numbers once for all rows of a unit: float32, or where the
// processor multiplies bfloat16 and the model is in it, bfloat16, which has room for a code less its
// zero. Their scales multiply the sums of a span (a group is a whole number of spans, or a span a whole
// group), so that codes are exact; the spans' sums are added in their order. A row's result depends on
// it alone.
#pragma once
#include "codes.h"

#define SPAN 128 /* inputs, in float32 */

INLINE int64_t span_of(const weight *w) {
    return least(group_of(w), is_paired(w) ? 2 * SPAN : SPAN);
}

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

#if BF16_CODES
/* Two inputs' codes a column -> bfloat16, but for those of a table less their zeros. `codes` has them
 * in its lowest bits and 16 bits above, and `zeros` as `read_zeros` makes them. */
INLINE __m512bh paired_values(const int bits, const int kind, uvec codes, uvec zeros,
                              const uint16_t *table) {
    const uvec kept = codes & (bits == 4 ? 0x000f000fu : kind == CODE_E4M3 ? 0x007f007fu : 0x00ff00ffu);
    if (kind == CODE_E4M3) {
        /* The bits of bfloat16, whose exponent has a bias of 127, not 7; denormal numbers have not. */
        const __m512i magnitude = (__m512i)kept;
        const __m512i normal =
            _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
        const __mmask32 is_denormal = _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8));
        const __m512i made = _mm512_mask_permutexvar_epi16(normal, is_denormal, magnitude,
                                                           _mm512_loadu_si512(table));
        return (__m512bh)((uvec)made | ((codes << 8) & 0x80008000u));
    }
    if (kind == CODE_TABLE)
        return (__m512bh)_mm512_permutexvar_epi16((__m512i)kept, _mm512_loadu_si512(table));
    if (bits == 4) { /* -15 to 15: what counts of a place in the table are five bits */
        const __m512i less = _mm512_sub_epi16((__m512i)kept, (__m512i)zeros);
        return (__m512bh)_mm512_permutexvar_epi16(less, _mm512_loadu_si512(table));
    }
    /* With a code in its lowest bits, 2^23 is larger by it. */
    const vec low = (vec)((codes & 255u) | 0x4b000000u) - (vec)zeros;
    const vec high = (vec)(((codes >> 16) & 255u) | 0x4b000000u) - (vec)zeros;
    return (__m512bh)_mm512_mask_mov_epi16((__m512i)high, 0x55555555,
                                           _mm512_srli_epi32((__m512i)low, 16));
}

/* What `paired_values` looks up: 32 bfloat16. */
static void paired_table(const weight *w, uint16_t *table) {
    for (int i = 0; i < 32; i++) {
        const int number = i < 16 ? i : i - 32; /* of five bits */
        table[i] = rounded(w->kind == CODE_TABLE   ? w->table[i % 16]
                           : w->kind == CODE_E4M3 ? (float)(i % 8) * 0x1p-9f
                                                   : (float)number);
    }
}

/* Codes of inputs of a column, so moved that those of pair `at` can be read. */
INLINE uvec pair_at(int at, uvec codes) { return codes >> (at % 2 * 8 + at / 2 * 4); }

/* [inputs / 2][width][2] bfloat16 of the codes of `inputs` inputs. */
INLINE void unpack_pairs(const int bits, const int kind, const char *from, int64_t inputs,
                         int64_t width, const uvec *zeros, const uint16_t *table, char *to) {
    const int64_t step = bits == 4 ? 8 : 4;
    for (int64_t i = 0; i < inputs; i += step) {
        for (int64_t v = 0; v < width / LANES; v++) {
            const uvec codes = *(const uvec *)(const void *)(from + (i * width / step + v * LANES) * 4);
#pragma GCC unroll 4
            for (int at = 0; at < step / 2; at++) {
                const __m512bh made = paired_values(bits, kind, pair_at(at, codes), zeros[v], table);
                _mm512_storeu_si512(to + ((i / 2 + at) * width + v * LANES) * 4, (__m512i)made);
            }
        }
    }
}

/* The sums of one row: the same products in the same order as of unpacked pairs, without these. */
INLINE void multiply_pairs(const int vectors, const int bits, const int kind, const char *from,
                           int64_t inputs, int64_t width, const uvec *zeros, const uint16_t *table,
                           const char *x, float *sums) {
    const int64_t step = bits == 4 ? 8 : 4;
    __m512 made[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) made[v] = _mm512_setzero_ps();
    for (int64_t i = 0; i < inputs; i += step) {
        uvec codes[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++)
            codes[v] = *(const uvec *)(const void *)(from + (i * width / step + v * LANES) * 4);
#pragma GCC unroll 4
        for (int at = 0; at < step / 2; at++) {
            int32_t two;
            memcpy(&two, x + (i + at * 2) * 2, 4);
            const __m512bh given = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) {
                const __m512bh values =
                    paired_values(bits, kind, pair_at(at, codes[v]), zeros[v], table);
                made[v] = _mm512_dpbf16_ps(made[v], given, values);
            }
        }
    }
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) _mm512_storeu_ps(sums + v * LANES, made[v]);
}

/* Unpack the codes of a span to `to`, or with one row of activations `x` multiply them: `to` is the
 * sums then. */
INLINE void take_pairs(const int bits, const int kind, const char *from, int64_t inputs,
                       int64_t width, const uvec *zeros, const uint16_t *table, const char *x,
                       char *to) {
    float *sums = (float *)(void *)to;
    if (!x) {
        unpack_pairs(bits, kind, from, inputs, width, zeros, table, to);
    } else if (width == PANEL) {
        multiply_pairs(VECTORS, bits, kind, from, inputs, width, zeros, table, x, sums);
    } else {
        for (int64_t v = 0; v < width / LANES; v++)
            multiply_pairs(1, bits, kind, from + v * LANES * 4, inputs, width, zeros + v, table, x,
                           sums + v * LANES);
    }
}

static void run_pairs(const weight *w, const char *from, int64_t inputs, int64_t width,
                      const uvec *zeros, const uint16_t *table, const char *x, char *to) {
    if (w->bits == 4) {
        if (w->kind == CODE_TABLE)
            take_pairs(4, CODE_TABLE, from, inputs, width, zeros, table, x, to);
        else
            take_pairs(4, CODE_MINUS_ZERO, from, inputs, width, zeros, table, x, to);
    } else if (w->kind == CODE_E4M3) {
        take_pairs(8, CODE_E4M3, from, inputs, width, zeros, table, x, to);
    } else {
        take_pairs(8, CODE_MINUS_ZERO, from, inputs, width, zeros, table, x, to);
    }
}
#endif

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

/* Of each column: float32, or what `paired_values` needs, which is 2^23 more for 8 bits, and for 4 two
 * numbers of 16 bits. */
static void read_zeros(const weight *w, const char *from, int64_t width, uint32_t *zeros) {
    for (int64_t c = 0; c < width; c++) {
        const uint32_t zero = w->zeros ? (uint8_t)from[c] : 1u << (w->bits - 1);
        const float number = (float)zero + (is_paired(w) ? 0x1p23f : 0.0f);
        if (is_paired(w) && w->bits == 4)
            zeros[c] = zero * 0x10001u;
        else
            memcpy(zeros + c, &number, 4);
    }
}

/* A panel of `width` columns times m rows, [m][PANEL]. */
static void multiply_unpacked(const weight *w, const char *x, int64_t x_stride, int64_t m,
                              const char *panel, int64_t width, float (*out)[PANEL], fetch next) {
    const int64_t k = padded_inputs(w->k), size = group_of(w), span = span_of(w);
    const int64_t tiles = ceil_div(m, ROWS), x_size = is_paired(w) ? 2 : 4;
    float values[SPAN * PANEL] __attribute__((aligned(64)));
    float group_scales[PANEL] __attribute__((aligned(64)));
    uint32_t zeros[PANEL] __attribute__((aligned(64)));
    float sums[ROWS][PANEL] __attribute__((aligned(64)));
#if BF16_CODES
    uint16_t table[32] __attribute__((aligned(64)));
    paired_table(w, table);
#endif
    memset(out, 0, (size_t)m * sizeof *out);
    for (int64_t first = 0; first < k; first += size) {
        const int64_t end = least(first + size, k);
        const char *scales = panel + (end - first) * width * w->bits / 8;
        const char *group_zeros = scales + width * scale_bytes(w);
        read_scales(w, scales, width, group_scales);
        read_zeros(w, group_zeros, width, zeros);
        for (int64_t at = first; at < end; at += span) {
            const int64_t inputs = least(span, end - at);
            const int64_t steps = steps_of(inputs, is_paired(w)), bursts = ceil_div(steps, STEP);
            /* What one row reads, in its order, the processor fetches by itself. */
            const int64_t lines = next.lines * inputs / CHUNK;
            fetch share = {next.from, m > 1 ? ceil_div(lines, tiles * bursts) : 0};
            next.from += lines * 64;
            const char *alone = m == 1 ? x + at * x_size : NULL;
            float *to = m == 1 ? sums[0] : values;
#if BF16_CODES
            if (is_paired(w))
                run_pairs(w, panel, inputs, width, (const uvec *)zeros, table, alone, (char *)to);
            else
#endif
                run_span(w, panel, inputs, width, (const float *)(const void *)zeros,
                         (const float *)(const void *)alone, to);
            panel += inputs * width * w->bits / 8;
            for (int64_t i = 0; i < tiles; i++) {
                const int64_t row = first_of_tile(m, tiles, i);
                const int64_t rows = first_of_tile(m, tiles, i + 1) - row;
                const char *from = x + row * x_stride + at * x_size;
                if (m > 1)
                    (is_paired(w) ? run_bf16 : run_float)(
                        rows, width / LANES, from, x_stride, (const char *)values,
                        steps, sums, share);
                share.from += bursts * share.lines * 64;
                for (int64_t v = 0; v < width; v += LANES) {
                    const vec scale = *(const vec *)(group_scales + v);
                    for (int64_t r = 0; r < rows; r++) {
                        vec *sum = (vec *)(out[row + r] + v);
                        *sum = fused(*(const vec *)(sums[r] + v), scale, *sum);
                    }
                }
            }
        }
        panel = group_zeros + (w->zeros ? width : 0);
    }
}
