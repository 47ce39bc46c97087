/* The same as attend.h for bfloat16 pools, where the processor multiplies pairs of them. */
#pragma once
#include "attend.h"

#ifdef __AVX512BF16__
/* Queries on bfloat16 pools: products of pairs, two numbers an instruction and lane, summed in
 * float32. Queries and the weights of values are rounded to bfloat16 for it.
 *
 * Keys are turned on their side with their pairs kept together; values are interleaved so that two
 * tokens' numbers are a pair. Both stay in the first cache while groups of queries pass. */
#define STRIP (2 * LANES)
#define GROUP 8 /* queries that pass together */
#define HALF 4  /* of them are weighed together: as many as registers allow */
#define PADDED (QUERIES + GROUP)

typedef struct {
    uint32_t q[PADDED * MAX_DIM / 2];   /* [queries, dim / 2] pairs */
    uvec keys[PART / LANES * MAX_DIM / 2]; /* [16 tokens, pair of dim], a lane for each token */
    uvec values[PART / 2 * MAX_DIM / LANES];
    float scores[GROUP][PART] __attribute__((aligned(64)));
    uint32_t weights[GROUP][PART / 2]; /* pairs of tokens */
    float scales[GROUP];               /* of what was summed before */
} pairs __attribute__((aligned(64)));

/* 16 keys, the pairs of each 32 numbers turned on their side. A dim of 16 more than 32s ends in
 * zeros. */
INLINE void turn_pairs(const call *c, const int64_t *at, int64_t dim, uvec *turned) {
    for (int64_t d = 0; d < dim; d += 2 * LANES) {
        __m512i x[LANES], y[LANES];
        const __mmask16 kept = dim - d >= 2 * LANES ? 0xffff : 0x00ff;
#pragma GCC unroll 16
        for (int t = 0; t < LANES; t++)
            x[t] = _mm512_maskz_loadu_epi32(kept, (const uint16_t *)c->keys + at[t] + d);
        /* 4 by 4 in each quarter of four neighbours, then the quarters. */
#pragma GCC unroll 8
        for (int t = 0; t < LANES; t += 2) {
            y[t] = _mm512_unpacklo_epi32(x[t], x[t + 1]);
            y[t + 1] = _mm512_unpackhi_epi32(x[t], x[t + 1]);
        }
#pragma GCC unroll 4
        for (int t = 0; t < LANES; t += 4)
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                x[t + 2 * i] = _mm512_unpacklo_epi64(y[t + i], y[t + i + 2]);
                x[t + 2 * i + 1] = _mm512_unpackhi_epi64(y[t + i], y[t + i + 2]);
            }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
            y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
            y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
            y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            x[(i & 3) + (i & 4)] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
            x[(i & 3) + (i & 4) + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        }
#pragma GCC unroll 16
        for (int t = 0; t < LANES; t++)
            if (2 * t < dim - d) turned[d / 2 + t] = (uvec)x[t];
    }
}

/* The values at `one` and `other`, number by number: 32 numbers from d on. */
INLINE void pair_two(const call *c, int64_t one, int64_t other, int64_t d, int64_t dim, uvec *to) {
    const __m512i first =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const uint16_t *pool = c->values;
    const int both = dim - d >= 2 * LANES;
    const __mmask16 kept = both ? 0xffff : 0x00ff;
    const __m512i a = _mm512_maskz_loadu_epi32(kept, pool + one + d);
    const __m512i b = _mm512_maskz_loadu_epi32(kept, pool + other + d);
    to[0] = (uvec)_mm512_permutex2var_epi16(a, first, b);
    if (both) to[1] = (uvec)_mm512_permutex2var_epi16(a, second, b);
}

/* Values of tokens t and t + 1 together. The last of an odd n is its own partner, whose weight is
 * 0. */
INLINE void pair_values(const call *c, const int64_t *at, int n, int64_t dim, uvec *paired) {
    for (int t = 0; t < n; t += 2)
        for (int64_t d = 0; d < dim; d += 2 * LANES)
            pair_two(c, at[t], at[t + 1], d, dim, paired + (t / 2 * dim + d) / LANES);
}

/* `nq` queries and a strip of keys. Meanwhile the values at `fetched`, unless it is NULL, come. */
INLINE void score_pairs(const call *c, const uvec *keys, const uint32_t *q, int64_t dim,
                        const int64_t *fetched, float (*scores)[PART], const int nq) {
    __m512 sums[GROUP][2];
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim / 2; d++) {
        if (fetched && d < STRIP) prefetch(c->values, fetched[d], dim, 1);
        const __m512bh low = (__m512bh)keys[d], high = (__m512bh)keys[dim / 2 + d];
#pragma GCC unroll 8
        for (int i = 0; i < nq; i++) {
            const __m512bh given = (__m512bh)_mm512_set1_epi32((int)q[i * dim / 2 + d]);
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], given, low);
            sums[i][1] = _mm512_dpbf16_ps(sums[i][1], given, high);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++) {
        *(vec *)scores[i] = (vec)sums[i][0] * (float)c->scale;
        *(vec *)(scores[i] + LANES) = (vec)sums[i][1] * (float)c->scale;
    }
}

