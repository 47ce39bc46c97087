// A team of threads that share out the units of a job, for kernels that take 10 to 1000 us.
//
// A job is cut into one region of units for each thread. A thread takes its own region from the
// front, then what is left of the others' from the back. The caller works too and waits for units
// that are being worked on, never for a thread that has yet to begin one: where the other cores
// are taken or the helpers asleep, it does the job alone at its own speed. (An OpenMP region waits
// for all of its threads: 40 us to wake one here, a time slice where its core is taken.)
//
// Helpers look for the next job for SPIN_NS, giving way to whatever else wants their core, then
// sleep.

#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "team.h"

#define MAX_THREADS 64
#ifndef SPIN_NS
#define SPIN_NS 50000   // most of what comes between two kernels; more takes time from other work
#endif
#define SPINS 64        // looks at the job between two calls of sched_yield
#define WAIT_SPINS 4000 // looks at the helpers before the caller sleeps: about 40 us

#ifdef __x86_64__
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

typedef struct {
    _Alignas(64) _Atomic uint64_t taken;  // from the front in the lower half, from the back above
    int64_t first, size;
} region;

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER;
static int64_t members = 1;  // the caller and the helpers that exist
static struct {
    unit_work *run;
    void *job;
    int64_t threads;
} current;
static region regions[MAX_THREADS];
static _Alignas(64) _Atomic uint32_t turn;  // odd while a job is open; helpers sleep on it
static _Alignas(64) _Atomic int32_t inside;  // helpers that may be looking at the job
static _Alignas(64) _Atomic int32_t asleep;
static _Alignas(64) _Atomic int32_t waiting;  // the caller sleeps on `inside`

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void work_through(int64_t me) {
    for (int64_t i = 0; i < current.threads; i++) {
        region *r = &regions[(me + i) % current.threads];
        int64_t step = i ? -1 : 1;
        for (;;) {
            uint64_t taken = atomic_fetch_add(&r->taken, i ? 1ull << 32 : 1);
            int64_t front = (uint32_t)taken, back = taken >> 32, left = r->size - front - back;
            if (left <= 0) break;
            int64_t unit = i ? r->first + r->size - 1 - back : r->first + front;
            current.run(current.job, unit, left > 1 ? unit + step : -1);
        }
    }
}

// The turn of a job after the one of turn `seen`.
static uint32_t next_turn(uint32_t seen) {
    int64_t deadline = nanoseconds() + SPIN_NS;
    for (;;) {
        uint32_t now;
        for (int i = 0; i < SPINS; i++) {
            now = atomic_load(&turn);
            if (now != seen && now % 2) return now;
            PAUSE();
        }
        if (nanoseconds() < deadline) {
            sched_yield();
        } else {
            atomic_fetch_add(&asleep, 1);
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
            atomic_fetch_sub(&asleep, 1);
            deadline = nanoseconds() + SPIN_NS;
        }
    }
}

static void *help(void *me) {
    for (uint32_t seen = 0;;) {
        seen = next_turn(seen);
        atomic_fetch_add(&inside, 1);
        // The job can be trusted only if it is open still now that the caller would wait.
        if (atomic_load(&turn) == seen && (int64_t)me < current.threads) work_through((int64_t)me);
        if (atomic_fetch_sub(&inside, 1) == 1 && atomic_load(&waiting))
            syscall(SYS_futex, &inside, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    return NULL;
}

// A helper that has lost its core in the middle of a unit gets the caller's when the caller sleeps.
static void wait_for_helpers(void) {
    for (int spins = 0; spins < WAIT_SPINS; spins++) {
        if (!atomic_load(&inside)) return;
        PAUSE();
    }
    atomic_store(&waiting, 1);
    for (int32_t n; (n = atomic_load(&inside));)
        syscall(SYS_futex, &inside, FUTEX_WAIT_PRIVATE, n, NULL, NULL, 0);
    atomic_store(&waiting, 0);
}

static void recruit(int64_t threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the process's own threads
    for (; members < threads; members++) {
        pthread_t helper;
        if (pthread_create(&helper, NULL, help, (void *)members)) break;
        pthread_detach(helper);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void team_run(unit_work *run, void *job, int64_t units, int64_t threads) {
    threads = threads < units ? threads : units;
    threads = threads < MAX_THREADS ? threads : MAX_THREADS;
    if (threads <= 1 || pthread_mutex_trylock(&caller)) {
        for (int64_t unit = 0; unit < units; unit++)
            run(job, unit, unit + 1 < units ? unit + 1 : -1);
        return;
    }
    if (members < threads) recruit(threads);
    current.run = run;
    current.job = job;
    current.threads = threads;
    for (int64_t i = 0; i < threads; i++) {
        regions[i].first = units * i / threads;
        regions[i].size = units * (i + 1) / threads - regions[i].first;
        atomic_store_explicit(&regions[i].taken, 0, memory_order_relaxed);
    }
    atomic_fetch_add(&turn, 1);
    if (atomic_load(&asleep)) syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    work_through(0);
    atomic_fetch_add(&turn, 1);
    wait_for_helpers();
    pthread_mutex_unlock(&caller);
}
