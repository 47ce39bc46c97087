// A token of each row: the likeliest one, or one drawn by an exponential race, with its
// log-probability where that is asked for.
//
// What exponential_race.py says in torch, and what it computes for the tokens that can win. The
// noise of most cannot lift them above the best one so far, which is seen without its logarithms,
// and for 32 tokens that are all too far below it, without the noise.

#include <float.h>

#include "../team.h"
#include "../vector.h"

#define WORD 32            /* tokens of a word of a mask, and those that are looked at together */
#define MOST_NOISE 22.25f  /* above -log(-log1p(-TO_UNIT / 2)) */
#define TO_UNIT 0x1.fffffep-32f
#define LOG2_E 1.44269504f

enum { DRAWS = 1, REPORTS = 2 };

typedef struct {
    const float *x;
    const uint8_t *needs;
    const float *temperatures;
    const uint32_t *keys;
    const int64_t *masks;
    const uint32_t *bits;
    int64_t *tokens;
    float *max, *logprobs;
    int64_t n, n_words;
} draws;

INLINE uint32_t mixed(uint32_t word) {
    word = (word ^ word >> 16) * 0x85EBCA6Bu;
    word = (word ^ word >> 13) * 0xC2B2AE35u;
    return word ^ word >> 16;
}

INLINE uint32_t bits_of(uint32_t token, uint32_t first_key, uint32_t second_key) {
    return mixed(mixed(token * 0x9E3779B1u + first_key) ^ second_key) & 0x7FFFFFFF;
}

/* Twice 2^x, and no less, of x below 0, times 2^31: by the exponent of a float alone. */
INLINE uint32_t limit_of(float x) {
    if (!(x > -40.0f)) return 0;
    if (x >= -1.0f) return UINT32_MAX;
    const int power = 32 + (int)x;
    return power < 0 ? 0 : power > 31 ? UINT32_MAX : 1u << power;
}

static float noise(uint32_t bits) {
    const float negative = ((float)(int32_t)bits + 0.5f) * -TO_UNIT;
    return -logf(-log1pf(negative));
}

/* Which of the tokens of a word are allowed, of which there are `n` left. */
INLINE uint32_t allowed(const uint32_t *mask, int64_t word, int64_t n) {
    const uint32_t there = n >= WORD ? UINT32_MAX : (1u << n) - 1;
    return mask ? mask[word] & there : there;
}

INLINE float most_of(const float *x, uint32_t kept) {
    float top = -INFINITY;
    if (kept == UINT32_MAX) {
#pragma omp simd reduction(max : top)
        for (int i = 0; i < WORD; i++) top = x[i] > top ? x[i] : top;
        if (top > -FLT_MAX) return top;
        top = -INFINITY; /* Clang's reduction starts at -FLT_MAX */
    }
    for (; kept; kept &= kept - 1) {
        const float one = x[__builtin_ctz(kept)];
        top = one > top ? one : top;
    }
    return top;
}

INLINE int broken(const float *x, uint32_t kept) {
    float nan = 0.0f;
    if (kept == UINT32_MAX) {
#pragma omp simd reduction(+ : nan)
        for (int i = 0; i < WORD; i++) nan += x[i] != x[i] ? 1.0f : 0.0f;
        return nan != 0.0f;
    }
    for (; kept; kept &= kept - 1) nan += x[__builtin_ctz(kept)] != x[__builtin_ctz(kept)];
    return nan != 0.0f;
}

typedef struct {
    float score;
    int64_t token;
} winner;

/* The winner of a word of tokens from `first` on, if one is better than `best`. */
INLINE winner race(const float *x, uint32_t kept, int64_t first, float most, float peak,
                   float temperature, const uint32_t *keys, winner best) {
    uint32_t bits[WORD] __attribute__((aligned(64)));
    const uint32_t from = (uint32_t)first, one = keys[0], other = keys[1];
#pragma omp simd
    for (uint32_t i = 0; i < WORD; i++) bits[i] = bits_of(from + i, one, other);
    /* A token's e is at least bits * TO_UNIT, and must be below exp(score - best) to win: here below
     * twice that, whatever is rounded. */
    const uint32_t limit = limit_of(((most - peak) / temperature - best.score) * LOG2_E);
    uint32_t lowest = UINT32_MAX;
#pragma omp simd reduction(min : lowest)
    for (uint32_t i = 0; i < WORD; i++) lowest = bits[i] < lowest ? bits[i] : lowest;
    if (lowest > limit) return best;
    uint32_t close = 0;
    for (int i = 0; i < WORD; i++) close |= (uint32_t)(bits[i] <= limit) << i;
    for (kept &= close; kept; kept &= kept - 1) {
        const int i = __builtin_ctz(kept);
        const float score = (x[i] - peak) / temperature + noise(bits[i]);
        const int64_t token = first + i;
        if (score > best.score || (score == best.score && token < best.token))
            best = (winner){score, token};
    }
    return best;
}