/* 2 to the power of each lane, within 3e-7 of it, for x <= 0; 0 for minus infinity, for which
 * scalef does not look at p. The polynomial is that of least error for |r| <= 1/2. */
INLINE __m512 exp2_each(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.3276472e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6755413e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5507133e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022117e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314697e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* The weights of the part's tokens for `nq` queries from j on, which see [low, high) of them. Their
 * m and l so far, or as `first` found them, become those with this part. */
INLINE void weights_of(pairs *w, int j, int n, const int *low, const int *high, float cap,
                       const bias *biases, int first, float *m, float *l, const int nq) {
    const int whole = (int)ceil_div(n, LANES) * LANES;
    const __m512 of_e = _mm512_set1_ps(1.44269504f); /* log2(e) */
    float(*scores)[PART] = w->scores + j;
    __m512 tops[HALF], sums[HALF], shifts[HALF];
#pragma GCC unroll 4
    for (int i = 0; i < nq; i++) {
        float *s = scores[i];
        if (cap != 0.0f)
#pragma omp simd
            for (int t = 0; t < whole; t++) s[t] = cap * tanh_of(s[t] / cap);
        if (biases[i].slope != 0.0f) slant(s, whole, biases[i]);
        for (int t = 0; t < low[i]; t++) s[t] = -INFINITY;
        for (int t = high[i]; t < whole; t++) s[t] = -INFINITY;
        tops[i] = _mm512_set1_ps(-INFINITY), sums[i] = _mm512_setzero_ps();
    }
    for (int t = 0; t < whole; t += LANES)
#pragma GCC unroll 4
        for (int i = 0; i < nq; i++)
            tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(scores[i] + t));
#pragma GCC unroll 4
    for (int i = 0; i < nq; i++) {
        float top = _mm512_reduce_max_ps(tops[i]);
        if (!first && m[i] > top) top = m[i];
        w->scales[j + i] = first || l[i] == 0.0f ? 0.0f : exp_negative(m[i] - top);
        m[i] = top;
        /* Where nothing is seen, all weights are 0. */
        shifts[i] = _mm512_set1_ps(top > -INFINITY ? top * 1.44269504f : 0.0f);
    }
    for (int t = 0; t < whole; t += LANES)
#pragma GCC unroll 4
        for (int i = 0; i < nq; i++) {
            const __m512 e =
                exp2_each(_mm512_fmsub_ps(_mm512_load_ps(scores[i] + t), of_e, shifts[i]));
            sums[i] = _mm512_add_ps(sums[i], e);
            store_some(w->weights[j + i], t, (vec)e, LANES, 1);
        }
#pragma GCC unroll 4
    for (int i = 0; i < nq; i++)
        l[i] = (first ? 0.0f : l[i] * w->scales[j + i]) + _mm512_reduce_add_ps(sums[i]);
}

/* acc[i] = acc[i] * scale + sum over t of weight[i][t] * value[t], for `nq` queries and `nv`
 * vectors of the head at d. */
INLINE void weigh_pairs(const pairs *w, int from, int n, int64_t dim, int64_t d, int first,
                        float *acc, const int nq, const int nv) {
    __m512 sums[HALF][4];
#pragma GCC unroll 4
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) sums[i][v] = _mm512_setzero_ps();
    for (int t = 0; t < (n + 1) / 2; t++) {
        const uvec *at = w->values + (t * dim + d) / LANES;
        __m512bh value[4];
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) value[v] = (__m512bh)at[v];
#pragma GCC unroll 4
        for (int i = 0; i < nq; i++) {
            const __m512bh given = (__m512bh)_mm512_set1_epi32((int)w->weights[from + i][t]);
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], given, value[v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < nq; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) {
            vec *to = (vec *)(acc + (from + i) * dim + d + v * LANES);
            *to = first ? (vec)sums[i][v] : (vec)(*to * w->scales[from + i] + (vec)sums[i][v]);
        }
    }
}

/* What weigh_pairs does, for queries that are alone with these values: taken as they lie, and
 * `wide` vectors of 32 numbers. Meanwhile the `n_next` keys at `next` are fetched. */
