// One forward pass of a decoder over packed tokens, in one call: embedding, layers, logits.
//
// The residual stream stays in float32. What a matrix is multiplied with, queries, keys and values
// are of the model's dtype, rounded once where they are made. A token's numbers depend on nothing
// else in the batch.
//
// A layer is five jobs for the threads of team.c: queries, keys and values; attention; its output;
// gate and up; down. What lies between (norms, rotary embedding, the write into the cache) is so
// little for a batch of decodes that the calling thread does it alone. Behind the attention of the
// last layer only the tokens go on whose logits are wanted.
//
// Where several ranks share the model, heads, columns and vocabulary are a rank's own. The pass is
// then cut into stages, each a call, that leave a partial result for the caller to sum over the
// ranks: the embedding, and the output of each half of a layer (attention, MLP). What a stage needs
// of the one before stays in this thread's memory.

#include "../attention/kv_codes.h"
#include "../attention/paged_attention.h"
#include "../kernels/linear.h"
#include "../team.h"
#include "../vector.h"

#define NORMS 32 /* rows that a thread norms at a time */
#define TURNS 16 /* tokens that a thread rotates at a time */
#define MOST_ROPES 2

/* Mirrored by native.py, as are the structures after it; all fields are 64 bits wide.
 * Norms are NULL where the model has none there. */
typedef struct {
    weight qkv, out, gate_up, down;
    const float *input_norm, *query_norm, *key_norm; /* before attention */
    const float *attention_norm;                     /* of attention's output */
    const float *mlp_norm, *mlp_output_norm;         /* before and after the MLP */
    void *keys, *values;                             /* pools, see paged_attention.c */
    kv_codes codes;
    int64_t window;                                  /* 0: none */
    int64_t rope;                                    /* which of the rotary embeddings; -1: none */
} block;

typedef struct {
    const void *embedding; /* [n_embedded, hidden], of the ids from first_embedded on; or NULL, and */
    const weight *coded_embedding; /* the same in codes */
    const block *blocks;
    const float *final_norm;
    weight head;
    const float *frequencies[MOST_ROPES]; /* [rotary / 2] radians a position */
    double rope_scales[MOST_ROPES];       /* of cosine and sine */
    int64_t n_blocks, n_ropes, hidden, intermediate, n_heads, n_kv_heads, dim, rotary;
    int64_t vocab, n_logits, first_embedded, n_embedded; /* of vocab ids */
    int64_t activation, bf16;
    double eps, scale, softcap;  /* scale and soft cap of attention; 0: no cap */
    double embedding_scale, residual_scale, logit_scale, logit_softcap;
} decoder;

typedef struct {
    const int64_t *ids, *positions, *slots; /* [n_tokens] */
    const int64_t *spans;                   /* [n_spans, 6], see paged_attention.h */
    const int64_t *wanted;                  /* [n_wanted] tokens whose logits are asked for */
    float *logits;                          /* [n_wanted, n_logits] */
    const int64_t *inserted_at; /* [n_inserted] tokens, and what stands in the place of their */
    const float *inserted; /* embeddings, [n_inserted, 1 + n_added, hidden]; what is behind it is */
                           /* added to what the first n_added layers make */
    const int64_t *each; /* [rotary / 2, n_tokens] positions by frequency; NULL: `positions` */
    void *hidden; /* [n_wanted, hidden] of the model's dtype, what the head takes; NULL: not kept */
    float *partial; /* [n_tokens, hidden], summed over the ranks between stages; NULL: one rank */
    int64_t n_tokens, n_spans, n_wanted, n_inserted, n_added, block_size, n_threads;
    int64_t stage; /* 0: embed; i: half i - 1; the last, after all halves: logits */
} step;

enum { DONE, NO_MEMORY, BAD_ID };

typedef struct {
    const decoder *d;
    const step *s;
    const block *b;
    int64_t n;        /* rows of `residual`, `mixed`, `gated` and `branch`: first all n_tokens */
    const int64_t *wanted; /* which of them; NULL: all, in their order */
    float *residual;  /* [n_tokens, hidden] */
    void *x;          /* [n_tokens, hidden], normed */
    float *qkv;       /* [n_tokens, (n_heads + 2 n_kv_heads) * dim] */
    void *q, *mixed;  /* [n_tokens, n_heads * dim], before and after attention */
    void *gated;      /* [n_tokens, intermediate] */
    float *branch;    /* [n_tokens, hidden], what is normed before it is added */
    float *residual_left; /* [n_wanted, hidden], and */
    void *mixed_left;     /* [n_wanted, n_heads * dim], for when other tokens are left out */
    float *turns[MOST_ROPES]; /* [n_tokens, 2, rotary / 2], cosines and sines */
    const float *norm;        /* of the job at hand */
} pass;

