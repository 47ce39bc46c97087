// The largest number of each row and its first index.

#include <float.h>

#include "../team.h"
#include "../vector.h"

typedef struct {
    const float *x;
    float *max;
    int64_t *places;
    int64_t n;
} rows;

static void find(void *job, int64_t unit, int64_t next) {
    (void)next;
    const rows *r = job;
    const float *x = r->x + unit * r->n;
    float top = -INFINITY, broken = 0.0f;
#pragma omp simd reduction(max : top) reduction(+ : broken)
    for (int64_t i = 0; i < r->n; i++) {
        top = x[i] > top ? x[i] : top;
        broken += x[i] != x[i] ? 1.0f : 0.0f;
    }
    if (top == -FLT_MAX) { /* from where Clang's reduction starts: above a row of -inf */
        top = -INFINITY;
        for (int64_t i = 0; i < r->n; i++) top = x[i] > top ? x[i] : top;
    }
    int64_t place = 0;
    while (place < r->n - 1 && x[place] != top) place++;
    r->max[unit] = broken != 0.0f ? NAN : top;
    r->places[unit] = place;
}

/* x [n_rows, n], n at least 1 -> max, places [n_rows]. A row that holds NaN has the maximum NaN,
 * at any place. */
void row_argmax(const float *x, int64_t n_rows, int64_t n, float *max, int64_t *places,
                int64_t threads) {
    rows job = {x, max, places, n};
    team_run(find, &job, n_rows, threads);
}

typedef struct {
    const float *x;
    const int64_t *lines;
    const uint32_t *bits;
    float *max;
    int64_t *places;
    int64_t n, n_words;
} masked_rows;

static void find_allowed(void *job, int64_t unit, int64_t next) {
    (void)next;
    const masked_rows *r = job;
    const float *x = r->x + r->lines[unit] * r->n;
    const uint32_t *bits = r->bits + unit * r->n_words;
    float top = -INFINITY;
    int64_t place = 0;
    int broken = 0;
    for (int64_t word = 0; word < r->n_words; word++) {
        uint32_t left = bits[word];
        const float *at = x + word * 32;
        if (left == UINT32_MAX && word * 32 + 32 <= r->n) {
            /* Where all of 32 are allowed, the most that they can be is found at once. */
            float most = -INFINITY, nan = 0.0f;
#pragma omp simd reduction(max : most) reduction(+ : nan)
            for (int i = 0; i < 32; i++) {
                most = at[i] > most ? at[i] : most;
                nan += at[i] != at[i] ? 1.0f : 0.0f;
            }
            broken |= nan != 0.0f;
            if (!(most > top)) continue;
        }
        for (; left; left &= left - 1) {
            int64_t i = word * 32 + __builtin_ctz(left);
            if (i >= r->n) break;
            broken |= x[i] != x[i];
            if (x[i] > top) {
                top = x[i];
                place = i;
            }
        }
    }
    r->max[unit] = broken ? NAN : top;
    r->places[unit] = place;
}

/* The same of the rows lines[i] of x [., n], and only of what is allowed: bit j % 32 of
 * bits[i][j / 32]. */
void masked_argmax(const float *x, int64_t n_rows, int64_t n, const int64_t *lines,
                   const uint32_t *bits, int64_t n_words, float *max, int64_t *places,
                   int64_t threads) {
    masked_rows job = {x, lines, bits, max, places, n, n_words};
    team_run(find_allowed, &job, n_rows, threads);
}

static void mask_out(void *job, int64_t unit, int64_t next) {
    (void)next;
    const masked_rows *r = job;
    float *x = (float *)r->x + r->lines[unit] * r->n;
    const uint32_t *bits = r->bits + unit * r->n_words;
    for (int64_t word = 0; word < r->n_words; word++) {
        uint32_t kept = bits[word];
        if (kept == UINT32_MAX) continue;
        float *at = x + word * 32;
        int64_t width = r->n - word * 32 < 32 ? r->n - word * 32 : 32;
        if (width == 32) {
#pragma omp simd
            for (int i = 0; i < 32; i++) at[i] = kept >> i & 1 ? at[i] : -INFINITY;
        } else {
            for (int64_t i = 0; i < width; i++)
                if (!(kept >> i & 1)) at[i] = -INFINITY;
        }
    }
}

/* Puts -inf in the place of what is not allowed in the rows lines[i] of x [., n]; see above. */
void mask_rows(float *x, int64_t n_rows, int64_t n, const int64_t *lines, const uint32_t *bits,
               int64_t n_words, int64_t threads) {
    masked_rows job = {x, lines, bits, 0, 0, n, n_words};
    team_run(mask_out, &job, n_rows, threads);
}
