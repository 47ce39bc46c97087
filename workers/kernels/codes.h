// Weights as codes of 4, 5 or 8 bits, times activations rounded to int8.
//
// A weight stands for (code - zero) * scale, with a scale for each `group` of inputs of a column and
// a zero of half of all codes, or one for each group too; or for code * scale + minimum. How
// activations are rounded is in inputs.h. A row's result depends on it alone.
// Products are summed in int32 and therefore exact, and the parts' sums in float32, in their order.
#pragma once
#include "inputs.h"
#include "panels.h"
#include "scales.h"

// Prefetches are spread over the tiles that use a panel: each fetches its share of the next one.
typedef struct {
    const char *from;
    int64_t lines;  // to fetch with each STEP steps along k, or each CHUNK of codes
} fetch;

/* What the sums of a group begin with: -zero * the sum of the activations' codes. */
static __attribute__((noinline)) void begin_sums(const weight *w, const char *zeros, int64_t rows,
                                                 int64_t width, const int32_t *sums_of,
                                                 int32_t (*sums)[PANEL]) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++)
            sums[r][c] = ((w->bits == 8 ? FLIP : 0) - (uint8_t)zeros[c]) * sums_of[r];
}

/* Scales times the factors that groups share, and minimums. */
static __attribute__((noinline)) void read_more(const weight *w, const char *group, int64_t column,
                                                int64_t vectors, int64_t width,
                                                const factors *shared, float *scales,
                                                float *minimums) {
    const char *behind = group + width * scale_bytes(w);
    for (int64_t c = 0; c < vectors * LANES; c += LANES) {
        *(vec *)(scales + c) = scales_at(w, group, column + c, shared->of_scales);
        if (w->minimums)
            *(vec *)(minimums + c) = scales_at(w, behind, column + c, shared->of_minimums);
    }
}

#if VNNI_CODES
/* Kept in a register: the compiler would load it again for each row, which takes longer than to
 * multiply with it. */
INLINE uvec once(uvec x) {
    __asm__("" : "+v"(x));
    return x;
}
#else
INLINE uvec once(uvec x) { return x; }
#endif

#if AVX2_CODES
/* Loaded anew for each column: kept in registers for all, they would push the sums out. */
INLINE __m256i four_inputs(const int8_t *x) {
    __m256i four;
    __asm__ volatile("vpbroadcastd %1, %0" : "=x"(four) : "m"(*(const int8_t(*)[4])x));
    return four;
}

/* CHUNK inputs of some columns of a panel, which is `width` wide, times those of a tile's rows. */
INLINE void multiply_chunk(const int rows, const int vectors, const int bits, const int8_t *x,
                           const char *panel, int64_t width, ivec sums[CODE_ROWS][VECTORS]) {
    const __m256i ones = _mm256_set1_epi16(1), lower = _mm256_set1_epi8(15);
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        if (bits < 8) {
            __m256i narrow[CODE_ROWS]; /* 8 times 2 products of 15 * 127 fit, or 4 of 31 * 127 */
            __m256i last = _mm256_setzero_si256(); /* the fifth bits of all 32 inputs */
            const char *lasts = panel + (4 * width + v * LANES) * 4;
            if (bits == 5) last = _mm256_loadu_si256((const void *)lasts);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) narrow[r] = _mm256_setzero_si256();
#pragma GCC unroll 2
            for (int at = 0; at < CHUNK / 8; at++) {
                const char *from = panel + (at * width + v * LANES) * 4;
                const __m256i pairs = _mm256_loadu_si256((const void *)from);
                __m256i first = _mm256_and_si256(pairs, lower);
                __m256i second = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), lower);
                if (bits == 5) {
                    const __m256i bit = _mm256_set1_epi8(16);
                    const __m256i low = _mm256_slli_epi16(_mm256_srli_epi16(last, 2 * at), 4);
                    const __m256i high = _mm256_slli_epi16(_mm256_srli_epi16(last, 2 * at + 1), 4);
                    first = _mm256_or_si256(first, _mm256_and_si256(low, bit));
                    second = _mm256_or_si256(second, _mm256_and_si256(high, bit));
                    if (at == 2) {
#pragma GCC unroll 4
                        for (int r = 0; r < rows; r++) {
                            sums[r][v] += (ivec)_mm256_madd_epi16(narrow[r], ones);
                            narrow[r] = _mm256_setzero_si256();
                        }
                    }
                }
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    const int8_t *row = x + (2 * at * rows + r) * 4;
                    const __m256i a = _mm256_maddubs_epi16(first, four_inputs(row));
                    const __m256i b = _mm256_maddubs_epi16(second, four_inputs(row + rows * 4));
                    narrow[r] = _mm256_add_epi16(narrow[r], _mm256_add_epi16(a, b));
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                sums[r][v] += (ivec)_mm256_madd_epi16(narrow[r], ones);
        } else {
            for (int at = 0; at < CHUNK / 4; at++) {
                const char *from = panel + (at * width + v * LANES) * 4;
                const __m256i codes = _mm256_loadu_si256((const void *)from);
                const __m256i sizes = _mm256_abs_epi8(codes); /* of -128 it is 128, unsigned */
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    const __m256i signs =
                        _mm256_sign_epi8(four_inputs(x + (at * rows + r) * 4), codes);
                    /* 2 * 128 * 127 fits into 16 bits */
                    const __m256i two = _mm256_maddubs_epi16(sizes, signs);
                    sums[r][v] += (ivec)_mm256_madd_epi16(two, ones);
                }
            }
        }
    }
}
#else
/* sums + four codes without a sign a column times four inputs. */
INLINE ivec dot(ivec sums, uvec codes, uvec four) {
#if VNNI_CODES
    return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)four);
