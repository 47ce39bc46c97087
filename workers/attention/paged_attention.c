/* Paged attention on a CPU.
 *
 * One call does one layer of one forward pass: it scatters the new keys and values into the paged
 * pools (unless they are there), then attends, sharing both out over the threads of team.c. Work comes as spans. A span is
 * some consecutive positions of one sequence and the block table of that sequence; a decode row is a
 * span of one position.
 *
 * A span's context is cut into parts of PART tokens. A task takes one key-value head and one part
 * of a decode row, or several parts of a prompt, and reads each block once for all the queries that
 * share the head. Parts begin at multiples of PART, whatever the batch and the number of threads,
 * and are combined in order, so that a decode row's result does not depend on what else is in the
 * batch.
 *
 * Pools are [n_blocks, n_kv_heads, block_size, dim], float32 or bfloat16. `dim` is a multiple of 16.
 */
#include "paged_attention.h"

#include "../team.h"
#include "../vector.h"

#if LANES == 16
#define WIDE 4 /* vectors of the head that are weighed together: as many as registers allow */
#else
#define WIDE 2
#endif
#define PART 128 /* tokens of context, a multiple of LANES */
#define QUERIES 64 /* most query vectors (positions times grouped heads) of a span; see kernel.py */
#define MAX_DIM 512 /* see kernel.py */
#define WRITTEN 64 /* tokens that a thread writes at a time */

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

typedef struct {
    int64_t start, n, length;
    const int32_t *table;
    int64_t n_queries, first_token; /* of the context, for the first position */
    int64_t first_part, n_parts, parts_per_task;
    int64_t first_task, n_tasks; /* n_tasks for each key-value head */
    float *results;              /* [n_tasks, n_kv_heads, n_queries, 2 + dim] */
    int32_t *unfinished;         /* [n_kv_heads] tasks */
} span;

/* These grow and stay, for each calling thread: fresh pages cost more than a layer's attention. */
static __thread void *kept_spans, *kept_results;
static __thread size_t spans_size, results_size;

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

/* Where the tokens [from, to) of a span's context are in the pools, for one key-value head. */
static void locate(const call *c, const span *s, int64_t head, int64_t from, int64_t to,
                   int64_t *at) {
    int64_t block = from / c->block_size, offset = from % c->block_size;
    for (int64_t t = from; t < to; block++, offset = 0) {
        int64_t base = (s->table[block] * c->n_kv_heads + head) * c->block_size;
        for (; offset < c->block_size && t < to; offset++, t++) *at++ = (base + offset) * c->dim;
    }
    for (int64_t last = at[-1], t = to - from; t % LANES; t++) *at++ = last;
}

INLINE int64_t first_seen(const call *c, int64_t position) {
    if (c->chunk) return position / c->chunk * c->chunk;
    return c->window && position >= c->window ? position - c->window + 1 : 0;
}

static void write_kv(const call *c, int64_t token) {
    const int size = c->bf16 ? 2 : 4;
    const int64_t block = c->slots[token] / c->block_size, offset = c->slots[token] % c->block_size;
    for (int64_t h = 0; h < c->n_kv_heads; h++) {
        int64_t at = ((block * c->n_kv_heads + h) * c->block_size + offset) * c->dim;
        memcpy((char *)c->keys + at * size,
               (const char *)c->k + (token * c->k_token + h * c->k_head) * size, c->dim * size);
        memcpy((char *)c->values + at * size,
               (const char *)c->v + (token * c->v_token + h * c->v_head) * size, c->dim * size);
    }
}

/* The query vectors of a span, scaled; those that share a position are neighbours. */
INLINE void gather_queries(const call *c, const span *s, int64_t head, float *q, const int bf16) {
    const int64_t group = c->n_heads / c->n_kv_heads;
    for (int64_t p = 0; p < s->n; p++)
        for (int64_t g = 0; g < group; g++, q += c->dim) {
            int64_t from = (s->start + p) * c->q_token + (head * group + g) * c->q_head;
            for (int64_t d = 0; d < c->dim; d += LANES)
                *(vec *)(q + d) = load(c->q, from + d, bf16) * (float)c->scale;
        }
}

