// Products of activations with packed weights. See linear.c.
#pragma once
#include <stdint.h>

/* Mirrored by packed.py, as is `product`. */
typedef struct weight {
    const void *packed;
    const float *bias; /* [n padded], or NULL */
    int64_t n, k, bf16;
    int64_t gated; /* n counts the pairs of a gate's and an up projection's column */
    int64_t bits;  /* 0: numbers; 2 to 6, or 8: codes, see codes.h, and then */
    int64_t group; /* inputs that share a scale; 0: all of them */
    int64_t scale_type;
    int64_t zeros;      /* each group has its own */
    int64_t round_inputs; /* activations are rounded to int8; else they are taken as they are, and */
    int64_t kind;         /* codes may be of another kind */
    const float *table;   /* of CODE_TABLE: what the 16 codes stand for */
    const int32_t *order; /* [k] which input of the layer each is; NULL: they are in order */
    int64_t minimums;     /* each group has its own, of scale_type, instead of a zero */
    int64_t block;        /* of SCALE_INT8: inputs whose groups share a factor; else 0 */
    const struct weight *below; /* the outputs behind the last, in another form; NULL: none */
} weight;

enum { SCALE_FLOAT, SCALE_HALF, SCALE_BF16, SCALE_INT8 };
enum { CODE_MINUS_ZERO, CODE_TABLE, CODE_E4M3 };

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

/* 0, or 1 where there is no memory for the activations of codes, and then nothing was done. */
int64_t linear(const product *p, int64_t threads);

/* What the columns of a panel are padded to a multiple of. */
int64_t lanes(void);

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

/* Bytes of a packed weight of codes, or of one part of a pair. */
int64_t packed_codes_size(const weight *w);

/* What `pack_codes` packs. Mirrored by codes.py. */
typedef struct {
    const uint8_t *codes; /* [n, k] of w->bits, one a byte */
    const char *scales;   /* [n, groups] of w->scale_type */
    const uint8_t *zeros; /* [n, groups], or NULL, as are others that w has not */
    const char *minimums; /* as scales */
    const uint16_t *factors, *minimum_factors; /* [n, blocks] float16 */
} coded;

/* -> packed. `part`: 0, or 1 or 2 as `gated` of `pack`. */
void pack_codes(const weight *w, const coded *from, void *packed, int64_t part, int64_t threads);

/* What some outputs of a weight of codes stand for, that are integers, one by one in float32:
 * ids [n] -> out [n, k]. */
void look_up(const weight *w, const int64_t *ids, int64_t n, float *out);