INLINE void norm_row(const float *x, const float *norm, int64_t n, float eps, float *out) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = norm[i] * (x[i] * scale);
}

INLINE void store_row(const float *x, int64_t n, void *out, int64_t at, const int bf16) {
    for (int64_t i = 0; i < n; i += LANES) {
        if (n - i >= LANES)
            store_some(out, at + i, *(const vec *)(x + i), LANES, bf16);
        else
            for (int64_t j = i; j < n; j++) store(out, at + j, x[j], bf16);
    }
}

static void embed(void *job, int64_t unit, int64_t next) {
    (void)next;
    const pass *p = job;
    const decoder *d = p->d;
    const int64_t end = least((unit + 1) * NORMS, p->s->n_tokens), half = d->rotary / 2;
    for (int64_t t = unit * NORMS; t < end; t++) {
        float *row = (p->s->partial ? p->s->partial : p->residual) + t * d->hidden;
        const int64_t id = p->s->ids[t] - d->first_embedded;
        const int here = id >= 0 && id < d->n_embedded;
        if (!here) memset(row, 0, (size_t)d->hidden * 4);
        if (here && !d->embedding) look_up(d->coded_embedding, &id, 1, row);
        for (int64_t i = 0; here && d->embedding && i < d->hidden; i += LANES) {
            if (d->hidden - i >= LANES) {
                const int64_t at = id * d->hidden + i;
                const vec found = load(d->embedding, at, (int)d->bf16);
                memcpy(row + i, &found, sizeof found);
            } else {
                for (int64_t j = i; j < d->hidden; j++) {
                    const int64_t at = id * d->hidden + j;
                    uint32_t bits = d->bf16 ? (uint32_t)((const uint16_t *)d->embedding)[at] << 16
                                            : ((const uint32_t *)d->embedding)[at];
                    memcpy(row + j, &bits, 4);
                }
            }
        }
        for (int64_t i = 0; i < d->hidden; i++) row[i] *= (float)d->embedding_scale;
        for (int64_t r = 0; r < d->n_ropes; r++) {
            float *turn = p->turns[r] + t * 2 * half;
            for (int64_t i = 0; i < half; i++) {
                const int64_t *at = p->s->each ? p->s->each + i * p->s->n_tokens : p->s->positions;
                const float angle = (float)at[t] * d->frequencies[r][i];
                turn[i] = cosf(angle) * (float)d->rope_scales[r];
                turn[half + i] = sinf(angle) * (float)d->rope_scales[r];
            }
        }
    }
}

/* Puts rows in the place of embeddings, or adds those for layer `at` - 1 to what it made. */
static void insert(pass *p, int64_t at) {
    const int64_t n = p->d->hidden, width = (1 + p->s->n_added) * n;
    for (int64_t i = 0; at <= p->s->n_added && i < p->s->n_inserted; i++) {
        const float *from = p->s->inserted + i * width + at * n;
        float *to = p->residual + p->s->inserted_at[i] * n;
        for (int64_t j = 0; j < n; j++) to[j] = at ? to[j] + from[j] : from[j];
    }
}

/* x = norm(residual). */
static void norm_residual(void *job, int64_t unit, int64_t next) {
    (void)next;
    const pass *p = job;
    const int64_t n = p->d->hidden, end = least((unit + 1) * NORMS, p->n);
    float row[n] __attribute__((aligned(64)));
    for (int64_t t = unit * NORMS; t < end; t++) {
        norm_row(p->residual + t * n, p->norm, n, (float)p->d->eps, row);
        if (p->d->bf16)
            store_row(row, n, p->x, t * n, 1);
        else
            store_row(row, n, p->x, t * n, 0);
    }
}