INLINE void weigh_once(const call *c, const pairs *w, const int64_t *at, int n, const int64_t *next,
                       int n_next, int64_t dim, int64_t d, int first, float *acc, const int nq,
                       const int wide) {
    __m512 sums[HALF][4];
#pragma GCC unroll 4
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int v = 0; v < 2 * wide; v++) sums[i][v] = _mm512_setzero_ps();
    for (int t = 0; t < n; t += 2) {
        uvec value[4] = {{0}};
        if (t < n_next) prefetch(c->keys, next[t], dim, 1);
        if (t + 1 < n_next) prefetch(c->keys, next[t + 1], dim, 1);
#pragma GCC unroll 2
        for (int v = 0; v < wide; v++)
            pair_two(c, at[t], at[t + 1], d + 2 * LANES * v, dim, value + 2 * v);
#pragma GCC unroll 4
        for (int i = 0; i < nq; i++) {
            const __m512bh given = (__m512bh)_mm512_set1_epi32((int)w->weights[i][t / 2]);
#pragma GCC unroll 4
            for (int v = 0; v < 2 * wide; v++)
                sums[i][v] = _mm512_dpbf16_ps(sums[i][v], given, (__m512bh)value[v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int v = 0; v < 2 * wide; v++) {
            vec *to = (vec *)(acc + i * dim + d + v * LANES);
            if (d + v * LANES < dim)
                *to = first ? (vec)sums[i][v] : (vec)(*to * w->scales[i] + (vec)sums[i][v]);
        }
}

/* What `attend` does, and adds it to the m, l and acc of the parts before unless it is the first.
 * A query's numbers do not depend on which others it comes with. */
INLINE void attend_pairs_of(const call *c, pairs *w, const int64_t *at, int n, const int64_t *next,
                            int n_next, int nq, const int *low, const int *high,
                            const bias *biases, int first, float *m, float *l, float *acc,
                            const int64_t dim) {
    const int few = nq <= HALF;
    int64_t where[PART + STRIP];
    for (int t = 0; t < PART + STRIP; t++) where[t] = at[t < n ? t : n - 1];
    if (!few) pair_values(c, where, n, dim, w->values);
    for (int i = 0; i < nq; i += GROUP) {
        const int many = (int)least(GROUP, nq - i);
        for (int t = n_next * i / nq; !few && t < n_next * least(i + GROUP, nq) / nq; t++) {
            prefetch(c->keys, next[t], dim, 1);
            prefetch(c->values, next[t], dim, 1);
        }
        for (int t = 0; t < n; t += STRIP) {
            uvec *keys = w->keys + t / LANES * dim / 2;
            const uint32_t *q = w->q + i * dim / 2;
            const int64_t *fetched = few ? where + t : NULL;
            float(*scores)[PART] = (void *)&w->scores[0][t];
            for (int half = 0; i == 0 && half < STRIP; half += LANES)
                turn_pairs(c, where + t + half, dim, keys + half / LANES * dim / 2);
#define SCORE(N) score_pairs(c, keys, q, dim, fetched, scores, N)
            if (many > HALF) SCORE(GROUP);
            else FOR_CONSTANT(many, SCORE)
        }
        for (int j = 0; j < many; j += HALF) {
            const int k = i + j;
#define WEIGHTS(N) weights_of(w, j, n, low + k, high + k, cap, biases + k, first, m + k, l + k, N)
            const float cap = (float)c->softcap;
            FOR_CONSTANT(many - j, WEIGHTS)
            float *to = acc + i * dim;
            int64_t d = 0;
#define WEIGH_ONCE(N) weigh_once(c, w, at, n, next, d ? 0 : n_next, dim, d, first, to, N, 2)
#define WEIGH_HALF(N) weigh_once(c, w, at, n, next, d ? 0 : n_next, dim, d, first, to, N, 1)
#define WEIGH_FOUR(N) weigh_pairs(w, j, n, dim, d, first, to, N, 4)
#define WEIGH_ALONE(N) weigh_pairs(w, j, n, dim, d, first, to, N, 1)
            for (; few && dim - d > 2 * LANES; d += 4 * LANES) FOR_CONSTANT(nq, WEIGH_ONCE)
            for (; few && d < dim; d += 2 * LANES) FOR_CONSTANT(nq, WEIGH_HALF)
            for (; d + 4 * LANES <= dim; d += 4 * LANES) FOR_CONSTANT(many - j, WEIGH_FOUR)
            for (; d < dim; d += LANES) FOR_CONSTANT(many - j, WEIGH_ALONE)
        }
    }
}

/* Once each for the dims whose loops are unrolled: it is long, and compiling takes its time. */
#define ATTEND_PAIRS(NAME, DIM)                                                                    \
    static __attribute__((noinline)) void NAME(                                                    \
        const call *c, pairs *w, const int64_t *at, int n, const int64_t *next, int n_next,        \
        int nq, const int *low, const int *high, const bias *biases, int first, float *m,          \
        float *l, float *acc) {                                                                    \
        attend_pairs_of(c, w, at, n, next, n_next, nq, low, high, biases, first, m, l, acc, DIM);  \
    }
ATTEND_PAIRS(attend_pairs_64, 64)
ATTEND_PAIRS(attend_pairs_128, 128)
ATTEND_PAIRS(attend_pairs_any, c->dim)

INLINE void attend_pairs(const call *c, pairs *w, const int64_t *at, int n, const int64_t *next,
                         int n_next, int nq, const int *low, const int *high, const bias *biases,
                         int first, float *m, float *l, float *acc, const int64_t dim) {
    (dim == 64    ? attend_pairs_64
     : dim == 128 ? attend_pairs_128
                  : attend_pairs_any)(c, w, at, n, next, n_next, nq, low, high, biases, first, m, l,
                                      acc);
}
#endif
