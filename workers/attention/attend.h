/* Attention of some query vectors to one part of the context, in float32. */
#pragma once
#include "../vector.h"
#include "paged_attention.h"

#if LANES == 16
#define WIDE 4 /* vectors of the head that are weighed together: as many as registers allow */
#else
#define WIDE 2
#endif
#define PART 128 /* tokens of context, a multiple of LANES */
#define QUERIES 64 /* most query vectors (positions times grouped heads) of a span; see kernel.py */
#define MAX_DIM 512 /* see kernel.py */

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* Which lanes of two vectors to take: the even or the odd runs of 1, 2, 4 or 8 lanes, from each
 * vector in turn; or the lower or the upper halves, lane by lane. */
#if LANES == 16
#define EVEN1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define ODD1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define EVEN2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define ODD2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define EVEN4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define ODD4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define EVEN8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define ODD8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#else
#define EVEN1 0, 8, 2, 10, 4, 12, 6, 14
#define ODD1 1, 9, 3, 11, 5, 13, 7, 15
#define EVEN2 0, 1, 8, 9, 4, 5, 12, 13
#define ODD2 2, 3, 10, 11, 6, 7, 14, 15
#define EVEN4 0, 1, 2, 3, 8, 9, 10, 11
#define ODD4 4, 5, 6, 7, 12, 13, 14, 15
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#endif
#define HALVE(N, EVEN, ODD)          \
    for (int i = 0; i < (N) / 2; i++) \
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], EVEN) + SHUFFLE(x[2 * i], x[2 * i + 1], ODD);

/* The sums of LANES vectors, in the lanes of one: a tree of pairwise sums. */
INLINE vec sum_each(vec *x) {
    HALVE(LANES, EVEN1, ODD1)
    HALVE(LANES / 2, EVEN2, ODD2)
    HALVE(LANES / 4, EVEN4, ODD4)
#if LANES == 16
    HALVE(LANES / 8, EVEN8, ODD8)
#endif
    return x[0];
}

/* Few queries: dot products along the key, for `nq` queries and LANES tokens. */
INLINE void score_along(const void *keys, const int64_t *at, const float *q, int64_t dim,
                        float (*scores)[PART], const int nq, const int bf16) {
    vec x[4][LANES];
    for (int t = 0; t < LANES; t++) {
        vec sum[4] = {{0}};
        for (int64_t d = 0; d < dim; d += LANES) {
            vec key = load(keys, at[t] + d, bf16);
            for (int i = 0; i < nq; i++) sum[i] += *(const vec *)(q + i * dim + d) * key;
        }
        for (int i = 0; i < nq; i++) x[i][t] = sum[i];
    }
    for (int i = 0; i < nq; i++) *(vec *)scores[i] = sum_each(x[i]);
}

INLINE void interleave(const vec *x, vec *y) {
    for (int i = 0; i < LANES / 2; i++) {
        y[2 * i] = SHUFFLE(x[i], x[i + LANES / 2], LOWER);
        y[2 * i + 1] = SHUFFLE(x[i], x[i + LANES / 2], UPPER);
    }
}

/* Many queries: LANES keys turned on their side, `turned` [dim, LANES], a lane for each token. */
INLINE void turn(const void *keys, const int64_t *at, int64_t dim, vec *turned, const int bf16) {
    for (int64_t d = 0; d < dim; d += LANES) {
        vec x[LANES], y[LANES];
        for (int t = 0; t < LANES; t++) x[t] = load(keys, at[t] + d, bf16);
        /* Each pass rotates the index bits (vector, lane) by one; half of the bits transpose. */
        interleave(x, y);
        interleave(y, x);
#if LANES == 16
        interleave(x, y);
        interleave(y, turned + d);
#else
        interleave(x, turned + d);
#endif
    }
}

INLINE void score_across(const vec *turned, const float *q, int64_t dim, float (*scores)[PART],
                         const int nq) {
    vec sum[8] = {{0}};
    for (int64_t d = 0; d < dim; d++)
        for (int i = 0; i < nq; i++) sum[i] += q[i * dim + d] * turned[d];
    for (int i = 0; i < nq; i++) *(vec *)scores[i] = sum[i];
}

/* Blocks lie anywhere in memory, so the hardware does not foresee them. */
INLINE void prefetch(const void *pool, int64_t at, int64_t dim, const int bf16) {
    const int size = bf16 ? 2 : 4;
    for (int64_t line = 0; line < dim * size; line += 64)
        __builtin_prefetch((const char *)pool + at * size + line);
}

