// What the groups of a panel of codes have beside these: scales, zeros, minimums.
//
// A number of a group is a float, or of SCALE_INT8 a small integer times a factor that several groups
// share.
#pragma once
#include "panels.h"

INLINE float half_float(uint16_t x) {
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, magnitude = (uint32_t)(x & 0x7fff) << 13;
    uint32_t bits = magnitude;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f; /* from a bias of 15 to one of 127; right for denormal numbers too */
    if (magnitude >= 0x0f800000) bits = magnitude | 0x7f800000, memcpy(&value, &bits, 4);
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

typedef int8_t small __attribute__((vector_size(LANES), aligned(1), may_alias));

/* The numbers of LANES columns. */
INLINE vec load_scales(const char *from, int64_t at, int64_t scale_type) {
    if (scale_type == SCALE_FLOAT) return *(const vec *)((const float *)(const void *)from + at);
    if (scale_type == SCALE_BF16) return load(from, at, 1);
    if (scale_type == SCALE_INT8)
        return __builtin_convertvector(*(const small *)(const void *)(from + at), vec);
    const uint16_t *halves = (const uint16_t *)(const void *)from + at;
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)halves));
#elif AVX2_CODES && defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const void *)halves));
#else
    vec x;
    for (int64_t i = 0; i < LANES; i++) x[i] = half_float(halves[i]);
    return x;
#endif
}

/* The number of one column. */
INLINE float load_scale(const char *from, int64_t at, int64_t scale_type) {
    if (scale_type == SCALE_INT8) return (float)(int8_t)from[at];
    uint32_t bits = 0;
    if (scale_type != SCALE_FLOAT) {
        uint16_t half_bits;
        memcpy(&half_bits, from + 2 * at, 2);
        if (scale_type == SCALE_HALF) return half_float(half_bits);
        bits = (uint32_t)half_bits << 16;
    } else {
        memcpy(&bits, from + 4 * at, 4);
    }
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The factors of some columns' scales, and of their minimums. */
typedef struct {
    float of_scales[PANEL], of_minimums[PANEL];
} factors;

/* Read the factors that are before a group, if there are any, and return where its codes are.
 * `width` is the panel's. */
static __attribute__((noinline)) const char *read_factors(const weight *w, const char *panel,
                                                          int64_t first, int64_t width,
                                                          factors *to) {
    if (!begins_block(w, first)) return panel;
    for (int64_t c = 0; c < width; c += LANES) {
        *(vec *)(to->of_scales + c) = load_scales(panel, c, SCALE_HALF);
        if (w->minimums)
            *(vec *)(to->of_minimums + c) = load_scales(panel + 2 * width, c, SCALE_HALF);
    }
    return panel + width * factor_bytes(w);
}

/* The scales or the minimums of a group, of LANES columns. */
INLINE vec scales_at(const weight *w, const char *from, int64_t column, const float *shared) {
    vec x = load_scales(from, column, w->scale_type);
    if (w->block) x *= *(const vec *)(shared + column);
    return x;
}

/* The minimums of a group where half of all codes are taken off before, as without zeros: so sums of
 * products are small, and the minimums make up for it. `from` is behind the scales. */
INLINE vec minimums_at(const weight *w, const char *from, int64_t column, const float *shared,
                       vec scales) {
    const vec middle = (float)(1 << (w->bits - 1)) - (vec){0};
    return fused(scales, middle, scales_at(w, from, column, shared));
}
