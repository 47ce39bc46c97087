/* Paged attention on a CPU.
 *
 * One call does one layer of one forward pass: it scatters the new keys and values into the paged
 * pools (unless they are there), then attends, sharing both out over the threads of team.c. Work
 * comes as spans. A span is some consecutive positions of one sequence and the block table of that
 * sequence; a decode row is a span of one position.
 *
 * A span's context is cut into parts of PART tokens. A task takes one key-value head and one part
 * of a decode row, or several parts of a prompt, and reads each block once for all the queries that
 * share the head. Where decode rows that follow each other share the blocks of a part (a prefix in
 * common), the first one's task does it for all of them. Parts begin at multiples of PART,
 * whatever the batch and the number of threads, and are combined in order, so that a decode row's
 * result does not depend on what else is in the batch.
 *
 * What is done with a part is in attend.h, and for bfloat16 in attend_pairs.h.
 *
 * Pools are [n_blocks, n_kv_heads, block_size, dim], float32 or bfloat16, or codes of a byte each
 * (kv_codes.h). Those of a part are made numbers first, in this thread's memory, and then attended
 * to as if they had been stored so. `dim` is a multiple of 16.
 */
#include "paged_attention.h"

#include "../team.h"
#include "../vector.h"
#include "attend.h"
#include "attend_pairs.h"
#include "kv_codes.h"

#define WRITTEN 64 /* tokens that a thread writes at a time */

typedef struct {
    int64_t start, n, length;
    const int32_t *table;
    int64_t begin, end; /* positions that all of them see; `end` 0: each sees none behind it */
    int64_t n_queries, first_token, end_token; /* of the context, for any of the positions */
    int64_t first_part, n_parts, parts_per_task;
    int64_t n_shared; /* leading parts of a decode row that are also those of the span before */
    int64_t first_task, n_tasks; /* n_tasks for each key-value head, those of shared parts too */
    float *results;              /* [n_tasks, n_kv_heads, n_queries, 2 + dim] */
    int32_t *unfinished;         /* [n_kv_heads] tasks */
} span;

/* These grow and stay, for each calling thread: fresh pages cost more than a layer's attention. */
static __thread void *kept_spans, *kept_results;
static __thread size_t spans_size, results_size;

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

