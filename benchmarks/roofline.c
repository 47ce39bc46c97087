// What the machine can do at most: bytes read from memory and products of bfloat16 in a second.

#include "../workers/team.h"
#include "../workers/vector.h"

#define CHUNK (1 << 18)  // bytes that a unit reads
#define AHEAD 2048       // bytes

typedef struct {
    const char *from;
    float sink[64];
} job_of;

static void read_chunk(void *job, int64_t unit, int64_t next) {
    (void)next;
    job_of *j = job;
    const char *at = j->from + unit * CHUNK;
    uvec sums[4] = {{0}};
    for (int64_t i = 0; i < CHUNK; i += 4 * sizeof(uvec)) {
        for (int line = 0; line < (int)(4 * sizeof(uvec)); line += 64)
            __builtin_prefetch(at + i + AHEAD + line);
        for (int v = 0; v < 4; v++) sums[v] ^= *(const uvec *)(at + i + v * sizeof(uvec));
    }
    j->sink[unit % 64] = (float)(sums[0] ^ sums[1] ^ sums[2] ^ sums[3])[0];
}

// Reads the whole CHUNKs of n bytes.
void read_all(const char *from, int64_t n, int64_t threads) {
    job_of job = {.from = from};
    team_run(read_chunk, &job, n / CHUNK, threads);
}

#define TIMES 20000
#define SUMS 12  // as many as hide the latency of an instruction

static void multiply_some(void *job, int64_t unit, int64_t next) {
    (void)next;
    job_of *j = job;
#ifdef __AVX512BF16__
    __m512 sums[SUMS];
    __m512bh x = (__m512bh)_mm512_set1_epi32((int)unit);
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t t = 0; t < TIMES; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
        __asm__ volatile("" : "+v"(x));
    }
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) j->sink[unit % 64] += _mm512_reduce_add_ps(sums[i]);
#else
    vec sums[SUMS] = {{0}}, x = {(float)unit};
    for (int64_t t = 0; t < TIMES; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) sums[i] += x * x;
        __asm__ volatile("" : "+x"(x));
    }
    for (int i = 0; i < SUMS; i++) j->sink[unit % 64] += sums[i][0];
#endif
}

// `units` times so many multiplications and additions; their number for one unit.
int64_t multiply_all(int64_t units, int64_t threads) {
    job_of job = {0};
    team_run(multiply_some, &job, units, threads);
#ifdef __AVX512BF16__
    return (int64_t)TIMES * SUMS * LANES * 4;
#else
    return (int64_t)TIMES * SUMS * LANES * 2;
#endif
}
