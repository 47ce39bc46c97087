// Codes as pairs of bfloat16, for vdpbf16ps. See unpack.h.
//
// A pair is of two inputs whose bytes in a word are 16 bits apart: of each four inputs the first and
// the third, and the second and the fourth.
#pragma once
#include "spans.h"

#if BF16_CODES
/* Two inputs' codes a column -> bfloat16. `codes` has them in its lowest bits and 16 bits above, with
 * others above them. */
INLINE __m512bh paired_values(const int bits, const int kind, uvec codes, uvec zeros,
                              const uint16_t *table) {
    const __m512i first = _mm512_loadu_si512(table);
    if (kind == CODE_E4M3) {
        /* The bits of bfloat16, whose exponent has a bias of 127, not 7; denormal numbers have not. */
        const __m512i magnitude = (__m512i)(codes & 0x007f007fu);
        const __m512i normal =
            _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
        const __mmask32 is_denormal = _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8));
        const __m512i made =
            _mm512_mask_permutexvar_epi16(normal, is_denormal, magnitude, first);
        return (__m512bh)((uvec)made | ((codes << 8) & 0x80008000u));
    }
    if (kind == CODE_TABLE) {
        if (bits == 6)
            return (__m512bh)_mm512_permutex2var_epi16(first, (__m512i)codes,
                                                       _mm512_loadu_si512(table + 32));
        return (__m512bh)_mm512_permutexvar_epi16((__m512i)codes, first);
    }
    if (bits == 4) { /* -15 to 15: what counts of a place in the table are five bits */
        const __m512i less = _mm512_sub_epi16((__m512i)(codes & 0x000f000fu), (__m512i)zeros);
        return (__m512bh)_mm512_permutexvar_epi16(less, first);
    }
    /* With a code in its lowest bits, 2^23 is larger by it. */
    const vec low = (vec)((codes & 255u) | 0x4b000000u) - (vec)zeros;
    const vec high = (vec)(((codes >> 16) & 255u) | 0x4b000000u) - (vec)zeros;
    return (__m512bh)_mm512_mask_mov_epi16((__m512i)high, 0x55555555,
                                           _mm512_srli_epi32((__m512i)low, 16));
}

/* Pair `at` of sixteen inputs. */
INLINE uvec pair_of(const int bits, const sixteen *x, const int at) {
    return codes_of(bits, x, at / 2, at % 2, 0x10001u);
}

/* [inputs / 2][width][2] bfloat16 of the codes. */
INLINE void unpack_pairs(const int bits, const int kind, piece p, const char *zeros,
                         const uint16_t *table, char *to) {
    for (int64_t i = 0; i < p.inputs; i += SIXTEEN) {
        for (int64_t v = 0; v < p.width; v += LANES) {
            const sixteen codes = read_piece(bits, p, i, v);
            const uvec zero = zeros_at(bits, 1, zeros, v);
#pragma GCC unroll 8
            for (int at = 0; at < SIXTEEN / 2; at++) {
                const __m512bh made =
                    paired_values(bits, kind, pair_of(bits, &codes, at), zero, table);
                _mm512_storeu_si512(to + ((i / 2 + at) * p.width + v) * 4, (__m512i)made);
            }
        }
    }
}

/* sums += the products of a pair of one row's activations. */
INLINE vec add_pair(vec sums, const char *x, __m512bh values) {
    int32_t two;
    memcpy(&two, x, 4);
    return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(two), values);
}
#endif
