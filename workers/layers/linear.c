// out[m, n] = round_to_bfloat16(sum over k of x[m, k] * w[n, k] + bias[n]), summed in float32.
//
// The weights are packed once into panels of 48 output columns (the last one narrower, in steps of
// 16). A panel is [k / 2][columns][2]: vdpbf16ps multiplies a pair of k of 16 columns with one pair
// of k of a row, so a panel is read from its first byte to its last for every tile of up to 8 rows.
// Each output has one float32 accumulator that takes its pairs in the order of k, whatever the
// number of rows or threads: a row's result does not depend on what else is in the batch. The
// instruction counts denormal numbers as zero.

#include <stddef.h>
#include <stdint.h>

#ifndef __AVX512BF16__
#error "the processor (or the compiler) has no AVX512_BF16 instructions"
#endif

#include <immintrin.h>

#define LANES 16
#define PANEL 48
#define ROWS 8
#define STEP 4  // pairs of k between two bursts of prefetches
#define INPUT (4 << 20)  // bytes of x that the last-level cache keeps while the weights pass
#define SHARES 8  // units wanted for each thread, so that all end at about the same time

typedef uint16_t bf16;

typedef struct {
    const bf16 *weight;  // packed
    const float *bias;   // [n padded to LANES], or NULL
    int64_t n, k;        // k is even
} layer;

// team_run of team.c.
typedef void unit_work(void *job, int64_t unit, int64_t next);
typedef void runner(unit_work *work, void *job, int64_t units, int64_t threads);

static runner *team_run;

void use_team(runner *run) { team_run = run; }

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t packed_size(int64_t n, int64_t k) { return ceil_div(n, LANES) * LANES * (k + k % 2); }

typedef struct {
    const bf16 *weight;
    int64_t stride, n, k;
    bf16 *packed;
} packing;

static void pack_panel(void *job, int64_t unit, int64_t next) {
    (void)next;
    const packing *p = job;
    int64_t first = unit * PANEL, pairs = ceil_div(p->k, 2);
    int64_t width = min(PANEL, ceil_div(p->n - first, LANES) * LANES);
    bf16 *panel = p->packed + first * pairs * 2;
    for (int64_t column = 0; column < width; column++) {
        const bf16 *row = p->weight + (first + column) * p->stride;
        for (int64_t at = 0; at < 2 * pairs; at++)
            panel[(at / 2 * width + column) * 2 + at % 2] =
                first + column < p->n && at < p->k ? row[at] : 0;
    }
}

// weight [n, k], rows `stride` apart -> packed. Columns and the k that were added are zero.
void pack(const bf16 *weight, int64_t stride, int64_t n, int64_t k, bf16 *packed, int64_t threads) {
    packing job = {weight, stride, n, k, packed};
    team_run(pack_panel, &job, ceil_div(n, PANEL), threads);
}

// Prefetches are spread over the tiles that use a panel: each fetches its share of the next one.
typedef struct {
    const char *from;
    int64_t lines;  // to fetch with each STEP pairs of k
} fetch;

// One panel of `vectors` * 16 columns times `rows` rows. Inlined with both constant, so that all
// accumulators are registers.
static inline __attribute__((always_inline)) void tile(
    const int rows, const int vectors, const bf16 *x, int64_t x_stride, const bf16 *panel,
    int64_t k, const float *bias, bf16 *out, int64_t out_stride, int64_t columns, fetch next) {
    __m512 sums[ROWS][PANEL / LANES];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_setzero_ps();

    int64_t pairs = k / 2;
    for (int64_t first = 0; first < pairs; first += STEP) {
        for (int64_t line = 0; line < next.lines; line++) {
            _mm_prefetch(next.from, _MM_HINT_T1);
            next.from += 64;
        }
        int64_t last = min(first + STEP, pairs);
        for (int64_t pair = first; pair < last; pair++) {
            __m512bh w[PANEL / LANES];
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) {
                w[v] = (__m512bh)_mm512_loadu_si512(panel);
                panel += 2 * LANES;
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int32_t two;
                __builtin_memcpy(&two, x + r * x_stride + 2 * pair, sizeof two);
                __m512bh given = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 3
                for (int v = 0; v < vectors; v++)
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], given, w[v]);
            }
        }
    }
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        int64_t left = columns - v * LANES;
        __mmask16 kept = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 added = bias ? _mm512_loadu_ps(bias + v * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            __m512 sum = bias ? _mm512_add_ps(sums[r][v], added) : sums[r][v];
            _mm256_mask_storeu_epi16(out + r * out_stride + v * LANES, kept,
                                     (__m256i)_mm512_cvtneps_pbh(sum));
        }
    }
}

#define TILE(r, v)                                                                               \
    case (r) * 4 + (v):                                                                          \
        tile(r, v, x, x_stride, panel, k, bias, out, out_stride, columns, next);                 \
        break;
#define TILES(r) TILE(r, 1) TILE(r, 2) TILE(r, 3)

static void run_tile(int64_t rows, int64_t vectors, const bf16 *x, int64_t x_stride,
                     const bf16 *panel, int64_t k, const float *bias, bf16 *out,
                     int64_t out_stride, int64_t columns, fetch next) {
    switch (rows * 4 + vectors) {
        TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8)
    }
}

typedef struct {
    const layer *layer;
    const bf16 *x;
    bf16 *out;
    int64_t x_stride, m, panels, blocks;
} product;

// A unit is a panel times a block of rows; all panels of a block come before the next block's.
static void multiply(void *job, int64_t unit, int64_t next_unit) {
    const product *p = job;
    const layer *l = p->layer;
    int64_t block = unit / p->panels, column = unit % p->panels * PANEL;
    int64_t from = p->m * block / p->blocks, m = p->m * (block + 1) / p->blocks - from;
    int64_t columns = min(PANEL, l->n - column), tiles = ceil_div(m, ROWS);
    const char *next = NULL;
    int64_t lines = 0, bursts = ceil_div(l->k / 2, STEP);
    if (next_unit >= 0) {
        next = (const char *)(l->weight + next_unit % p->panels * PANEL * l->k);
        lines = ceil_div(PANEL / LANES * STEP, tiles);
    }
    for (int64_t i = 0; i < tiles; i++) {
        int64_t row = from + m * i / tiles, rows = from + m * (i + 1) / tiles - row;
        run_tile(rows, ceil_div(columns, LANES), p->x + row * p->x_stride, p->x_stride,
                 l->weight + column * l->k, l->k, l->bias ? l->bias + column : NULL,
                 p->out + row * l->n + column, l->n, columns,
                 (fetch){next + i * bursts * lines * 64, lines});
    }
}

// x [m, k], rows `x_stride` apart -> out [m, n], contiguous.
void linear(const layer *l, const bf16 *x, int64_t x_stride, bf16 *out, int64_t m,
            int64_t threads) {
    int64_t panels = ceil_div(l->n, PANEL);
    // Blocks small enough to stay in the cache while all panels pass, and enough of them to share
    // out, but not so small that the weights would be read from memory too often.
    int64_t fitting = ceil_div(m * l->k * (int64_t)sizeof *x, INPUT);
    int64_t sharing = min(ceil_div(SHARES * threads, panels), m / (8 * ROWS));
    int64_t blocks = max(1, max(fitting, sharing));
    product job = {l, x, out, x_stride, m, panels, min(blocks, m)};
    if (m) team_run(multiply, &job, panels * job.blocks, threads);
}
