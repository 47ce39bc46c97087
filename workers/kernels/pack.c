// Weights into the order that panels.h describes.

#include "panels.h"

#include "../team.h"

int64_t packed_size(int64_t n, int64_t k, int64_t bf16) {
    return ceil_div(n, LANES) * LANES * (bf16 ? k + k % 2 : k);
}

int64_t lanes(void) { return LANES; }

int64_t panel_width(void) { return PANEL; }

int64_t multiplies_bf16(void) {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

typedef struct {
    const void *from;
    int64_t stride, n, k;
    void *packed;
    int64_t bf16, gated;
} packing;

static void pack_panel(void *job, int64_t unit, int64_t next) {
    (void)next;
    const packing *p = job;
    const int64_t first = unit * PANEL, steps = steps_of(p->k, p->bf16);
    const int64_t width = width_of(p->n, unit), each = p->bf16 ? 2 : 1;
    int64_t before = first * steps * each * (p->gated ? 2 : 1);
    if (p->gated == 2) before += width * steps * each;
    for (int64_t column = 0; column < width; column++)
        for (int64_t at = 0; at < each * steps; at++) {
            const int kept = first + column < p->n && at < p->k;
            const int64_t from = kept ? (first + column) * p->stride + at : 0;
            const int64_t to = before + (at / each * width + column) * each + at % each;
            if (p->bf16)
                ((uint16_t *)p->packed)[to] = kept ? ((const uint16_t *)p->from)[from] : 0;
            else
                ((float *)p->packed)[to] = kept ? ((const float *)p->from)[from] : 0.0f;
        }
}

void pack(const void *from, int64_t stride, int64_t n, int64_t k, void *packed, int64_t bf16,
          int64_t gated, int64_t threads) {
    packing job = {from, stride, n, k, packed, bf16, gated};
    team_run(pack_panel, &job, ceil_div(n, PANEL), threads);
}

int64_t packed_codes_size(const weight *w) {
    return codes_panel_bytes(w, ceil_div(w->n, LANES) * LANES);
}

typedef struct {
    const weight *w;
    const uint8_t *codes, *zeros;
    const char *scales;
    char *packed;
    int64_t part;
} codes_packing;

static void pack_codes_panel(void *job, int64_t unit, int64_t next) {
    (void)next;
    const codes_packing *p = job;
    const weight *w = p->w;
    const int64_t first = unit * PANEL, width = width_of(w->n, unit), size = group_of(w);
    const int64_t k = padded_inputs(w->k), groups = ceil_div(k, size), scale = scale_bytes(w);
    const int64_t given = ceil_div(w->k, size); // the last group may be padding alone
    char *to = p->packed + first / PANEL * codes_panel_bytes(w, PANEL) * (p->part ? 2 : 1);
    if (p->part == 2) to += codes_panel_bytes(w, width);
    for (int64_t group = 0; group < groups; group++) {
        const int64_t begin = group * size, end = least(begin + size, k);
        memset(to, 0, (size_t)((end - begin) * width * w->bits / 8));
        for (int64_t c = 0; c < least(width, w->n - first); c++)
            for (int64_t i = begin; i < least(end, w->k); i++) {
                const uint8_t code = p->codes[(first + c) * w->k + i];
                const int64_t at = i - begin;
                if (w->bits == 8)
                    to[(at / 4 * width + c) * 4 + at % 4] = (char)(code ^ (w->round_inputs ? FLIP : 0));
                else
                    to[(at / 8 * width + c) * 4 + at % 4] |= (char)(code << (at & 4));
            }
        to += (end - begin) * width * w->bits / 8;
        const int64_t columns = group < given ? least(width, w->n - first) : 0;
        memset(to, 0, (size_t)(width * (scale + (w->zeros ? 1 : 0))));
        for (int64_t c = 0; c < columns; c++) {
            const int64_t from = (first + c) * given + group;
            memcpy(to + c * scale, p->scales + from * scale, (size_t)scale);
            if (w->zeros) to[width * scale + c] = (char)p->zeros[from];
        }
        to += width * (scale + (w->zeros ? 1 : 0));
    }
}

void pack_codes(const weight *w, const uint8_t *codes, const void *scales, const uint8_t *zeros,
                void *packed, int64_t part, int64_t threads) {
    codes_packing job = {w, codes, zeros, scales, packed, part};
    team_run(pack_codes_panel, &job, ceil_div(w->n, PANEL), threads);
}