/* residual += what the ranks summed. */
static void add_partial(void *job, int64_t unit, int64_t next) {
    (void)next;
    const pass *p = job;
    const int64_t n = p->d->hidden, end = least((unit + 1) * NORMS, p->s->n_tokens) * n;
    const float scale = (float)p->d->residual_scale;
#pragma omp simd
    for (int64_t i = unit * NORMS * n; i < end; i++) p->residual[i] += scale * p->s->partial[i];
}

/* residual += norm(branch). */
static void add_normed(void *job, int64_t unit, int64_t next) {
    (void)next;
    const pass *p = job;
    const int64_t n = p->d->hidden, end = least((unit + 1) * NORMS, p->n);
    const float scale = (float)p->d->residual_scale;
    float row[n] __attribute__((aligned(64)));
    for (int64_t t = unit * NORMS; t < end; t++) {
        norm_row(p->branch + t * n, p->norm, n, (float)p->d->eps, row);
        float *to = p->residual + t * n;
        for (int64_t i = 0; i < n; i++) to[i] += scale * row[i];
    }
}

/* The rotary embedding of one head, in the form that pairs element i with i + rotary / 2. */
INLINE void turn_head(float *x, const float *turn, int64_t half) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float low = x[i], high = x[half + i];
        x[i] = low * turn[i] - high * turn[half + i];
        x[half + i] = high * turn[i] + low * turn[half + i];
    }
}

/* Queries, keys: normed, rotated; keys and values into the cache. */
INLINE void place(const pass *p, int64_t unit, const int bf16, const int coded) {
    const decoder *d = p->d;
    const block *b = p->b;
    const step *s = p->s;
    const int64_t dim = d->dim, end = least((unit + 1) * TURNS, s->n_tokens);
    const int64_t n_turned = d->n_heads + d->n_kv_heads, width = (n_turned + d->n_kv_heads) * dim;
    for (int64_t t = unit * TURNS; t < end; t++) {
        const int64_t slot = s->slots[t] % s->block_size, at = s->slots[t] / s->block_size;
        const int64_t token = (at * d->n_kv_heads * s->block_size + slot) * dim;
        float *row = p->qkv + t * width;
        for (int64_t h = 0; h < n_turned; h++) {
            float *x = row + h * dim;
            const float *norm = h < d->n_heads ? b->query_norm : b->key_norm;
            if (norm) norm_row(x, norm, dim, (float)d->eps, x);
            if (b->rope >= 0) turn_head(x, p->turns[b->rope] + t * d->rotary, d->rotary / 2);
        }
        store_row(row, d->n_heads * dim, p->q, t * d->n_heads * dim, bf16);
        for (int64_t h = 0; h < d->n_kv_heads; h++) {
            const int64_t to = token + h * s->block_size * dim;
            const float *key = row + (d->n_heads + h) * dim, *value = key + d->n_kv_heads * dim;
            if (coded) {
                store_codes(&b->codes, key, value, dim, b->keys, b->values, to);
            } else {
                store_row(key, dim, b->keys, to, bf16);
                store_row(value, dim, b->values, to, bf16);
            }
        }
    }
}

#define PLACE(NAME, BF16, CODED)                             \
    static void NAME(void *job, int64_t unit, int64_t next) { \
        (void)next;                                           \
        place(job, unit, BF16, CODED);                        \
    }
PLACE(place_float, 0, 0)
PLACE(place_bf16, 1, 0)
PLACE(place_float_codes, 0, 1)
PLACE(place_bf16_codes, 1, 1)

/* The wanted rows, normed, into x. */
static void norm_wanted(void *job, int64_t unit, int64_t next) {
    (void)next;
    const pass *p = job;
    const int64_t n = p->d->hidden, end = least((unit + 1) * NORMS, p->s->n_wanted);
    float row[n] __attribute__((aligned(64)));
    for (int64_t i = unit * NORMS; i < end; i++) {
        const int64_t from = p->wanted ? p->wanted[i] : i;
        norm_row(p->residual + from * n, p->norm, n, (float)p->d->eps, row);
        if (p->d->bf16)
            store_row(row, n, p->x, i * n, 1);
        else
            store_row(row, n, p->x, i * n, 0);
    }
}

static void cap_logits(void *job, int64_t unit, int64_t next) {
    (void)next;
    const pass *p = job;
    const float scale = (float)p->d->logit_scale, cap = (float)p->d->logit_softcap;
    float *row = p->s->logits + unit * p->d->n_logits;
#pragma omp simd
    for (int64_t i = 0; i < p->d->n_logits; i++) row[i] *= scale;
    if (cap != 0.0f) {
#pragma omp simd
        for (int64_t i = 0; i < p->d->n_logits; i++) row[i] = cap * tanh_of(row[i] / cap);
    }
}