static void write_codes(const call *c, int64_t token) {
    const int64_t block = c->slots[token] / c->block_size, offset = c->slots[token] % c->block_size;
    float key[MAX_DIM], value[MAX_DIM];
    for (int64_t h = 0; h < c->n_kv_heads; h++) {
        const int64_t at = ((block * c->n_kv_heads + h) * c->block_size + offset) * c->dim;
        for (int64_t d = 0; d < c->dim; d += LANES) {
            const int bf16 = (int)c->bf16;
            *(vec *)(key + d) = load(c->k, token * c->k_token + h * c->k_head + d, bf16);
            *(vec *)(value + d) = load(c->v, token * c->v_token + h * c->v_head + d, bf16);
        }
        store_codes(&c->codes, key, value, c->dim, c->keys, c->values, at);
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
    if (*to > s->end_token) *to = s->end_token;
}

/* Where the tokens are that this thread attends to after part `part` of a task of span `s`; their
 * number, 0 if that is not known. `then`: the task it will take after, or -1. */
static int foresee(const call *c, const span *s, int64_t head, int64_t part, int64_t then,
                   int64_t *next) {
    int64_t from, to;
    if (part + 1 < s->n_parts && (part + 1) % s->parts_per_task) {
        part++;
    } else if (then < 0) {
        return 0;
    } else {
        while (then < s->first_task) s--;
        while (then >= s[1].first_task) s++;
        then += s->n_shared * c->n_kv_heads - s->first_task;
        part = then / c->n_kv_heads * s->parts_per_task;
        head = then % c->n_kv_heads;
    }
    bounds(s, part, &from, &to);
    locate(c, s, head, from, to, next);
    return (int)(to - from);
}

/* The `n` keys and values at `at` from codes to numbers, behind one another; `own`: where they are
 * then. Meanwhile those at `next` are fetched. */
static void load_codes(const call *c, const int64_t *at, int n, const int64_t *next, int n_next,
                       void *keys, void *values, int64_t *own) {
    const kv_codes *codes = &c->codes;
    for (int t = 0; t < ceil_div(n, LANES) * LANES; t++) own[t] = least(t, n - 1) * c->dim;
#define ROWS(KIND, BF16)                                                                        \
    load_rows(c->keys, codes->key_scales, codes->key_scale, at, n, c->dim, keys, KIND, BF16);   \
    load_rows(c->values, codes->value_scales, codes->value_scale, at, n, c->dim, values, KIND, BF16)
#define LOAD(KIND)     \
    if (c->bf16) {     \
        ROWS(KIND, 1); \
    } else {           \
        ROWS(KIND, 0); \
    }
    FOR_KIND(codes->kind, LOAD)
    for (int t = 0; t < n_next; t++)
        for (int64_t line = 0; line < c->dim; line += 64) {
            __builtin_prefetch((const char *)c->keys + next[t] + line);
            __builtin_prefetch((const char *)c->values + next[t] + line);
        }
}

/* What attend does, of codes. Not inlined: its memory is only for these. */
static __attribute__((noinline)) void attend_codes(
    const call *c, const int64_t *at, int n, const int64_t *next, int n_next, const float *q,
    int nq, const int *low, const int *high, const bias *biases, float *m, float *l, float *acc) {
    float keys[PART * MAX_DIM] __attribute__((aligned(64)));
    float values[PART * MAX_DIM] __attribute__((aligned(64)));
    int64_t own[PART];
    call read = *c;
    read.keys = keys, read.values = values;
    load_codes(c, at, n, next, n_next, keys, values, own);
    attend(&read, own, n, own, 0, q, nq, low, high, biases, m, l, acc, c->dim, 0);
}

#ifdef __AVX512BF16__
static __attribute__((noinline)) void attend_pairs_codes(
    const call *c, pairs *w, const int64_t *at, int n, const int64_t *next, int n_next, int nq,
    const int *low, const int *high, const bias *biases, int first, float *m, float *l,
    float *acc) {
    uint16_t keys[PART * MAX_DIM] __attribute__((aligned(64)));
    uint16_t values[PART * MAX_DIM] __attribute__((aligned(64)));
    int64_t own[PART];
    call read = *c;
    read.keys = keys, read.values = values;
    load_codes(c, at, n, next, n_next, keys, values, own);
    attend_pairs(&read, w, own, n, own, 0, nq, low, high, biases, first, m, l, acc, c->dim);
}

/* The query vectors of a span, and GROUP of zeros. */
INLINE void gather_pairs(const call *c, const span *s, int64_t head, uint32_t *q, int64_t dim) {
    const int64_t group = c->n_heads / c->n_kv_heads, nq = s->n_queries;
    for (int64_t i = 0; i < nq; i++) {
        const int64_t token = (s->start + i / group) * c->q_token;
        const int64_t at = token + (head * group + i % group) * c->q_head;
        memcpy(q + i * dim / 2, (const uint16_t *)c->q + at, dim * 2);
    }
    memset(q + nq * dim / 2, 0, GROUP * dim * 2);
}
#endif

/* What the queries of a span see of the tokens [from, to): [low, high) of them. */
INLINE void view(const call *c, const span *s, int64_t head, int64_t from, int64_t to, int *low,
                 int *high, bias *biases) {
    const int64_t group = c->n_heads / c->n_kv_heads;
    for (int64_t p = 0; p < s->n; p++) {
        const int64_t position = s->length - s->n + p;
        const int64_t first = least(first_seen(c, position), s->begin);
        const int64_t begin = least(to, most(first, from));
        const int64_t end = most(from, least(most(position + 1, s->end), to));
        for (int64_t g = 0; g < group; g++) {
            *low++ = (int)(begin - from);
            *high++ = (int)(end - from);
            biases->slope = c->slopes ? c->slopes[head * group + g] : 0.0f;
            biases++->first = (float)(from - position);
        }
    }
}

INLINE void end_task(const call *c, const span *s, int64_t head, const int bf16) {
    if (__atomic_sub_fetch(s->unfinished + head, 1, __ATOMIC_ACQ_REL) == 0)
        finish(c, s, head, bf16);
}

/* One task of one span. `of_span` counts the span's tasks, those of shared parts too; `then` is the
 * task of all that comes after it, or -1. */
INLINE void run_alone(const call *c, const span *s, int64_t of_span, int64_t then,
                      const int64_t dim, const int bf16) {
    const int64_t head = of_span % c->n_kv_heads, run = of_span / c->n_kv_heads;
    const int64_t nq = s->n_queries;
    float q[QUERIES * MAX_DIM] __attribute__((aligned(64)));
    float later[QUERIES * (2 + MAX_DIM)] __attribute__((aligned(64)));
    float *m = s->results + of_span * nq * (2 + dim), *l = m + nq, *acc = l + nq;
    float *m2 = later, *l2 = m2 + nq, *acc2 = l2 + nq;

#ifdef __AVX512BF16__
    pairs w;
    if (bf16) gather_pairs(c, s, head, w.q, dim);
    const int paired = bf16;
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
        view(c, s, head, from, to, low, high, biases);
        int n_next = foresee(c, s, head, part, then, next);
#ifdef __AVX512BF16__
        if (paired && c->codes.kind) {
            attend_pairs_codes(c, &w, at, (int)(to - from), next, n_next, (int)nq, low, high,
                               biases, i == 0, m, l, acc);
            continue;
        }
        if (paired) {
            attend_pairs(c, &w, at, (int)(to - from), next, n_next, (int)nq, low, high, biases,
                         i == 0, m, l, acc, dim);
            continue;
        }
#endif
        float *of_m = i ? m2 : m, *of_l = i ? l2 : l, *of_acc = i ? acc2 : acc;
        if (c->codes.kind)
            attend_codes(c, at, (int)(to - from), next, n_next, q, (int)nq, low, high, biases, of_m,
                         of_l, of_acc);
        else
            attend(c, at, (int)(to - from), next, n_next, q, (int)nq, low, high, biases, of_m, of_l,
                   of_acc, dim, bf16);
        if (i) merge(nq, dim, m, l, acc, m2, l2, acc2);
    }
    end_task(c, s, head, bf16);
}

