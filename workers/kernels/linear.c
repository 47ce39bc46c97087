// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n], summed in float32.
//
// The weights are packed as panels.h says. A panel is read from its first byte to its last for every
// tile of up to ROWS rows. Each output has one float32 accumulator that takes k in its order,
// whatever the number of rows or threads: a row's result does not depend on what else is in the
// batch. vdpbf16ps counts denormal numbers as zero. Of a gate and an up projection,
// activation(gate) * up never leaves the cache in float32.

#include "codes.h"
#include "lookup.h"
#include "panels.h"

#include "../team.h"

#define STEP 4  // steps along k between two bursts of prefetches
#define INPUT (4 << 20)  // bytes of x that the last-level cache keeps while the weights pass
#define UNPACKED 128  // rows for which codes are unpacked together
#define SHARES 8  // units wanted for each thread, so that all end at about the same time

// One step along k. `panel` and `x` are where it begins.
INLINE void multiply_step(const int rows, const int vectors, const int bf16, const char *x,
                          int64_t x_stride, const char *panel, vec sums[ROWS][VECTORS]) {
#if defined(__AVX512BF16__)
    if (bf16) {
        __m512bh w[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) w[v] = (__m512bh)_mm512_loadu_si512(panel + v * 64);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, x + r * x_stride, sizeof two);
            const __m512bh given = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++)
                sums[r][v] = (vec)_mm512_dpbf16_ps((__m512)sums[r][v], given, w[v]);
        }
        return;
    }
#else
    if (bf16) {
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            const uvec two = *(const uvec *)(panel + v * 4 * LANES);
            const vec even = (vec)(two << 16), odd = (vec)(two & 0xffff0000u);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                uint32_t given;
                memcpy(&given, x + r * x_stride, sizeof given);
                const uint32_t low = given << 16, high = given & 0xffff0000u;
                float first, second;
                memcpy(&first, &low, 4);
                memcpy(&second, &high, 4);
                sums[r][v] = fused(first - (vec){0}, even, sums[r][v]);
                sums[r][v] = fused(second - (vec){0}, odd, sums[r][v]);
            }
        }
        return;
    }
#endif
    vec w[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) w[v] = *(const vec *)(panel + v * 4 * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const vec given = *(const float *)(x + r * x_stride) - (vec){0};
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) sums[r][v] = fused(given, w[v], sums[r][v]);
    }
}

// One panel of `vectors` * LANES columns times `rows` rows; with the columns' scales, times those and
// added to what is there. Inlined with all three constant, so that all accumulators are registers.
// Strides are bytes.
INLINE void tile(const int rows, const int vectors, const int bf16, const char *x,
                 int64_t x_stride, const char *panel, int64_t steps, const float *scales,
                 float (*out)[PANEL], fetch next) {
    vec sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) sums[r][v] = (vec){0};
    for (int64_t first = 0; first < steps; first += STEP) {
        for (int64_t line = 0; line < next.lines; line++) {
            __builtin_prefetch(next.from, 0, 2);
            next.from += 64;
        }
        const int64_t last = least(first + STEP, steps);
        for (int64_t step = first; step < last; step++) {
            multiply_step(rows, vectors, bf16, x + step * 4, x_stride, panel, sums);
            panel += vectors * LANES * 4;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            vec *to = (vec *)(out[r] + v * LANES);
            *to = scales ? fused(sums[r][v], *(const vec *)(scales + v * LANES), *to) : sums[r][v];
        }
}

#define TILE(r, v)                                                           \
    case (r) * 4 + (v):                                                      \
        tile(r, v, bf16, x, x_stride, panel, steps, scales, out, next);      \
        break;
#define TILES(r) TILE(r, 1) TILE(r, 2) TILE(r, 3)

INLINE void run_tile(int64_t rows, int64_t vectors, const int bf16, const char *x,
                     int64_t x_stride, const char *panel, int64_t steps, const float *scales,
                     float (*out)[PANEL], fetch next) {
    switch (rows * 4 + vectors) {
        TILES(1) TILES(2) TILES(3) TILES(4)
#if ROWS == 8
        TILES(5) TILES(6) TILES(7) TILES(8)
#endif
    }
}

static void run_float(int64_t rows, int64_t vectors, const char *x, int64_t x_stride,
                      const char *panel, int64_t steps, const float *scales, float (*out)[PANEL],
                      fetch next) {
    run_tile(rows, vectors, 0, x, x_stride, panel, steps, scales, out, next);
}

