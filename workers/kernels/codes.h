// Weights as codes of 4 or 8 bits, times activations rounded to int8.
//
// A weight stands for (code - zero) * scale, with a scale for each `group` of inputs of a column and
// a zero of 8 or 128, or one for each group too. Activations are rounded to int8 with a scale for
// each PART or CHUNK inputs of a row: some are a hundred times as large as all others, and would
// leave nothing of these with one scale for the whole row. A row's result depends on it alone.
// Products are summed in int32 and therefore exact, and the parts' sums in float32, in their order.
#pragma once
#include "panels.h"

#include "../team.h"

// Prefetches are spread over the tiles that use a panel: each fetches its share of the next one.
typedef struct {
    const char *from;
    int64_t lines;  // to fetch with each STEP steps along k, or each CHUNK of codes
} fetch;

/* Activations of some rows, rounded or in float32. */
typedef struct {
    int8_t *codes;  /* [m, padded k] */
    int32_t *sums;  /* [m, parts] of the codes of a part */
    float *scales;  /* [m, parts] */
    float *wide;    /* [m, padded k] as they are, and then none of the others */
    int64_t k, part, parts; /* inputs that share a scale, and how often there are so many */
} inputs;

INLINE float half_float(uint16_t x) {
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, magnitude = (uint32_t)(x & 0x7fff) << 13;
    uint32_t bits = magnitude;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f; /* from a bias of 15 to one of 127; right for denormal numbers too */
    if (magnitude >= 0x0f800000) bits = magnitude | 0x7f800000, memcpy(&value, &bits, 4);
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

/* The scales of LANES columns. */
INLINE vec load_scales(const char *from, int64_t at, int64_t scale_type) {
    if (scale_type == SCALE_FLOAT) return *(const vec *)((const float *)(const void *)from + at);
    if (scale_type == SCALE_BF16) return load(from, at, 1);
    const uint16_t *halves = (const uint16_t *)(const void *)from + at;
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)halves));
#elif AVX2_CODES && defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const void *)halves));
#else
    vec x;
    for (int64_t i = 0; i < LANES; i++) x[i] = half_float(halves[i]);
    return x;
#endif
}

static __attribute__((noinline)) void read_scales(const weight *w, const char *from, int64_t width,
                                                  float *scales) {
    for (int64_t c = 0; c < width; c += LANES)
        *(vec *)(scales + c) = load_scales(from, c, w->scale_type);
}

/* What the sums of a group begin with: -zero * the sum of the activations' codes. */
static __attribute__((noinline)) void begin_sums(const weight *w, const char *zeros, int64_t rows,
                                                 int64_t width, const int32_t *sums_of,
                                                 int64_t parts, int32_t (*sums)[PANEL]) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++)
            sums[r][c] = ((w->bits == 8 ? FLIP : 0) - (uint8_t)zeros[c]) * sums_of[r * parts];
}

#if AVX2_CODES
/* Loaded anew for each column: kept in registers for all, they would push the sums out. */
INLINE __m256i four_inputs(const int8_t *x) {
    __m256i four;
    __asm__ volatile("vpbroadcastd %1, %0" : "=x"(four) : "m"(*(const int8_t(*)[4])x));
    return four;
}