/* acc[i] = sum over t of p[i][t] * value[t], for `nq` queries and `nv` vectors of the head at d.
 * Meanwhile the `n_next` keys at `next` are fetched. */
INLINE void weigh(const call *c, const int64_t *at, int n, const int64_t *next, int n_next,
                  const float (*p)[PART], int64_t dim, int64_t d, float *acc, const int nq,
                  const int nv, const int bf16) {
    vec sum[4][WIDE] = {{{0}}};
    for (int t = 0; t < n; t++) {
        if (t < n_next) prefetch(c->keys, next[t], dim, bf16);
        for (int j = 0; j < nv; j++) {
            vec value = load(c->values, at[t] + d + j * LANES, bf16);
            for (int i = 0; i < nq; i++) sum[i][j] += p[i][t] * value;
        }
    }
    for (int i = 0; i < nq; i++)
        for (int j = 0; j < nv; j++) *(vec *)(acc + i * dim + d + j * LANES) = sum[i][j];
}

/* The inner loops want the number of queries as a constant. */
#define FOR_CONSTANT(nq, F) \
    switch (nq) { case 1: F(1); break; case 2: F(2); break; case 3: F(3); break; default: F(4); }

/* What a head of ALiBi adds to the scores of a part: `slope` for each token that a key is after the
 * query, a negative number of them; `first` is the number of the part's first key. */
typedef struct {
    float slope, first;
} bias;

INLINE void slant(float *scores, int n, bias given) {
#pragma omp simd
    for (int t = 0; t < n; t++) scores[t] += given.slope * (given.first + (float)t);
}

/* One part of the context: scores, their maximum and exponentials, the weighted sum of values.
 * `at` [n padded to LANES]: where each token is in the pools. Query i sees [low[i], high[i]) of
 * them. Out: m and l [nq], acc [nq, dim]. Values are fetched under the scores, the next part's keys
 * under the weighing, so that memory is never idle. */
INLINE void attend(const call *c, const int64_t *at, int n, const int64_t *next, int n_next,
                   const float *q, int nq, const int *low, const int *high, const bias *biases,
                   float *m, float *l, float *acc, const int64_t dim, const int bf16) {
    float scores[QUERIES][PART] __attribute__((aligned(64)));
    const float cap = (float)c->softcap;
    vec turned[MAX_DIM] __attribute__((aligned(64)));

    for (int t = 0; t < n; t += LANES) {
        int i = 0;
        for (int j = t; j < t + LANES; j++) prefetch(c->values, at[j], dim, bf16);
        if (nq >= 8) {
            turn(c->keys, at + t, dim, turned, bf16);
            for (; i + 8 <= nq; i += 8)
                score_across(turned, q + i * dim, dim, (void *)&scores[i][t], 8);
        }
        for (; i < nq; i += 4) {
#define ALONG(N) score_along(c->keys, at + t, q + i * dim, dim, (void *)&scores[i][t], N, bf16)
            FOR_CONSTANT(nq - i, ALONG)
        }
    }
    for (int i = 0; i < nq; i++) {
        float *s = scores[i], top = -INFINITY, sum = 0.0f;
        if (cap != 0.0f)
            for (int t = 0; t < n; t++) s[t] = cap * tanh_of(s[t] / cap);
        if (c->slopes) slant(s, n, biases[i]);
#pragma omp simd reduction(max : top)
        for (int t = low[i]; t < high[i]; t++) top = s[t] > top ? s[t] : top;
#pragma omp simd reduction(+ : sum)
        for (int t = low[i]; t < high[i]; t++) sum += s[t] = exp_negative(s[t] - top);
        for (int t = 0; t < low[i]; t++) s[t] = 0.0f;
        for (int t = high[i] > low[i] ? high[i] : low[i]; t < n; t++) s[t] = 0.0f;
        m[i] = top;
        l[i] = sum;
    }
    for (int i = 0; i < nq; i += 4) {
        int64_t d = 0;
#define WEIGH(N, V) \
    weigh(c, at, n, next, i + d ? 0 : n_next, (void *)scores[i], dim, d, acc + i * dim, N, V, bf16)
#define WEIGH_WIDE(N) WEIGH(N, WIDE)
#define WEIGH_ONE(N) WEIGH(N, 1)
        for (; d + WIDE * LANES <= dim; d += WIDE * LANES) FOR_CONSTANT(nq - i, WEIGH_WIDE)
        for (; d < dim; d += LANES) FOR_CONSTANT(nq - i, WEIGH_ONE)
    }
}
