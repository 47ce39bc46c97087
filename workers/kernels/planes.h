// The codes of a chunk, taken out of the words that panels.h describes.
#pragma once
#include "panels.h"

#define SIXTEEN 16 /* half a chunk: the least group */

/* The words that have the codes of SIXTEEN inputs, of LANES columns. */
typedef struct {
    uvec wide[4]; /* of eight bits, or two of the four lowest */
    uvec two, one;
} sixteen;

INLINE uvec word_at(const char *chunk, int64_t at, int64_t width) {
    return *(const uvec *)(const void *)(chunk + at * width * 4);
}

/* Of the first or second half of a chunk. */
INLINE sixteen read_sixteen(const int bits, const char *chunk, int64_t width, int64_t half_at) {
    sixteen x;
    int64_t before = 0;
    if (bits == 8) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) x.wide[i] = word_at(chunk, half_at * 4 + i, width);
        return x;
    }
    if (bits & 4) {
        x.wide[0] = word_at(chunk, half_at * 2, width);
        x.wide[1] = word_at(chunk, half_at * 2 + 1, width);
        before = 4;
    }
    if (bits & 2) x.two = word_at(chunk, before + half_at, width), before += 2;
    if (bits & 1) x.one = word_at(chunk, before, width) >> (uint32_t)(4 * half_at);
    return x;
}

/* Low bits of one and others of the other, which is moved down by so many places. */
INLINE uvec joined(uvec low, uvec high, const int by, const uint32_t mask) {
    return (low & mask) | ((by < 0 ? high << -by : high >> by) & ~mask);
}

/* The codes of byte `at` of the words of four inputs, and in the lanes that have a bit in `lanes`:
 * that of 0x10001 is the byte's after next too. Above them other bits are left. */
INLINE uvec codes_of(const int bits, const sixteen *x, const int four, const int at,
                     const uint32_t lanes) {
    const int byte = at * 8;
    uvec codes = {0};
    int low = 0;
    if (bits == 8) return x->wide[four] >> byte;
    if (bits & 4) codes = x->wide[four / 2] >> (byte + four % 2 * 4), low = 4;
    if (bits & 2) {
        const int by = byte + four * 2 - low;
        codes = joined(codes, x->two, by, ((1u << low) - 1) * lanes), low += 2;
    }
    if (bits & 1)
        codes = joined(codes, x->one, byte + four - low, ((1u << low) - 1) * lanes), low += 1;
    return codes;
}

/* The code of one of a chunk's inputs. */
INLINE int32_t code_in(const int64_t bits, const char *chunk, int64_t width, int64_t i) {
    if (bits == 8) return (uint8_t)chunk[i / 4 * width * 4 + i % 4];
    int32_t code = 0;
    int64_t low = 0;
    for (int64_t plane = 4; plane; plane /= 2)
        if (bits & plane) {
            const int64_t each = CHUNK / plane; /* inputs of a word */
            const uint8_t byte = (uint8_t)chunk[i / each * width * 4 + i % 4];
            code |= (byte >> (i % each / 4 * plane) & ((1 << plane) - 1)) << low;
            chunk += plane * width * 4;
            low += plane;
        }
    return code;
}
