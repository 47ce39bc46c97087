/* Keys and values as codes of a byte each: the same numbers, bit for bit, as kv_codes.py's.
 *
 * The loops are plain C without branches, which the compiler turns into vectors, but for those that
 * make bfloat16: these look codes up. `kind` is a constant in all of them. */
#pragma once
#include "../vector.h"
#include "paged_attention.h"

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* To the nearest number of `mantissa` bits behind the point, ties to even, whose exponents are
 * biased by `bias`; what is larger becomes `most`, which may stand for infinity. */
INLINE uint8_t to_fp8(float x, const int mantissa, const int bias, const float most) {
    const uint32_t sign = bits_of(x) >> 24 & 0x80, all = bits_of(x) & 0x7fffffff;
    const float size = float_of(all), bounded = size > most ? most : size;
    const uint32_t bits = bits_of(bounded), drop = 23 - mantissa;
    const uint32_t even = bits + ((1u << (drop - 1)) - 1) + (bits >> drop & 1);
    const uint32_t normal = (even >> drop) - ((uint32_t)(127 - bias) << mantissa);
    /* Below the least normal number the steps are equal: those of the floats from here on. */
    const float steps = float_of((uint32_t)(127 + 23 + 1 - bias - mantissa) << 23);
    const uint32_t small = bits_of(bounded + steps) & 0xff;
    const uint32_t code = bounded < float_of((uint32_t)(128 - bias) << 23) ? small : normal;
    return (uint8_t)(sign | (all > 0x7f800000 ? 0x7f : code));
}

/* `special` is the first code of infinity or NaN: of NaN alone where it is the last one. */
INLINE float from_fp8(uint8_t code, const int mantissa, const int bias, const uint32_t special) {
    const uint32_t size = code & 0x7f, least_normal = 1u << mantissa;
    const uint32_t bits = (size << (23 - mantissa)) + ((uint32_t)(127 - bias) << 23);
    /* Of the small ones, the mantissa behind a 1 that is then taken away: no denormal floats. */
    const float one = float_of((uint32_t)(128 - bias) << 23);
    const float small = float_of(bits + (1u << 23)) - one;
    const uint32_t odd = special == 0x7f ? 0x7fc00000 : bits | 0x7f800000;
    const uint32_t found = size >= special ? odd : size < least_normal ? bits_of(small) : bits;
    return float_of(found | (uint32_t)(code & 0x80) << 24);
}

INLINE float number_of(uint8_t code, const int kind) {
    if (kind == E4M3) return from_fp8(code, 3, 7, 0x7f);
    if (kind == E5M2) return from_fp8(code, 2, 15, 0x7c);
    return (float)(int8_t)code;
}

/* The numbers that a row of codes stands for, in float32; of a model in bfloat16 rounded to it. */
INLINE void decode_row(const uint8_t *from, int64_t dim, float scale, float *to, const int kind,
                       const int bf16) {
#pragma omp simd
    for (int64_t i = 0; i < dim; i++) {
        const float x = number_of(from[i], kind) * scale;
        to[i] = bf16 ? float_of((uint32_t)rounded(x) << 16) : x;
    }
}

/* A row of numbers to the codes at `at` of a pool, and its scale beside them. */
INLINE void encode_row(const float *x, int64_t dim, void *pool, int64_t at, float *scales,
                       double scale, const int kind) {
    uint8_t *to = (uint8_t *)pool + at;
    const float given = (float)scale;
    if (kind == E4M3) {
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) to[i] = to_fp8(x[i] / given, 3, 7, 448.0f);
        return;
    }
    if (kind == E5M2) {
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) to[i] = to_fp8(x[i] / given, 2, 15, 65536.0f);
        return;
    }
    uint32_t largest = 0; /* as integers, infinity is above all numbers, and NaN above it */
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < dim; i++) {
        const uint32_t size = bits_of(x[i]) & 0x7fffffff;
        largest = size > largest ? size : largest;
    }
    const float own = float_of(largest) / 127.0f, by = own == 0.0f ? 1.0f : own;
    scales[at / dim] = own;
#pragma omp simd
    for (int64_t i = 0; i < dim; i++) {
        float unit = x[i] / by;
        unit = unit > 127.0f ? 127.0f : unit;
        unit = unit < -127.0f ? -127.0f : unit;
        unit = unit == unit ? unit : 0.0f;
        to[i] = (uint8_t)bits_of(unit + 12582912.0f); /* 1.5 * 2^23: rounds to an integer */
    }
}

#define FOR_KIND(kind, F) \
    switch (kind) { case E4M3: F(E4M3); break; case E5M2: F(E5M2); break; default: F(INT8); }

