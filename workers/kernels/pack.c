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
    const coded *from;
    char *packed;
    int64_t part;
} codes_packing;

/* The code of one of a chunk's inputs, into bytes that are 0. */
INLINE void put_code(const weight *w, char *chunk, int64_t width, int64_t i, uint8_t code) {
    if (w->bits == 8) {
        chunk[i / 4 * width * 4 + i % 4] = (char)(code ^ (w->round_inputs ? FLIP : 0));
        return;
    }
    for (int64_t plane = 4; plane; plane /= 2)
        if (w->bits & plane) {
            const int64_t each = CHUNK / plane; /* inputs of a word */
            const int64_t some = code & ((1 << plane) - 1);
            chunk[i / each * width * 4 + i % 4] |= (char)(some << (i % each / 4 * plane));
            chunk += plane * width * 4;
            code = (uint8_t)(code >> plane);
        }
}

/* Numbers of `size` bytes of some columns, `stride` numbers apart. */
static char *put_numbers(char *to, const void *from, int64_t at, int64_t stride, int64_t columns,
                         int64_t size, int64_t width) {
    memset(to, 0, (size_t)(width * size));
    for (int64_t c = 0; c < columns; c++)
        memcpy(to + c * size, (const char *)from + (at + c * stride) * size, (size_t)size);
    return to + width * size;
}

static void pack_codes_panel(void *job, int64_t unit, int64_t next) {
    (void)next;
    const codes_packing *p = job;
    const weight *w = p->w;
    const coded *from = p->from;
    const int64_t first = unit * PANEL, width = width_of(w->n, unit), size = group_of(w);
    const int64_t k = padded_inputs(w->k), stretch = stretch_of(w), scale = scale_bytes(w);
    const int64_t given = ceil_div(w->k, size); /* the last groups may be padding alone */
    const int64_t blocks = w->block ? ceil_div(w->k, w->block) : 0;
    const int64_t columns = least(width, w->n - first);
    char *to = p->packed + first / PANEL * codes_panel_bytes(w, PANEL) * (p->part ? 2 : 1);
    if (p->part == 2) to += codes_panel_bytes(w, width);
    for (int64_t begin = 0; begin < k; begin += stretch) {
        const int64_t end = least(begin + stretch, k);
        if (begins_block(w, begin)) {
            const int64_t at = first * blocks + begin / w->block;
            to = put_numbers(to, from->factors, at, blocks, columns, 2, width);
            if (w->minimums)
                to = put_numbers(to, from->minimum_factors, at, blocks, columns, 2, width);
        }
        const int64_t bytes = (end - begin) / CHUNK * chunk_bytes(w->bits, width);
        memset(to, 0, (size_t)bytes);
        for (int64_t c = 0; c < columns; c++)
            for (int64_t i = begin; i < least(end, w->k); i++) {
                const int64_t chunk = (i - begin) / CHUNK;
                put_code(w, to + chunk * chunk_bytes(w->bits, width) + c * 4, width, i % CHUNK,
                         from->codes[(first + c) * w->k + i]);
            }
        to += bytes;
        for (int64_t at = begin / size; at < ceil_div(end, size); at++) {
            const int64_t own = at < given ? columns : 0, of = first * given + at;
            to = put_numbers(to, from->scales, of, given, own, scale, width);
            if (w->zeros) to = put_numbers(to, from->zeros, of, given, own, 1, width);
            if (w->minimums) to = put_numbers(to, from->minimums, of, given, own, scale, width);
        }
    }
}

void pack_codes(const weight *w, const coded *from, void *packed, int64_t part, int64_t threads) {
    codes_packing job = {w, from, packed, part};
    team_run(pack_codes_panel, &job, ceil_div(w->n, PANEL), threads);
}