#ifdef __AVX512BF16__
/* The same task of `n_rows` decode rows that share its part. */
INLINE void run_together(const call *c, const span *s, int64_t n_rows, int64_t of_span,
                         int64_t then, const int64_t dim) {
    const int64_t head = of_span % c->n_kv_heads, part = of_span / c->n_kv_heads;
    const int64_t each = s->n_queries, nq = n_rows * each;
    float m[QUERIES], l[QUERIES], acc[QUERIES * MAX_DIM] __attribute__((aligned(64)));
    int low[QUERIES], high[QUERIES];
    bias biases[QUERIES];
    int64_t from, to, at[PART], next[PART];
    pairs w;
    bounds(s, part, &from, &to);
    locate(c, s, head, from, to, at);
    for (int64_t r = 0, i = 0; r < n_rows; r++, i += each) {
        view(c, s + r, head, from, to, low + i, high + i, biases + i);
        gather_pairs(c, s + r, head, w.q + i * dim / 2, dim);
    }
    const int n_next = foresee(c, s, head, part, then, next);
    if (c->codes.kind)
        attend_pairs_codes(c, &w, at, (int)(to - from), next, n_next, (int)nq, low, high, biases, 1,
                           m, l, acc);
    else
        attend_pairs(c, &w, at, (int)(to - from), next, n_next, (int)nq, low, high, biases, 1, m, l,
                     acc, dim);
    for (int64_t r = 0; r < n_rows; r++) {
        float *results = s[r].results + of_span * each * (2 + dim);
        memcpy(results, m + r * each, each * 4);
        memcpy(results + each, l + r * each, each * 4);
        memcpy(results + 2 * each, acc + r * each * dim, each * dim * 4);
        end_task(c, s + r, head, 1);
    }
}
#endif