/* Keys and values of one token and head, from float32 to their place in the pools. */
static void store_codes(const kv_codes *codes, const float *key, const float *value, int64_t dim,
                        void *keys, void *values, int64_t at) {
#define ENCODE(KIND)                                                                   \
    encode_row(key, dim, keys, at, codes->key_scales, codes->key_scale, KIND);         \
    encode_row(value, dim, values, at, codes->value_scales, codes->value_scale, KIND)
    FOR_KIND(codes->kind, ENCODE)
#undef ENCODE
}

#ifdef __AVX512BF16__
#define NARROW 1 /* numbers of bfloat16 stay so, for attend_pairs.h */

/* What the codes of 8-bit floats without a sign stand for in bfloat16, byte by byte. */
typedef struct {
    uint8_t low[128], high[128];
} byte_table;

INLINE byte_table table_of(float scale, const int kind) {
    byte_table table;
    for (int i = 0; i < 128; i++) {
        const uint16_t number = rounded(number_of((uint8_t)i, kind) * scale);
        table.low[i] = (uint8_t)number, table.high[i] = (uint8_t)(number >> 8);
    }
    return table;
}

INLINE void bytes_to_numbers(const uint8_t *from, int64_t n, const byte_table *table, uint16_t *to) {
#ifdef __AVX512VBMI__
    const __m512i low[2] = {_mm512_loadu_si512(table->low), _mm512_loadu_si512(table->low + 64)};
    const __m512i high[2] = {_mm512_loadu_si512(table->high), _mm512_loadu_si512(table->high + 64)};
    uint8_t pairs[128]; /* a low byte, then the high one that is 64 after it */
    for (int i = 0; i < 128; i++) pairs[i] = (uint8_t)(i / 2 + i % 2 * 64);
    const __m512i first = _mm512_loadu_si512(pairs), second = _mm512_loadu_si512(pairs + 64);
    for (int64_t i = 0; i < n; i += 64) {
        const __mmask64 kept = n - i >= 64 ? ~0ull : (1ull << (n - i)) - 1;
        const __m512i codes = _mm512_maskz_loadu_epi8(kept, from + i);
        const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8((char)0x80));
        const __m512i lows = _mm512_permutex2var_epi8(low[0], codes, low[1]);
        const __m512i highs = _mm512_permutex2var_epi8(high[0], codes, high[1]) | sign;
        _mm512_mask_storeu_epi16(to + i, (__mmask32)kept,
                                 _mm512_permutex2var_epi8(lows, first, highs));
        _mm512_mask_storeu_epi16(to + i + 32, (__mmask32)(kept >> 32),
                                 _mm512_permutex2var_epi8(lows, second, highs));
    }
#else
    for (int64_t i = 0; i < n; i++) {
        const int size = from[i] & 0x7f, high = table->high[size] | (from[i] & 0x80);
        to[i] = (uint16_t)(high << 8 | table->low[size]);
    }
#endif
}

/* `n` numbers of int8, a multiple of 16, in bfloat16, where denormal numbers count as zero. */
INLINE void scale_narrow(const uint8_t *from, int64_t n, float scale, uint16_t *to) {
    const __m512 by = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < n; i += LANES) {
        const __m128i codes = _mm_loadu_si128((const void *)(from + i));
        const __m512 numbers = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
        _mm256_storeu_si256((void *)(to + i), (__m256i)_mm512_cvtneps_pbh(numbers * by));
    }
}
#else
#define NARROW 0
#endif

/* `n` rows of a pool, those at `at`, behind one another: as float32, rounded to bfloat16 where the
 * model is in it, or with NARROW as bfloat16. Rows that follow each other are taken as one where
 * they have the same scale. */
INLINE void load_rows(const void *pool, const float *scales, double scale, const int64_t *at, int n,
                      int64_t dim, void *to, const int kind, const int bf16) {
#if NARROW
    byte_table table;
    if (bf16 && kind != INT8) table = table_of((float)scale, kind);
#endif
    for (int64_t t = 0, row = 0, end; t < n; t = end) {
        const uint8_t *from = (const uint8_t *)pool + at[t];
        float by = (float)scale;
        end = t + 1;
        if (kind == INT8)
            row = t && at[t] == at[t - 1] + dim ? row + 1 : at[t] / dim, by = scales[row];
        else
            while (end < n && at[end] == at[end - 1] + dim) end++;
#if NARROW
        if (bf16 && kind == INT8)
            scale_narrow(from, dim, by, (uint16_t *)to + t * dim);
        else if (bf16)
            bytes_to_numbers(from, (end - t) * dim, &table, (uint16_t *)to + t * dim);
        else
#endif
            decode_row(from, (end - t) * dim, by, (float *)to + t * dim, kind, bf16);
    }
}