static void norm_into_x(pass *p, const float *norm) {
    p->norm = norm;
    team_run(norm_residual, p, ceil_div(p->n, NORMS), p->s->n_threads);
}

/* residual += x * w, with a norm of that in between where there is one; or what the ranks sum. */
static int add_product(pass *p, const weight *w, const void *x, const float *norm,
                       const weight *then) {
    const int64_t hidden = p->d->hidden, n_threads = p->s->n_threads;
    product made = {w, x, p->residual, w->k, hidden, p->n, ADD_FLOAT, 0,
                    p->d->residual_scale, then};
    float *const apart = p->s->partial ? p->s->partial : norm ? p->branch : NULL;
    if (apart) made.out = apart, made.mode = STORE_FLOAT, made.scale = 1.0;
    if (linear(&made, n_threads)) return NO_MEMORY;
    if (p->s->partial || !norm) return DONE;
    p->norm = norm;
    team_run(add_normed, p, ceil_div(p->n, NORMS), n_threads);
    return DONE;
}

/* residual += what the ranks summed of a stage. */
static void add_summed(pass *p, int64_t stage) {
    const block *b = p->d->blocks + (stage - 1) / 2;
    p->norm = stage == 0 ? NULL : stage % 2 ? b->attention_norm : b->mlp_output_norm;
    p->branch = p->s->partial;
    if (stage == 0)
        memcpy(p->residual, p->s->partial, (size_t)(p->s->n_tokens * p->d->hidden) * 4);
    else
        team_run(p->norm ? add_normed : add_partial, p, ceil_div(p->n, NORMS),
                 p->s->n_threads);
    if (stage % 2 == 0) insert(p, stage / 2);
}

/* Leaves out the tokens whose logits are not wanted. */
static void leave_wanted(pass *p) {
    const int64_t hidden = p->d->hidden, bytes = p->d->n_heads * p->d->dim * (p->d->bf16 ? 2 : 4);
    for (int64_t i = 0; i < p->s->n_wanted; i++) {
        const int64_t from = p->s->wanted[i];
        memcpy(p->residual_left + i * hidden, p->residual + from * hidden, (size_t)hidden * 4);
        memcpy((char *)p->mixed_left + i * bytes, (char *)p->mixed + from * bytes, (size_t)bytes);
    }
    p->residual = p->residual_left;
    p->mixed = p->mixed_left;
    p->n = p->s->n_wanted;
    p->wanted = NULL;
}

/* `last`: of all layers, and what is not wanted ends here. */
static int attend(pass *p, int last) {
    const decoder *d = p->d;
    const step *s = p->s;
    const block *b = p->b;
    const int64_t n = s->n_tokens, wide = d->n_heads * d->dim;

    norm_into_x(p, b->input_norm);
    const int64_t outputs = wide + 2 * d->n_kv_heads * d->dim;
    const product qkv = {&b->qkv, p->x,    p->qkv, d->hidden, outputs, n,
                         STORE_FLOAT, 0, 1.0,    &b->out};
    if (linear(&qkv, s->n_threads)) return NO_MEMORY;
    unit_work *const place_some = b->codes.kind ? (d->bf16 ? place_bf16_codes : place_float_codes)
                                                : (d->bf16 ? place_bf16 : place_float);
    team_run(place_some, p, ceil_div(n, TURNS), s->n_threads);
    if (last && !s->n_wanted) return DONE;
    const call attention = {
        .keys = b->keys, .values = b->values, .q = p->q, .out = p->mixed, .spans = s->spans,
        .q_token = wide, .q_head = d->dim, .n_tokens = n, .n_spans = s->n_spans,
        .n_heads = d->n_heads, .n_kv_heads = d->n_kv_heads, .dim = d->dim,
        .block_size = s->block_size, .window = b->window, .bf16 = d->bf16,
        .n_threads = s->n_threads, .scale = d->scale, .softcap = d->softcap, .codes = b->codes,
    };
    if (paged_attention(&attention)) return NO_MEMORY;
    if (last && s->n_wanted < n) leave_wanted(p);
    return add_product(p, &b->out, p->mixed, b->attention_norm, &b->gate_up);
}