/* Adds the result of a later part, (m2, l2, acc2), to that of the parts before it. */
static void merge(int64_t nq, int64_t dim, float *m, float *l, float *acc, const float *m2,
                  const float *l2, const float *acc2) {
    for (int64_t i = 0; i < nq; i++) {
        if (l2[i] == 0.0f) continue; /* nothing seen there */
        float top = m[i] > m2[i] ? m[i] : m2[i];
        float before = l[i] == 0.0f ? 0.0f : exp_negative(m[i] - top);
        float after = exp_negative(m2[i] - top);
        m[i] = top;
        l[i] = l[i] * before + l2[i] * after;
        for (int64_t d = i * dim; d < (i + 1) * dim; d++)
            acc[d] = acc[d] * before + acc2[d] * after;
    }
}

INLINE void finish(const call *c, const span *s, int64_t head, const int bf16) {
    const int64_t nq = s->n_queries, dim = c->dim, size = nq * (2 + dim);
    const int64_t group = c->n_heads / c->n_kv_heads;
    float *m = s->results + head * size, *l = m + nq, *acc = l + nq;
    for (int64_t i = 1; i < s->n_tasks; i++) {
        const float *later = m + i * c->n_kv_heads * size;
        merge(nq, dim, m, l, acc, later, later + nq, later + 2 * nq);
    }
    for (int64_t i = 0; i < nq; i++) {
        int64_t to = ((s->start + i / group) * c->n_heads + head * group + i % group) * dim;
        float share = 1.0f / l[i];
        if (c->sinks) {
            const float sink = c->sinks[head * group + i % group], top = m[i] > sink ? m[i] : sink;
            const float seen = exp_negative(m[i] - top);
            share = seen / (l[i] * seen + exp_negative(sink - top));
        }
        for (int64_t d = 0; d < dim; d++) store(c->out, to + d, acc[i * dim + d] * share, bf16);
    }
}

/* The first and the end token of a part of a span. */
INLINE void bounds(const span *s, int64_t part, int64_t *from, int64_t *to) {
    *from = (s->first_part + part) * PART, *to = *from + PART;
    if (*from < s->first_token) *from = s->first_token;
    if (*to > s->length) *to = s->length;
}

/* Where the tokens are that this thread attends to after a part of task `task` of all, a task of
 * span `s`; their number, 0 if that is not known. `then`: the task it will take after, or -1. */
static int foresee(const call *c, const span *s, int64_t task, int64_t part, int64_t then,
                   int64_t *next) {
    int64_t from, to;
    if (part + 1 < s->n_parts && (part + 1) % s->parts_per_task) {
        part++;
    } else if (then < 0) {
        return 0;
    } else {
        task = then;
        while (task < s->first_task) s--;
        while (task >= s->first_task + s->n_tasks * c->n_kv_heads) s++;
        part = (task - s->first_task) / c->n_kv_heads * s->parts_per_task;
    }
    bounds(s, part, &from, &to);
    locate(c, s, (task - s->first_task) % c->n_kv_heads, from, to, next);
    return (int)(to - from);
}

#ifdef __AVX512BF16__
/* Many queries on bfloat16 pools: products of pairs, two numbers an instruction and lane, summed in
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

INLINE void gather_pairs(const call *c, const span *s, int64_t head, pairs *w, int64_t dim) {
    const int64_t group = c->n_heads / c->n_kv_heads, nq = s->n_queries;
    for (int64_t i = 0; i < nq; i++) {
        const int64_t token = (s->start + i / group) * c->q_token;
        const int64_t at = token + (head * group + i % group) * c->q_head;
        memcpy(w->q + i * dim / 2, (const uint16_t *)c->q + at, dim * 2);
    }
    memset(w->q + nq * dim / 2, 0, GROUP * dim * 2);
}

/* 16 keys, the pairs of each 32 numbers turned on their side. A dim of 16 more than 32s ends in
 * zeros. */
INLINE void turn_pairs(const call *c, const int64_t *at, int64_t dim, uvec *turned) {
    for (int64_t d = 0; d < dim; d += 2 * LANES) {
        vec x[LANES], y[LANES];
        const __mmask16 kept = dim - d >= 2 * LANES ? 0xffff : 0x00ff;
        for (int t = 0; t < LANES; t++)
            x[t] = (vec)_mm512_maskz_loadu_epi32(kept, (const uint16_t *)c->keys + at[t] + d);
        interleave(x, y);
        interleave(y, x);
        interleave(x, y);
        interleave(y, x);
        for (int t = 0; t < LANES && 2 * t < dim - d; t++) turned[d / 2 + t] = (uvec)x[t];
    }
}