#else
    for (int i = 0; i < 4; i++)
        sums += (ivec)((codes >> (8 * i)) & 255) * ((ivec)(four << (24 - 8 * i)) >> 24);
    return sums;
#endif
}

INLINE void multiply_four(const int rows, const int vectors, const uvec *codes, const int8_t *x,
                          ivec sums[CODE_ROWS][VECTORS]) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        uint32_t given;
        memcpy(&given, x + r * 4, 4);
        const uvec four = once(given - (uvec){0});
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) sums[r][v] = dot(sums[r][v], codes[v], four);
    }
}

INLINE void multiply_chunk(const int rows, const int vectors, const int bits, const int8_t *x,
                           const char *panel, int64_t width, ivec sums[CODE_ROWS][VECTORS]) {
    const int64_t inputs = bits < 8 ? 8 : 4;
    const uvec *last = (const uvec *)(const void *)(panel + 4 * width * 4); /* fifth bits */
    for (int64_t at = 0; at < CHUNK / inputs; at++) {
        const uvec *from = (const uvec *)(const void *)(panel + at * width * 4);
        uvec codes[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            codes[v] = from[v] & (bits < 8 ? 0x0f0f0f0fu : ~0u);
            if (bits == 5) codes[v] |= (last[v] >> (uint32_t)(2 * at) & 0x01010101u) << 4;
            codes[v] = once(codes[v]);
        }
        multiply_four(rows, vectors, codes, x, sums);
        x += rows * 4;
        if (bits == 8) continue;
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            codes[v] = (from[v] >> 4) & 0x0f0f0f0fu;
            if (bits == 5) codes[v] |= (last[v] >> (uint32_t)(2 * at + 1) & 0x01010101u) << 4;
            codes[v] = once(codes[v]);
        }
        multiply_four(rows, vectors, codes, x, sums);
        x += rows * 4;
    }
}
#endif

/* `vectors` * LANES columns of a panel, from `column` on, times a tile's `rows` rows from `row` on.
 * `more` says whether groups may have more than scales that are numbers. */
INLINE void codes_tile(const int rows, const int vectors, const int bits, const int more,
                       const weight *w, const inputs *x, int64_t row, const char *panel, int64_t width,
                       int64_t column, float (*out)[PANEL], fetch next) {
    const int64_t size = group_of(w), bytes = chunk_bytes(bits, width);
    const int8_t *codes = x->codes + row * x->k;
    const int32_t *begun = x->sums + row * x->parts;
    const float *x_scales = x->scales + row * x->parts;
    const int one_group = size >= x->k && !(more && w->minimums); /* its scales multiply the whole sum */
    float scales[PANEL] __attribute__((aligned(64))), minimums[PANEL] __attribute__((aligned(64)));
    factors shared __attribute__((aligned(64)));
    vec made[CODE_ROWS][VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) made[r][v] = (vec){0};
    for (int64_t first = 0; first < x->k; first += size) {
        const int64_t end = least(first + size, x->k);
        if (more && w->block) panel = read_factors(w, panel, first, width, &shared);
        const char *group_scales = panel + (end - first) / CHUNK * bytes;
        const char *zeros = group_scales + width * scale_bytes(w);
        for (int64_t c = 0; c < vectors * LANES; c += LANES)
            *(vec *)(scales + c) = load_scales(group_scales, column + c, w->scale_type);
        if (more && (w->minimums || w->block))
            read_more(w, group_scales, column, vectors, width, &shared, scales, minimums);
        for (int64_t begin = first; begin < end; begin += x->part) {
            const int64_t last = least(begin + x->part, end);
            ivec sums[CODE_ROWS][VECTORS];
            if (more && w->zeros) {
                int32_t less[CODE_ROWS][PANEL] __attribute__((aligned(64)));
                begin_sums(w, zeros + column, rows, vectors * LANES, begun, less);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
                    for (int v = 0; v < vectors; v++)
                        sums[r][v] = *(const ivec *)&less[r][v * LANES];
            } else {
                const int32_t times = !(more && w->minimums) ? 1 : bits == 8 ? FLIP : 0;
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
                    for (int v = 0; v < vectors; v++) sums[r][v] = times * begun[r] - (ivec){0};
            }
            for (int64_t at = begin; at < last; at += CHUNK) {
                for (int64_t line = 0; line < next.lines; line++) {
                    __builtin_prefetch(next.from, 0, 2);
                    next.from += 64;
                }
                multiply_chunk(rows, vectors, bits, codes, panel + column * 4, width, sums);
                codes += rows * CHUNK;
                panel += bytes;
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const vec given = (vec)once((uvec)(x_scales[r] - (vec){0}));
#pragma GCC unroll 3
                for (int v = 0; v < vectors; v++) {
                    const vec sum = __builtin_convertvector(sums[r][v], vec);
                    vec scale = given;
                    if (!one_group) scale *= *(const vec *)(scales + v * LANES);
                    made[r][v] = fused(sum, scale, made[r][v]);
                }
            }
            for (int r = 0; more && w->minimums && r < rows; r++) {
                const vec given = x_scales[r] * (float)begun[r] - (vec){0};
#pragma GCC unroll 3
                for (int v = 0; v < vectors; v++)
                    made[r][v] = fused(given, *(const vec *)(minimums + v * LANES), made[r][v]);
            }
            begun += rows;
            x_scales += rows;
        }
        panel = group_scales + width * group_bytes(w);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            if (one_group) made[r][v] *= *(const vec *)(scales + v * LANES);
            *(vec *)(out[r] + column + v * LANES) = made[r][v];
        }
}
