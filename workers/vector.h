// Vectors of float32 and what goes in and out of them, for all kernels.
//
// Vectors are the compiler's own and as wide as the machine's widest, 16 lanes or 8, for wider ones
// are taken apart badly. Numbers in memory are float32 or bfloat16 (`bf16`, a constant wherever it
// matters); everything is computed in float32.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* a * b + c, in the same way wherever it stands: left to itself, the compiler rounds the product in
 * some tiles and not in others, and a row's result would depend on how many there are. */
INLINE vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__x86_64__) && !defined(__FMA__)
    return a * b + c; /* there is no other instruction */
#else
    for (int64_t i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

INLINE vec load(const void *from, int64_t at, const int bf16) {
    if (!bf16) return *(const vec *)((const float *)from + at);
    const uint16_t *first = (const uint16_t *)from + at;
#ifdef __AVX512F__ /* one instruction where GCC 12 makes three of the conversion */
    const __m256i narrow = _mm256_loadu_si256((const void *)first);
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
#else
    return (vec)(__builtin_convertvector(*(const half *)first, uvec) << 16);
#endif
}

/* To the nearest bfloat16, ties to even. */
INLINE uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t to_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)to_even;
}

INLINE void store(void *out, int64_t at, float x, const int bf16) {
    if (bf16)
        ((uint16_t *)out)[at] = rounded(x);
    else
        ((float *)out)[at] = x;
}

/* The first `n` of a vector's lanes. */
INLINE void store_some(void *out, int64_t at, vec x, int64_t n, const int bf16) {
#ifdef __AVX512BF16__ /* which counts denormal numbers as zero */
    const __mmask16 kept = n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1);
    if (bf16)
        _mm256_mask_storeu_epi16((uint16_t *)out + at, kept,
                                 (__m256i)_mm512_cvtneps_pbh((__m512)x));
    else
        _mm512_mask_storeu_ps((float *)out + at, kept, (__m512)x);
#else
    for (int64_t i = 0; i < (n < LANES ? n : LANES); i++) store(out, at + i, x[i], bf16);
#endif
}

/* exp within 2 units in the last place for x <= 0; 0 below the smallest normal number.
 * Range reduction and polynomial are those of Cephes' expf. */
INLINE float exp_negative(float x) {
    float clamped = x < -87.0f ? -87.0f : x;
    float shifted = clamped * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    float n = shifted - 12582912.0f;
    float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

/* Cephes' tanhf. */
INLINE float tanh_of(float x) {
    float a = fabsf(x), z = x * x;
    float e = exp_negative(-2.0f * a);
    float large = (1.0f - e) / (1.0f + e);
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    return a < 0.625f ? p * z * x + x : copysignf(large, x);
}

/* Memory that grows and stays, for fresh pages cost more than what is done with them. The contents
 * are not kept. NULL, and nothing kept, where there is no memory. */
INLINE void *grow(void *old, size_t *have, size_t want) {
    if (want <= *have) return old;
    free(old);
    void *fresh = NULL;
    *have = 0;
    if (posix_memalign(&fresh, 64, want)) return NULL;
    *have = want;
    return fresh;
}