/* CHUNK inputs of some columns of a panel, which is `width` wide, times those of some rows. */
INLINE void multiply_chunk(const int rows, const int vectors, const int bits, const int8_t *x,
                           int64_t x_stride, const char *panel, int64_t width,
                           ivec sums[ROWS][VECTORS]) {
    const __m256i ones = _mm256_set1_epi16(1), lower = _mm256_set1_epi8(15);
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        if (bits == 4) {
            __m256i narrow[ROWS]; /* 8 times 2 products of 15 * 127 fit */
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) narrow[r] = _mm256_setzero_si256();
#pragma GCC unroll 2
            for (int at = 0; at < CHUNK / 8; at++) {
                const char *from = panel + (at * width + v * LANES) * 4;
                const __m256i pairs = _mm256_loadu_si256((const void *)from);
                const __m256i first = _mm256_and_si256(pairs, lower);
                const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), lower);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    const int8_t *row = x + r * x_stride + at * 8;
                    const __m256i a = _mm256_maddubs_epi16(first, four_inputs(row));
                    const __m256i b = _mm256_maddubs_epi16(second, four_inputs(row + 4));
                    narrow[r] = _mm256_add_epi16(narrow[r], _mm256_add_epi16(a, b));
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                sums[r][v] += (ivec)_mm256_madd_epi16(narrow[r], ones);
        } else {
            for (int at = 0; at < CHUNK / 4; at++) {
                const char *from = panel + (at * width + v * LANES) * 4;
                const __m256i codes = _mm256_loadu_si256((const void *)from);
                const __m256i sizes = _mm256_abs_epi8(codes); /* of -128 it is 128, unsigned */
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    const __m256i signs =
                        _mm256_sign_epi8(four_inputs(x + r * x_stride + at * 4), codes);
                    /* 2 * 128 * 127 fits into 16 bits */
                    const __m256i two = _mm256_maddubs_epi16(sizes, signs);
                    sums[r][v] += (ivec)_mm256_madd_epi16(two, ones);
                }
            }
        }
    }
}
#else
/* sums + four codes without a sign a column times four inputs. */
INLINE ivec dot(ivec sums, uvec codes, const int8_t *x) {
#ifdef __AVX512VNNI__
    int32_t four;
    memcpy(&four, x, 4);
    return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, _mm512_set1_epi32(four));
#else
    for (int i = 0; i < 4; i++) sums += (ivec)((codes >> (8 * i)) & 255) * (int32_t)x[i];
    return sums;
#endif
}

INLINE void multiply_chunk(const int rows, const int vectors, const int bits, const int8_t *x,
                           int64_t x_stride, const char *panel, int64_t width,
                           ivec sums[ROWS][VECTORS]) {
    const int64_t inputs = bits == 4 ? 8 : 4;
    for (int64_t at = 0; at < CHUNK / inputs; at++) {
        uvec codes[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++)
            codes[v] = *(const uvec *)(const void *)(panel + (at * width + v * LANES) * 4);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int8_t *row = x + r * x_stride + at * inputs;
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) {
                if (bits == 8) {
                    sums[r][v] = dot(sums[r][v], codes[v], row);
                } else {
                    sums[r][v] = dot(sums[r][v], codes[v] & 0x0f0f0f0fu, row);
                    sums[r][v] = dot(sums[r][v], (codes[v] >> 4) & 0x0f0f0f0fu, row + 4);
                }
            }
        }
    }
}
#endif

/* `vectors` * LANES columns of a panel, from `column` on, times `rows` rows from `row` on. */
INLINE void codes_tile(const int rows, const int vectors, const int bits, const weight *w,
                       const inputs *x, int64_t row, const char *panel, int64_t width,
                       int64_t column, float (*out)[PANEL], fetch next) {
    const int64_t size = group_of(w), bytes = CHUNK * width * bits / 8;
    const int8_t *codes = x->codes + row * x->k;
    const int64_t first_part = row * x->parts;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) *(vec *)(out[r] + column + v * LANES) = (vec){0};
    for (int64_t first = 0; first < x->k; first += size) {
        const int64_t end = least(first + size, x->k);
        const char *group_scales = panel + (end - first) * width * bits / 8;
        const char *zeros = group_scales + width * scale_bytes(w);
        float scales[PANEL] __attribute__((aligned(64)));
        read_scales(w, group_scales + column * scale_bytes(w), vectors * LANES, scales);
        for (int64_t begin = first; begin < end; begin += x->part) {
            const int64_t part = first_part + begin / x->part, last = least(begin + x->part, end);
            ivec sums[ROWS][VECTORS];
            if (w->zeros) {
                int32_t begun[ROWS][PANEL] __attribute__((aligned(64)));
                begin_sums(w, zeros + column, rows, vectors * LANES, x->sums + part, x->parts,
                           begun);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
                    for (int v = 0; v < vectors; v++)
                        sums[r][v] = *(const ivec *)&begun[r][v * LANES];
            } else {
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
                    for (int v = 0; v < vectors; v++)
                        sums[r][v] = (ivec){0} - MIDDLE(bits) * x->sums[part + r * x->parts];
            }
            for (int64_t at = begin; at < last; at += CHUNK) {
                for (int64_t line = 0; line < next.lines; line++) {
                    __builtin_prefetch(next.from, 0, 2);
                    next.from += 64;
                }
                multiply_chunk(rows, vectors, bits, codes + at, x->k, panel + column * 4, width,
                               sums);
                panel += bytes;
            }
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) {
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    const vec sum = __builtin_convertvector(sums[r][v], vec);
                    const vec scale = *(const vec *)(scales + v * LANES);
                    vec *to = (vec *)(out[r] + column + v * LANES);
                    *to = fused(sum, scale * x->scales[part + r * x->parts], *to);
                }
            }
        }
        panel = zeros + (w->zeros ? width : 0);
    }
}