static void run_bf16(int64_t rows, int64_t vectors, const char *x, int64_t x_stride,
                     const char *panel, int64_t steps, const float *scales, float (*out)[PANEL],
                     fetch next) {
    run_tile(rows, vectors, 1, x, x_stride, panel, steps, scales, out, next);
}

#include "unpack.h"

#define CODES_TILE(r, v)                                                      \
    case (r) * 4 + (v):                                                       \
        codes_tile(r, v, bits, more, w, x, row, panel, width, column, out, next);   \
        break;
#define CODES_TILES(r) CODES_TILE(r, 1) CODES_TILE(r, VECTORS)

/* A narrow panel is taken a vector at a time, for the sake of fewer tiles to compile. */
INLINE void run_codes_tile(int64_t rows, const int bits, const int more, const weight *w,
                           const inputs *x, int64_t row, const char *panel, int64_t width, float (*out)[PANEL],
                           fetch next) {
    const int64_t vectors = width == PANEL ? VECTORS : 1;
    for (int64_t column = 0; column < width; column += vectors * LANES) {
        switch (rows * 4 + vectors) {
            CODES_TILES(1) CODES_TILES(2) CODES_TILES(3) CODES_TILES(4)
        }
    }
}

#define RUN_CODES(name, bits, more)                                                      \
    static void name(int64_t rows, const weight *w, const inputs *x, int64_t row,        \
                     const char *panel, int64_t width, float (*out)[PANEL], fetch next) { \
        run_codes_tile(rows, bits, more, w, x, row, panel, width, out, next);            \
    }
RUN_CODES(run_codes4, 4, 0)
RUN_CODES(run_codes8, 8, 0)
RUN_CODES(run_more4, 4, 1)
RUN_CODES(run_more5, 5, 1)
RUN_CODES(run_more8, 8, 1)

INLINE float activated(float x, const int activation) {
    if (activation == SILU) {
        const float e = exp_negative(-fabsf(x));
        return x * (x < 0.0f ? e : 1.0f) / (1.0f + e);
    }
    if (activation == GELU_TANH)
        return 0.5f * x * (1.0f + tanh_of(0.79788456f * (x + 0.044715f * x * x * x)));
    return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

INLINE void gate(float *restrict gates, const float *restrict ups, int64_t n,
                 const int activation) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) gates[i] = activated(gates[i], activation) * ups[i];
}

static void gate_row(float *gates, const float *ups, int64_t n, int64_t activation) {
    if (activation == SILU)
        gate(gates, ups, n, SILU);
    else if (activation == GELU_TANH)
        gate(gates, ups, n, GELU_TANH);
    else
        gate(gates, ups, n, GELU);
}

// A row of a tile to where it belongs.
INLINE void put(const product *p, float *row, int64_t to, int64_t n, const int bf16) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec x = *(const vec *)(row + i);
        const int64_t kept = n - i;
        if (p->mode == ADD_FLOAT) {
            if (kept >= LANES) {
                *(vec *)((float *)p->out + to + i) += x * (float)p->scale;
            } else {
                for (int64_t j = i; j < n; j++)
                    ((float *)p->out)[to + j] += row[j] * (float)p->scale;
            }
        } else {
            store_some(p->out, to + i, x, kept, bf16 && p->mode == STORE);
        }
    }
}

// `rows` rows of a panel from `row` on, in float32, to where they belong. sums: [parts][rows][PANEL],
// `stride` rows a part.
INLINE void finish(const product *p, int64_t row, int64_t rows, int64_t panel, int64_t stride,
                   float (*sums)[PANEL]) {
    const weight *w = p->w;
    const int64_t column = panel * PANEL, parts = w->gated ? 2 : 1;
    const int64_t columns = least(PANEL, w->n - column), width = width_of(w->n, panel);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t part = 0; w->bias && part < parts; part++)
            for (int64_t c = 0; c < width; c++)
                sums[part * stride + r][c] += w->bias[column * parts + part * width + c];
        if (w->gated) gate_row(sums[r], sums[stride + r], width, p->activation);
        const int64_t to = (row + r) * p->out_stride + column;
        if (w->bf16)
            put(p, sums[r], to, columns, 1);
        else
            put(p, sums[r], to, columns, 0);
    }
}

typedef struct {
    const product *p;
    int64_t panels, blocks, threads;
    inputs x; // of a weight of codes
    tables t;
} job_of;