/* Values of tokens t and t + 1, number by number; n is even but where t + 1 is none: then 0. */
INLINE void pair_values(const call *c, const int64_t *at, int n, int64_t dim, uvec *paired) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                           8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const uint16_t *pool = c->values;
    for (int t = 0; t < n; t += 2)
        for (int64_t d = 0; d < dim; d += 2 * LANES) {
            const int both = dim - d >= 2 * LANES, last = t + 1 == n;
            const __mmask16 kept = both ? 0xffff : 0x00ff;
            const __m512i a = _mm512_maskz_loadu_epi32(kept, pool + at[t] + d);
            const __m512i b = _mm512_maskz_loadu_epi32(last ? 0 : kept, pool + at[t + !last] + d);
            uvec *to = paired + (t / 2 * dim + d) / LANES;
            to[0] = (uvec)_mm512_permutex2var_epi16(a, first, b);
            if (both) to[1] = (uvec)_mm512_permutex2var_epi16(a, second, b);
        }
}

/* GROUP queries and a strip of keys. */
INLINE void score_pairs(const uvec *keys, const uint32_t *q, int64_t dim, float scale,
                        float (*scores)[PART]) {
    __m512 sums[GROUP][2];
#pragma GCC unroll 8
    for (int i = 0; i < GROUP; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim / 2; d++) {
        const __m512bh low = (__m512bh)keys[d], high = (__m512bh)keys[dim / 2 + d];
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++) {
            const __m512bh given = (__m512bh)_mm512_set1_epi32((int)q[i * dim / 2 + d]);
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], given, low);
            sums[i][1] = _mm512_dpbf16_ps(sums[i][1], given, high);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < GROUP; i++) {
        *(vec *)scores[i] = (vec)sums[i][0] * scale;
        *(vec *)(scores[i] + LANES) = (vec)sums[i][1] * scale;
    }
}

/* exp_negative of each lane. The integer n stands in the lowest bits of `shifted`. */
INLINE __m512 exp_each(__m512 x) {
    const __m512 magic = _mm512_set1_ps(12582912.0f); /* 1.5 * 2^23 */
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
    const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), magic);
    const __m512 n = _mm512_sub_ps(shifted, magic);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    const __m512i scaled = _mm512_maskz_add_epi32(kept, _mm512_castps_si512(p), power);
    return _mm512_castsi512_ps(scaled);
}

/* Query j's weights of the part's tokens, of which it sees [low, high); its m and l so far, or as
 * `first` found them, become those with this part. */
INLINE void weights_of(pairs *w, int j, int n, int low, int high, float cap, bias given, int first,
                       float *m, float *l) {
    float *s = w->scores[j];
    const int whole = (int)ceil_div(n, LANES) * LANES;
    if (cap != 0.0f)
#pragma omp simd
        for (int t = 0; t < whole; t++) s[t] = cap * tanh_of(s[t] / cap);
    if (given.slope != 0.0f) slant(s, whole, given);
    for (int t = 0; t < low; t++) s[t] = -INFINITY;
    for (int t = high; t < whole; t++) s[t] = -INFINITY;
    __m512 tops = _mm512_load_ps(s), sums = _mm512_setzero_ps();
    for (int t = LANES; t < whole; t += LANES) tops = _mm512_max_ps(tops, _mm512_load_ps(s + t));
    float top = _mm512_reduce_max_ps(tops);
    if (!first && *m > top) top = *m;
    const __m512 shift = _mm512_set1_ps(top > -INFINITY ? top : 0.0f); /* where nothing is seen */
    for (int t = 0; t < whole; t += LANES) {
        const __m512 e = exp_each(_mm512_sub_ps(_mm512_load_ps(s + t), shift));
        sums = _mm512_add_ps(sums, e);
        store_some(w->weights[j], t, (vec)e, LANES, 1);
    }
    const float scale = first || *l == 0.0f ? 0.0f : exp_negative(*m - top);
    *l = (first ? 0.0f : *l * scale) + _mm512_reduce_add_ps(sums);
    *m = top;
    w->scales[j] = scale;
}

