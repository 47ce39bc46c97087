// A team of threads that share out the units of a job. See team.c.
#pragma once
#include <stdint.h>

// `next` is the unit that this thread is likely to get after `unit`, or -1.
typedef void unit_work(void *job, int64_t unit, int64_t next);

// run(job, unit, next) for every unit in 0..units-1, on up to `threads` threads. A call while
// another thread's job runs does its job alone.
void team_run(unit_work *run, void *job, int64_t units, int64_t threads);