typedef struct {
    const product *p;
    inputs rows;
} reading;

#define PART 64 /* inputs that are rounded with one scale, where a group is so large */
#define READ 8 /* rows that a thread reads at a time */

/* A row of activations in float32. */
INLINE void widen_row(const product *p, int64_t row, float *x) {
    const int64_t n = p->w->k, bf16 = p->w->bf16;
    const int32_t *order = p->w->order;
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t at = row * p->x_stride + i;
        if (!order && n - i >= LANES) {
            *(vec *)(x + i) = load(p->x, at, (int)bf16);
            continue;
        }
        for (int64_t k = i; k < least(i + LANES, n); k++) {
            const int64_t from = row * p->x_stride + (order ? order[k] : k);
            const uint32_t bits = bf16 ? (uint32_t)((const uint16_t *)p->x)[from] << 16
                                       : ((const uint32_t *)p->x)[from];
            memcpy(x + k, &bits, 4);
        }
    }
}

INLINE void round_part(const float *x, int64_t n, int8_t *codes, float *scale, int32_t *sum) {
    float largest = 0.0f, odd = 0.0f;
#pragma omp simd reduction(max : largest) reduction(+ : odd)
    for (int64_t i = 0; i < n; i++) {
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        odd += x[i] * 0.0f; /* not 0 where a number is not finite */
    }
    const int finite = odd == 0.0f;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int32_t total = 0;
    if (finite) {
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < n; i++) {
            const int32_t code = (int32_t)rintf(x[i] * inverse);
            codes[i] = (int8_t)code;
            total += code;
        }
    } else {
        memset(codes, 0, (size_t)n);
    }
    *scale = finite ? largest / 127.0f : NAN;
    *sum = total;
}

INLINE void round_row(const reading *j, int64_t row) {
    const inputs *to = &j->rows;
    const int64_t n = j->p->w->k;
    float x[n] __attribute__((aligned(64)));
    widen_row(j->p, row, x);
    memset(to->codes + row * to->k + n, 0, (size_t)(to->k - n));
    for (int64_t part = 0; part < to->parts; part++) {
        const int64_t first = part * to->part;
        round_part(x + first, least(to->part, n - first), to->codes + row * to->k + first,
                   to->scales + row * to->parts + part, to->sums + row * to->parts + part);
    }
}

static void read_rows(void *job, int64_t unit, int64_t next) {
    (void)next;
    const reading *j = job;
    const int64_t end = least((unit + 1) * READ, j->p->m), k = j->rows.k;
    for (int64_t row = unit * READ; row < end; row++) {
        if (!j->rows.wide) {
            round_row(j, row);
        } else {
            float *to = j->rows.wide + row * k;
            widen_row(j->p, row, to);
            memset(to + j->p->w->k, 0, (size_t)(k - j->p->w->k) * 4);
        }
    }
}

/* The activations of a product with codes, in memory that is kept; none where there is no memory. */
static inputs read_inputs(const product *p, int64_t threads) {
    static __thread void *kept;
    static __thread size_t kept_size;
    const weight *w = p->w;
    inputs x = {.k = padded_inputs(w->k), .part = w->group % PART ? CHUNK : PART};
    x.parts = ceil_div(w->k, x.part);
    const int64_t row = w->round_inputs ? x.k + 8 * x.parts : 4 * x.k;
    kept = grow(kept, &kept_size, (size_t)(p->m * row));
    if (!kept) return x;
    if (w->round_inputs) {
        x.codes = kept;
        x.sums = (int32_t *)(void *)(x.codes + p->m * x.k);
        x.scales = (float *)(void *)(x.sums + p->m * x.parts);
    } else {
        x.wide = kept;
    }
    reading job = {p, x};
    team_run(read_rows, &job, ceil_div(p->m, READ), threads);
    return x;
}
