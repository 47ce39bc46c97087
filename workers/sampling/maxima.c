// The largest number of each row, and where it first is.

#include "../team.h"
#include "../vector.h"

typedef struct {
    const float *x;
    float *maxima;
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
    int64_t place = 0;
    while (place < r->n - 1 && x[place] != top) place++;
    r->maxima[unit] = broken != 0.0f ? NAN : top;
    r->places[unit] = place;
}

/* x [n_rows, n], n at least 1 -> maxima, places [n_rows]. A row that holds NaN has the maximum NaN,
 * at any place. */
void row_maxima(const float *x, int64_t n_rows, int64_t n, float *maxima, int64_t *places,
                int64_t threads) {
    rows job = {x, maxima, places, n};
    team_run(find, &job, n_rows, threads);
}
