/* A pool of threads for one kind of job: call task(context, i, worker) for every i < tasks.
 *
 * The caller works too, as worker 0.  Threads start when first wanted, spin for a moment between jobs and then sleep.  Tasks are handed out
 * in order from one counter, so put the heaviest first.  A job never waits for a thread that has not begun.  A pool that is busy with
 * another caller's job (or with the job this call came from) runs the new one on the caller's thread alone: nothing can deadlock.
 * After fork() the child starts threads of its own when it wants them.
 */
#ifndef QKVC_POOL_H
#define QKVC_POOL_H

#include <stddef.h>

#define QKVC_MAX_THREADS 256

typedef void (*qkvc_task)(void *context, ptrdiff_t task, int worker);
typedef void (*qkvc_idle)(void *context); /* called on the caller's thread every 50 ms that it waits for others */

void qkvc_pool_run(qkvc_task task, qkvc_idle idle, void *context, ptrdiff_t tasks, int threads);

/* How many threads a call may use, the process's setting.  The only symbols of the extension that others see: threadpoolctl finds them by
 * name (qkvc/integrations/threadpools.py). */
int qkvc_get_num_threads(void);
void qkvc_set_num_threads(int n);

/* Threads the pool has started and not yet stopped. */
int qkvc_pool_started(void);

#endif
