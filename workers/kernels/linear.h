// Products of activations with packed weights. See linear.c.
#pragma once
#include <stdint.h>

/* Mirrored by packed.py, as is `product`. */
typedef struct {
    const void *packed;
    const float *bias; /* [n padded], or NULL */
    int64_t n, k, bf16;
    int64_t gated; /* n counts the pairs of a gate's and an up projection's column */
} weight;

/* What becomes of a product of m rows and n columns. */
enum { STORE, STORE_FLOAT, ADD_FLOAT };

/* What becomes of gate and up. */
enum { SILU, GELU_TANH, GELU };

typedef struct {
    const weight *w;
    const void *x; /* [m, k] of the weight's dtype, rows x_stride elements apart */
    void *out;     /* [m, n] of the weight's dtype, or float32 where the mode says so */
    int64_t x_stride, out_stride, m;
    int64_t mode;
    int64_t activation;
    double scale;       /* of what is added; 1 elsewhere */
    const weight *then; /* the weight that is multiplied next, or NULL: fetched towards the end */
} product;

void linear(const product *p, int64_t threads);

/* Columns of a panel; the last one may have fewer. */
int64_t panel_width(void);

/* Whether the processor has an instruction for it; else they are made float32 one by one. */
int64_t multiplies_bf16(void);

/* Numbers in a packed weight. */
int64_t packed_size(int64_t n, int64_t k, int64_t bf16);

/* weight [n, k], rows `stride` apart -> packed. With `gated`, 1 or 2: the gate or the up part of a
 * pair, whose packed size is twice that of one. */
void pack(const void *from, int64_t stride, int64_t n, int64_t k, void *packed, int64_t bf16,
          int64_t gated, int64_t threads);