static int run_mlp(pass *p, const weight *then) {
    const decoder *d = p->d;
    const block *b = p->b;
    norm_into_x(p, b->mlp_norm);
    const product gated = {&b->gate_up, p->x,  p->gated,      d->hidden, d->intermediate,
                           p->n,        STORE, d->activation, 1.0,       &b->down};
    if (linear(&gated, p->s->n_threads)) return NO_MEMORY;
    return add_product(p, &b->down, p->gated, b->mlp_output_norm, then);
}

/* Parts of one allocation, each beginning on a cache line. */
static void *take(char **from, int64_t bytes) {
    void *taken = *from;
    *from += ceil_div(bytes, 64) * 64;
    return taken;
}

/* The spans' block tables and lengths and the wanted tokens must be right; ids are checked.
 * DONE, NO_MEMORY for the intermediate results, or BAD_ID, and then nothing was done. */
int decoder_run(const decoder *d, const step *s) {
    static __thread void *kept;
    static __thread size_t kept_size;
    for (int64_t t = 0; t < s->n_tokens; t++)
        if (s->ids[t] < 0 || s->ids[t] >= d->vocab) return BAD_ID;

    const int64_t n = s->n_tokens, size = d->bf16 ? 2 : 4, wide = d->n_heads * d->dim;
    const int64_t qkv = wide + 2 * d->n_kv_heads * d->dim;
    const int64_t row = 4 * d->hidden * 2 + size * d->hidden + 4 * qkv + 2 * size * wide +
                        size * d->intermediate + 4 * d->rotary * MOST_ROPES;
    const int64_t left = s->n_wanted * (4 * d->hidden + size * wide);
    kept = grow(kept, &kept_size, (size_t)(n * row + left + 64 * (9 + MOST_ROPES)));
    if (!kept) return NO_MEMORY;
    char *from = kept;
    pass p = {.d = d, .s = s, .n = n, .wanted = s->wanted};
    p.residual = take(&from, n * d->hidden * 4);
    p.branch = take(&from, n * d->hidden * 4);
    p.x = take(&from, n * d->hidden * size);
    p.qkv = take(&from, n * qkv * 4);
    p.q = take(&from, n * wide * size);
    p.mixed = take(&from, n * wide * size);
    p.gated = take(&from, n * d->intermediate * size);
    p.residual_left = take(&from, s->n_wanted * d->hidden * 4);
    p.mixed_left = take(&from, s->n_wanted * wide * size);
    for (int64_t r = 0; r < MOST_ROPES; r++) p.turns[r] = take(&from, n * d->rotary * 4);

    const int64_t last = 2 * d->n_blocks + 1;
    const int64_t stage = s->partial ? s->stage : 0, until = s->partial ? s->stage : last;
    if (stage > 0) add_summed(&p, stage - 1);
    if (stage == 0) team_run(embed, &p, ceil_div(n, NORMS), s->n_threads);
    if (stage == 0 && !s->partial) insert(&p, 0);
    for (int64_t half = stage > 0 ? stage - 1 : 0; half < least(until, last - 1); half++) {
        p.b = d->blocks + half / 2;
        const int whole_last =
            !s->partial && half / 2 + 1 == d->n_blocks && s->n_added < d->n_blocks;
        if (half % 2 ? run_mlp(&p, half + 2 < last ? &p.b[1].qkv : &d->head)
                     : attend(&p, whole_last))
            return NO_MEMORY;
        if (whole_last && !s->n_wanted) return DONE;
        if (half % 2 && !s->partial) insert(&p, half / 2 + 1);
    }
    if (until < last) return DONE;
    p.norm = d->final_norm;
    if (s->hidden) p.x = s->hidden;
    team_run(norm_wanted, &p, ceil_div(s->n_wanted, NORMS), s->n_threads);
    const product logits = {&d->head,     p.x,         s->logits, d->hidden, d->n_logits,
                            s->n_wanted, STORE_FLOAT, 0,         1.0,       NULL};
    if (linear(&logits, s->n_threads)) return NO_MEMORY;
    if (d->logit_scale != 1.0 || d->logit_softcap != 0.0)
        team_run(cap_logits, &p, s->n_wanted, s->n_threads);
    return DONE;
}