/* acc[i] = acc[i] * scale + sum over t of weight[i][t] * value[t], `nv` vectors of the head at d. */
INLINE void weigh_pairs(const pairs *w, int from, int many, int n, int64_t dim, int64_t d, int first,
                        float *acc, const int nv) {
    __m512 sums[HALF][4];
#pragma GCC unroll 4
    for (int i = 0; i < HALF; i++)
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) sums[i][v] = _mm512_setzero_ps();
    for (int t = 0; t < (n + 1) / 2; t++) {
        const uvec *at = w->values + (t * dim + d) / LANES;
        __m512bh value[4];
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) value[v] = (__m512bh)at[v];
#pragma GCC unroll 4
        for (int i = 0; i < HALF; i++) {
            const __m512bh given = (__m512bh)_mm512_set1_epi32((int)w->weights[from + i][t]);
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], given, value[v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < HALF; i++) {
        if (i >= many) break;
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) {
            vec *to = (vec *)(acc + (from + i) * dim + d + v * LANES);
            *to = first ? (vec)sums[i][v] : (vec)(*to * w->scales[from + i] + (vec)sums[i][v]);
        }
    }
}

/* What `attend` does, and adds it to the m, l and acc of the parts before unless it is the first. */
INLINE void attend_pairs(const call *c, pairs *w, const int64_t *at, int n, int nq, const int *low,
                         const int *high, const bias *biases, int first, float *m, float *l,
                         float *acc, const int64_t dim) {
    int64_t where[PART + STRIP];
    for (int t = 0; t < PART + STRIP; t++) where[t] = at[t < n ? t : n - 1];
    for (int t = 0; t < ceil_div(n, STRIP) * STRIP; t += LANES)
        turn_pairs(c, where + t, dim, w->keys + t / LANES * dim / 2);
    pair_values(c, at, n, dim, w->values);
    for (int i = 0; i < nq; i += GROUP) {
        const int many = (int)least(GROUP, nq - i);
        for (int t = 0; t < n; t += STRIP)
            score_pairs(w->keys + t / LANES * dim / 2, w->q + i * dim / 2, dim, (float)c->scale,
                        (void *)&w->scores[0][t]);
        for (int j = 0; j < many; j++)
            weights_of(w, j, n, low[i + j], high[i + j], (float)c->softcap, biases[i + j], first,
                       m + i + j, l + i + j);
        for (int half = 0; half < many; half += HALF) {
            float *to = acc + i * dim;
            int64_t d = 0;
            for (; d + 4 * LANES <= dim; d += 4 * LANES)
                weigh_pairs(w, half, many - half, n, dim, d, first, to, 4);
            for (; d < dim; d += LANES)
                weigh_pairs(w, half, many - half, n, dim, d, first, to, 1);
        }
    }
}
#endif

INLINE void run_task(const call *c, const span *s, int64_t task, int64_t then, const int64_t dim,
                     const int bf16) {
    const int64_t of_span = task - s->first_task;
    const int64_t head = of_span % c->n_kv_heads, run = of_span / c->n_kv_heads;
    const int64_t nq = s->n_queries, group = c->n_heads / c->n_kv_heads;
    float q[QUERIES * MAX_DIM] __attribute__((aligned(64)));
    float later[QUERIES * (2 + MAX_DIM)] __attribute__((aligned(64)));
    float *m = s->results + of_span * nq * (2 + dim), *l = m + nq, *acc = l + nq;
    float *m2 = later, *l2 = m2 + nq, *acc2 = l2 + nq;

#ifdef __AVX512BF16__
    const int paired = bf16 && nq >= GROUP;
    pairs w;
    if (paired) gather_pairs(c, s, head, &w, dim);
#else
    const int paired = 0;
#endif
    if (!paired) gather_queries(c, s, head, q, bf16);
    for (int64_t i = 0; i < s->parts_per_task; i++) {
        int64_t part = run * s->parts_per_task + i, from, to, at[PART], next[PART];
        if (part == s->n_parts) break;
        bounds(s, part, &from, &to);
        locate(c, s, head, from, to, at);
        int low[QUERIES], high[QUERIES];
        bias biases[QUERIES];
        for (int64_t j = 0; j < nq; j++) {
            int64_t position = s->length - s->n + j / group, seen = first_seen(c, position);
            int64_t begin = seen > from ? seen : from, end = position < to ? position + 1 : to;
            low[j] = (int)((begin < to ? begin : to) - from);
            high[j] = (int)((end > from ? end : from) - from);
            biases[j].slope = c->slopes ? c->slopes[head * group + j % group] : 0.0f;
            biases[j].first = (float)(from - position);
        }
#ifdef __AVX512BF16__
        if (paired) {
            attend_pairs(c, &w, at, (int)(to - from), (int)nq, low, high, biases, i == 0, m, l, acc,
                         dim);
            continue;
        }
#endif
        int n_next = foresee(c, s, task, part, then, next);
        attend(c, at, (int)(to - from), next, n_next, q, (int)nq, low, high, biases, i ? m2 : m,
               i ? l2 : l, i ? acc2 : acc, dim, bf16);
        if (i) merge(nq, dim, m, l, acc, m2, l2, acc2);
    }
    if (__atomic_sub_fetch(s->unfinished + head, 1, __ATOMIC_ACQ_REL) == 0)
        finish(c, s, head, bf16);
}