static void draw(void *job, int64_t unit, int64_t next) {
    (void)next;
    const draws *d = job;
    const float *x = d->x + unit * d->n;
    const uint32_t *mask = d->masks[unit] < 0 ? NULL : d->bits + d->masks[unit] * d->n_words;
    const int64_t n_words = ceil_div(d->n, WORD);
    float peak = -INFINITY;
    int64_t at = 0;
    int nan = 0;
    for (int64_t word = 0; word < n_words; word++) {
        const uint32_t kept = allowed(mask, word, d->n - word * WORD);
        nan |= broken(x + word * WORD, kept);
        const float top = most_of(x + word * WORD, kept);
        if (top > peak) peak = top, at = word;
    }
    int64_t token = 0;
    for (uint32_t kept = allowed(mask, at, d->n - at * WORD); kept; kept &= kept - 1) {
        token = at * WORD + __builtin_ctz(kept);
        if (x[token] == peak) break;
    }
    d->max[unit] = nan ? NAN : peak;
    d->tokens[unit] = token;
    if (nan || !isfinite(peak)) return;

    const float temperature = d->temperatures[unit];
    if (d->needs[unit] & DRAWS) {
        const uint32_t *keys = d->keys + 2 * unit;
        winner best = {noise(bits_of((uint32_t)token, keys[0], keys[1])), token};
        float floor = peak + temperature * (best.score - MOST_NOISE);
        for (int64_t word = 0; word < n_words; word++) {
            const uint32_t kept = allowed(mask, word, d->n - word * WORD);
            const float most = most_of(x + word * WORD, kept);
            if (!(most >= floor)) continue;
            const winner found =
                race(x + word * WORD, kept, word * WORD, most, peak, temperature, keys, best);
            if (found.token == best.token) continue;
            best = found;
            floor = peak + temperature * (best.score - MOST_NOISE);
        }
        d->tokens[unit] = token = best.token;
    }
    if (d->needs[unit] & REPORTS) {
        double total = 0.0;
        for (int64_t word = 0; word < n_words; word++) {
            uint32_t kept = allowed(mask, word, d->n - word * WORD);
            const float *some = x + word * WORD;
            float sum = 0.0f;
            if (kept == UINT32_MAX) {
#pragma omp simd reduction(+ : sum)
                for (int i = 0; i < WORD; i++) sum += exp_negative((some[i] - peak) / temperature);
            } else {
                for (; kept; kept &= kept - 1)
                    sum += exp_negative((some[__builtin_ctz(kept)] - peak) / temperature);
            }
            total += sum;
        }
        d->logprobs[unit] = (float)((x[token] - peak) / temperature - log(total));
    }
}

/* x [n_rows, n], n at least 1; needs, temperatures (1 where nothing is drawn) [n_rows]; keys
 * [n_rows, 2] -> tokens, max, logprobs [n_rows]. Row i may have what bits[masks[i]] allows, bit j %
 * 32 of word j / 32, or anything where masks[i] is negative. A row that holds NaN has the maximum
 * NaN, and any token. */
void draw_rows(const float *x, int64_t n_rows, int64_t n, const uint8_t *needs,
               const float *temperatures, const uint32_t *keys, const int64_t *masks,
               const uint32_t *bits, int64_t n_words, int64_t *tokens, float *max, float *logprobs,
               int64_t threads) {
    draws job = {x, needs, temperatures, keys, masks, bits, tokens, max, logprobs, n, n_words};
    team_run(draw, &job, n_rows, threads);
}
