// Single outputs of a weight of codes, as the rows of an embedding.
#pragma once
#include "planes.h"
#include "scales.h"

void look_up(const weight *w, const int64_t *ids, int64_t n, float *out) {
    const int64_t k = padded_inputs(w->k), size = group_of(w), stretch = stretch_of(w);
    const int32_t flip = w->bits == 8 && w->round_inputs ? FLIP : 0;
    for (int64_t i = 0; i < n; i++, out += w->k) {
        const int64_t at = ids[i] / PANEL, c = ids[i] % PANEL, width = width_of(w->n, at);
        const char *panel = (const char *)w->packed + panel_at(w, at);
        float shared = 1.0f, shared_minimum = 1.0f;
        for (int64_t first = 0; first < k; first += stretch) {
            const int64_t end = least(first + stretch, k);
            if (begins_block(w, first)) {
                shared = load_scale(panel, c, SCALE_HALF);
                if (w->minimums) shared_minimum = load_scale(panel + 2 * width, c, SCALE_HALF);
                panel += width * factor_bytes(w);
            }
            const char *codes = panel + c * 4;
            panel += (end - first) / CHUNK * chunk_bytes(w->bits, width);
            for (int64_t begin = first; begin < end; begin += size) {
                const char *behind = panel + width * scale_bytes(w);
                const float scale = load_scale(panel, c, w->scale_type) * shared;
                int32_t zero = w->minimums ? 0 : 1 << (w->bits - 1);
                float minimum = -0.0f; /* which adds nothing to either zero */
                if (w->minimums) minimum = load_scale(behind, c, w->scale_type) * shared_minimum;
                if (w->zeros) zero = (uint8_t)behind[c];
                for (int64_t j = begin; j < least(begin + size, least(end, w->k)); j++) {
                    const char *chunk = codes + (j - first) / CHUNK * chunk_bytes(w->bits, width);
                    const int32_t code = code_in(w->bits, chunk, width, j % CHUNK) ^ flip;
                    out[j] = (float)(code - zero) * scale + minimum;
                }
                panel += width * group_bytes(w);
            }
        }
    }
}