/* Loops over a head's vectors are unrolled for the common dims. */
#define TASK(NAME, DIM, BF16) \
    static void NAME(const call *c, const span *s, int64_t task, int64_t then) { \
        run_task(c, s, task, then, DIM, BF16);                                   \
    }
TASK(task_f32, c->dim, 0)
TASK(task_f32_64, 64, 0)
TASK(task_f32_128, 128, 0)
TASK(task_bf16, c->dim, 1)
TASK(task_bf16_64, 64, 1)
TASK(task_bf16_128, 128, 1)

/* Divides the spans into tasks; their number, or -1 without memory. */
static int64_t plan(const call *c, span **planned) {
    const size_t bytes = c->n_spans * (sizeof(span) + c->n_kv_heads * sizeof(int32_t));
    span *spans = kept_spans = grow(kept_spans, &spans_size, bytes);
    if (!spans) return -1;
    int32_t *unfinished = (int32_t *)(spans + c->n_spans);
    int64_t n_tasks = 0, n_results = 0;
    for (int64_t i = 0; i < c->n_spans; i++) {
        const int64_t *given = c->spans + 4 * i;
        span *s = spans + i;
        s->start = given[0], s->n = given[1], s->length = given[2];
        s->table = (const int32_t *)(intptr_t)given[3];
        s->n_queries = s->n * (c->n_heads / c->n_kv_heads);
        s->first_token = first_seen(c, s->length - s->n);
        s->first_part = s->first_token / PART;
        s->n_parts = (s->length + PART - 1) / PART - s->first_part;
        /* A decode row is spread as widely as can be; a prompt has more and bigger tasks. */
        s->parts_per_task = s->n == 1 ? 1 : 8;
        s->first_task = n_tasks;
        s->n_tasks = (s->n_parts + s->parts_per_task - 1) / s->parts_per_task;
        s->unfinished = unfinished + i * c->n_kv_heads;
        for (int64_t h = 0; h < c->n_kv_heads; h++) s->unfinished[h] = (int32_t)s->n_tasks;
        n_tasks += s->n_tasks * c->n_kv_heads;
        n_results += s->n_tasks * c->n_kv_heads * s->n_queries * (2 + c->dim);
    }
    kept_results = grow(kept_results, &results_size, n_results * sizeof(float));
    if (!kept_results) return -1;
    float *results = kept_results;
    for (int64_t i = 0; i < c->n_spans; i++) {
        spans[i].results = results;
        results += spans[i].n_tasks * c->n_kv_heads * spans[i].n_queries * (2 + c->dim);
    }
    *planned = spans;
    return n_tasks;
}

typedef struct {
    const call *call;
    const span *spans;
    void (*run)(const call *, const span *, int64_t, int64_t);
} attention;

static void write_some(void *job, int64_t unit, int64_t next) {
    (void)next;
    const call *c = job;
    const int64_t end = (unit + 1) * WRITTEN;
    for (int64_t t = unit * WRITTEN; t < end && t < c->n_tokens; t++) write_kv(c, t);
}

static void attend_task(void *job, int64_t task, int64_t then) {
    const attention *a = job;
    int64_t low = 0, high = a->call->n_spans; /* the last span that begins at or before this task */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (a->spans[middle].first_task <= task)
            low = middle;
        else
            high = middle;
    }
    a->run(a->call, a->spans + low, task, then);
}

/* 0, or 1 where there was no memory for the intermediate results. */
int paged_attention(const call *c) {
    span *spans;
    const int64_t n_tasks = plan(c, &spans);
    if (n_tasks < 0) return 1;
    attention a = {
        c, spans,
        c->dim == 64    ? (c->bf16 ? task_bf16_64 : task_f32_64)
        : c->dim == 128 ? (c->bf16 ? task_bf16_128 : task_f32_128)
                        : (c->bf16 ? task_bf16 : task_f32),
    };
    if (c->k) team_run(write_some, (void *)c, (c->n_tokens + WRITTEN - 1) / WRITTEN, c->n_threads);
    team_run(attend_task, &a, n_tasks, c->n_threads);
    return 0;
}