INLINE void run_task(const call *c, const span *s, int64_t task, int64_t then, const int64_t dim,
                     const int bf16) {
    const int64_t of_span = task - s->first_task + s->n_shared * c->n_kv_heads;
    int64_t n_rows = 1;
    while (s[n_rows].n_shared > of_span / c->n_kv_heads) n_rows++;
#ifdef __AVX512BF16__
    if (bf16 && n_rows > 1) {
        run_together(c, s, n_rows, of_span, then, dim);
        return;
    }
#endif
    for (; n_rows > 0; n_rows--, s++)
        run_alone(c, s, of_span, n_rows > 1 ? -1 : then, dim, bf16);
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

/* How many leading parts of a decode row are also those of the one before it: whole parts, in the
 * same blocks, that both see from the first token. */
static int64_t parts_shared(const call *c, const span *s, const span *before) {
    if (s->n != 1 || before->n != 1 || s->first_part != before->first_part) return 0;
    if (most(s->first_token, before->first_token) > s->first_part * PART) return 0;
    const int64_t both = least(s->length, before->length) / PART * PART;
    int64_t block = s->first_part * PART / c->block_size;
    while ((block + 1) * c->block_size <= both && s->table[block] == before->table[block]) block++;
    return most(0, block * c->block_size / PART - s->first_part);
}

/* Divides the spans into tasks; their number, or -1 without memory. */
static int64_t plan(const call *c, span **planned) {
    const size_t bytes = (c->n_spans + 1) * sizeof(span) + c->n_spans * c->n_kv_heads * 4;
    span *spans = kept_spans = grow(kept_spans, &spans_size, bytes);
    if (!spans) return -1;
    int32_t *unfinished = (int32_t *)(spans + c->n_spans + 1);
    int64_t n_tasks = 0, n_results = 0, n_together = 0;
    const int64_t together = QUERIES / (c->n_heads / c->n_kv_heads); /* rows at most */
    for (int64_t i = 0; i < c->n_spans; i++) {
        const int64_t *given = c->spans + 6 * i;
        span *s = spans + i;
        s->start = given[0], s->n = given[1], s->length = given[2];
        s->table = (const int32_t *)(intptr_t)given[3];
        s->n_queries = s->n * (c->n_heads / c->n_kv_heads);
        s->end = given[5];
        s->begin = s->end ? given[4] : s->length;
        s->first_token = least(first_seen(c, s->length - s->n), s->begin);
        s->end_token = most(s->length, s->end);
        s->first_part = s->first_token / PART;
        s->n_parts = (s->end_token + PART - 1) / PART - s->first_part;
        /* A decode row is spread as widely as can be; a prompt has more and bigger tasks. */
        s->parts_per_task = s->n == 1 ? 1 : 8;
        s->n_shared = i && n_together < together ? parts_shared(c, s, s - 1) : 0;
        n_together = s->n_shared ? n_together + 1 : 1;
        s->first_task = n_tasks;
        s->n_tasks = (s->n_parts + s->parts_per_task - 1) / s->parts_per_task;
        s->unfinished = unfinished + i * c->n_kv_heads;
        for (int64_t h = 0; h < c->n_kv_heads; h++) s->unfinished[h] = (int32_t)s->n_tasks;
        n_tasks += (s->n_tasks - s->n_shared) * c->n_kv_heads;
        n_results += s->n_tasks * c->n_kv_heads * s->n_queries * (2 + c->dim);
    }
    spans[c->n_spans] = (span){.first_task = n_tasks}; /* ends the last one's tasks */
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

static void write_some_codes(void *job, int64_t unit, int64_t next) {
    (void)next;
    const call *c = job;
    const int64_t end = (unit + 1) * WRITTEN;
    for (int64_t t = unit * WRITTEN; t < end && t < c->n_tokens; t++) write_codes(c, t);
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
    if (c->k)
        team_run(c->codes.kind ? write_some_codes : write_some, (void *)c,
                 (c->n_tokens + WRITTEN - 1) / WRITTEN, c->n_threads);
    team_run(attend_task, &a, n_tasks, c->n_threads);
    return 0;
}