// A unit is a panel times a block of rows; all panels of a block come before the next block's.
static void multiply(void *job, int64_t unit, int64_t next_unit) {
    const job_of *j = job;
    const product *p = j->p;
    const weight *w = p->w;
    const int bf16 = (int)w->bf16;
    const int64_t size = bf16 ? 2 : 4, steps = steps_of(w->k, bf16), parts = w->gated ? 2 : 1;
    const int64_t block = unit / j->panels, panel = unit % j->panels;
    const int64_t from = first_of_block(p->m, j->blocks, block);
    const int64_t m = first_of_block(p->m, j->blocks, block + 1) - from;
    const int64_t width = width_of(w->n, panel), bytes = panel_bytes(w, width);
    const int64_t tiles = j->x.whole ? 1 : ceil_div(m, w->bits ? CODE_ROWS : ROWS);
    const int64_t bursts = w->bits ? padded_inputs(w->k) / CHUNK : ceil_div(steps, STEP);
    const char *at = (const char *)w->packed + panel_at(w, panel), *next = NULL;
    int64_t lines = 0;
    if (next_unit >= 0) {
        next = (const char *)w->packed + panel_at(w, next_unit % j->panels);
    } else if (p->then) {
        // This thread's region ends here; the next product's begins there.
        const int64_t me = (unit + 1) * j->threads / (j->panels * j->blocks) - 1;
        const int64_t first = ceil_div(p->then->n, PANEL) * most(me, 0) / j->threads;
        next = (const char *)p->then->packed + panel_at(p->then, first);
    }
    if (next) lines = ceil_div(panel_bytes(w, PANEL), 64 * bursts * tiles);
    if (j->x.whole) {
        float sums[parts * m][PANEL] __attribute__((aligned(64)));
        for (int64_t part = 0; part < parts; part++) {
            const fetch f = {next + part * bursts * lines * 64, lines};
            multiply_unpacked(w, &j->t, j->x.whole + from * j->x.stride, j->x.stride, m,
                              at + part * bytes, width, sums + part * m, f);
        }
        finish(p, from, m, panel, m, sums);
        return;
    }
    float sums[2][ROWS][PANEL] __attribute__((aligned(64)));
    const int more = w->zeros || w->minimums || w->block;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t row = from + first_of_tile(m, tiles, i);
        const int64_t rows = from + first_of_tile(m, tiles, i + 1) - row;
        const char *x = (const char *)p->x + row * p->x_stride * size;
        for (int64_t part = 0; part < parts; part++) {
            const fetch f = {next + (i * parts + part) * bursts * lines * 64, lines};
            if (w->bits)
                (w->bits == 5 ? run_more5
                 : more       ? (w->bits == 4 ? run_more4 : run_more8)
                              : (w->bits == 4 ? run_codes4 : run_codes8))(rows, w, &j->x, row, at + part * bytes, width,
                                              sums[part], f);
            else
                (bf16 ? run_bf16 : run_float)(rows, width / LANES, x, p->x_stride * size,
                                              at + part * bytes, steps, NULL, sums[part], f);
        }
        finish(p, row, rows, panel, ROWS, sums[0]);
    }
}

static int64_t multiply_one(const product *p, int64_t threads) {
    const weight *w = p->w;
    const int unpacked = w->bits && !w->round_inputs;
    const int64_t size = unpacked || (!w->bits && !w->bf16) ? 4 : w->bits ? 1 : 2;
    const int64_t panels = ceil_div(w->n, PANEL);
    // Blocks small enough to stay in the cache while all panels pass, and enough of them to share
    // out, but not so small that the weights would be read from memory too often.
    int64_t fitting = ceil_div(p->m * w->k * size, INPUT);
    if (unpacked) fitting = most(fitting, ceil_div(p->m, UNPACKED));
    const int64_t sharing = least(ceil_div(SHARES * threads, panels), p->m / (8 * ROWS));
    const int64_t blocks = most(1, most(fitting, sharing));
    job_of job = {p, panels, least(blocks, p->m), threads, {0}, {{0}, {0}}};
    if (!p->m) return 0;
    if (w->bits) {
        job.x = read_inputs(p, job.blocks, threads);
        if (!job.x.codes && !job.x.whole) return 1;
        if (unpacked) fill_tables(w, &job.t);
    }
    team_run(multiply, &job, panels * job.blocks, threads);
    return 0;
}

int64_t linear(const product *p, int64_t threads) {
    product one = *p;
    const int64_t size = p->w->bf16 && p->mode == STORE ? 2 : 4;
    for (const weight *w = p->w; w; w = w->below) {
        one.w = w;
        one.then = w->below ? w->below : p->then;
        if (multiply_one(&one, threads)) return 1;
        one.out = (char *)one.out + w->n * size;
    }
    return 0;
}
