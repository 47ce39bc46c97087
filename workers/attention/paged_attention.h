// Attention over paged pools of keys and values. See paged_attention.c.
#pragma once
#include <stdint.h>

/* What the pools hold: numbers of the model's dtype, or codes of a byte each. */
enum { NUMBERS, E4M3, E5M2, INT8 };

/* Mirrored by native.py. A code stands for itself times its scale. */
typedef struct {
    int64_t kind;
    float *key_scales, *value_scales; /* of INT8: [n_blocks, n_kv_heads, block_size] */
    double key_scale, value_scale;    /* of the others, for all tokens */
} kv_codes;

/* Mirrored by kernel.py; all fields are 64 bits wide. Strides and dims count elements. */
typedef struct {
    void *keys, *values; /* pools */
    const void *q, *k, *v; /* k NULL: the keys and values are in the pools already */
    void *out;            /* [n_tokens, n_heads, dim] */
    const int64_t *slots; /* [n_tokens] block * block_size + offset */
    const int64_t *spans; /* [n_spans, 6] first packed token, positions, context length, table, and
                           * [begin, end) of positions that all of them see, later ones too: 0, 0 */
    int64_t q_token, q_head, k_token, k_head, v_token, v_head;
    int64_t n_tokens, n_spans, n_heads, n_kv_heads, dim, block_size;
    int64_t window; /* 0: all of the context */
    int64_t bf16, n_threads;
    double scale, softcap; /* softcap 0: none */
    int64_t chunk; /* 0: none; else a position sees those of its own chunk of this many */
    const float *sinks;  /* [n_heads] scores of a key without a value, or NULL */
    const float *slopes; /* [n_heads] of ALiBi, or NULL */
    kv_codes codes;
} call;

/* 0, or 1 where there was no memory for the intermediate results. */
int paged_attention(const call *c);
