/* See pool.h.
 *
 * One word, `seats`, holds the state of the open job:  job number : 32 | free seats : 16 | working : 16.
 * A thread joins by moving one from free to working, all in one compare-and-swap, so a job that has been closed (no free seats) can never
 * be joined, and its caller can return as soon as `working` is 0.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

#define SPIN_NS 30000     /* a futex wake costs 5 to 50 us: spin about as long, no longer (onnxruntime's 16 ms starve neighbours) */
#define IDLE_NS 50000000L /* how often a waiting caller looks up */

#define WORKING(s) ((s) & 0xffff)
#define FREE(s) ((s) >> 16 & 0xffff)
#define JOB(s) ((s) >> 32)

static struct {
    pthread_mutex_t growing; /* guards started and threads[] */
    pthread_t threads[QKVC_MAX_THREADS];
    int started;
#ifdef __linux__
    cpu_set_t cpus; /* what the threads inherited */
    int kept_off;   /* the one of them left to the caller, or -1 */
#endif
    atomic_int stopping;
    atomic_flag busy;

    /* the open job: written by its caller before `seats` is released, read by who took a seat */
    qkvc_task task;
    void *context;
    ptrdiff_t tasks;
    atomic_ptrdiff_t next;
    _Atomic uint64_t seats;

    /* sleepers */
    pthread_mutex_t lock;
    pthread_cond_t opened, finished;
    atomic_int asleep, waiting;
} pool = {.growing = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .opened = PTHREAD_COND_INITIALIZER,
          .finished = PTHREAD_COND_INITIALIZER,
          .busy = ATOMIC_FLAG_INIT};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void work(int worker)
{
    const qkvc_task task = pool.task;
    void *const context = pool.context;
    const ptrdiff_t tasks = pool.tasks;
    for (;;) {
        ptrdiff_t i = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
        if (i >= tasks) return;
        task(context, i, worker);
    }
}

/* Spin for a job other than `seen`, then sleep for it.  Returns the seats word, or 0 when the pool stops. */
static uint64_t await_job(uint64_t seen)
{
    const int64_t end = now_ns() + SPIN_NS;
    for (int i = 1;; ++i) {
        uint64_t s = atomic_load_explicit(&pool.seats, memory_order_acquire);
        if (atomic_load_explicit(&pool.stopping, memory_order_acquire)) return 0;
        if (JOB(s) != seen && FREE(s)) return s;
        PAUSE();
        if (i % 64 == 0 && now_ns() > end) break;
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.asleep, 1);
    uint64_t s;
    for (;;) {
        s = atomic_load(&pool.seats);
        if (atomic_load(&pool.stopping)) {
            s = 0;
            break;
        }
        if (JOB(s) != seen && FREE(s)) break;
        pthread_cond_wait(&pool.opened, &pool.lock);
    }
    atomic_fetch_sub(&pool.asleep, 1);
    pthread_mutex_unlock(&pool.lock);
    return s;
}

static void *live(void *unused)
{
    (void)unused;
    uint64_t seen = 0, s;
    while ((s = await_job(seen)) != 0) {
        while (JOB(s) != seen && FREE(s))
            if (atomic_compare_exchange_weak_explicit(&pool.seats, &s, s - (1 << 16) + 1, memory_order_acq_rel, memory_order_acquire)) {
                seen = JOB(s);
                work((int)FREE(s)); /* the number of the seat: scratch is per seat */
                uint64_t left = atomic_fetch_sub_explicit(&pool.seats, 1, memory_order_seq_cst) - 1;
                if (WORKING(left) == 0 && atomic_load_explicit(&pool.waiting, memory_order_seq_cst)) {
                    pthread_mutex_lock(&pool.lock);
                    pthread_cond_signal(&pool.finished);
                    pthread_mutex_unlock(&pool.lock);
                }
                break;
            }
        if (JOB(s) != seen) seen = JOB(s); /* full: not for this thread */
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------------------------ fork */

static void stop_threads(void)
{
    atomic_store(&pool.stopping, 1);
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.opened);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.started; ++i) pthread_join(pool.threads[i], NULL);
    pool.started = 0;
    atomic_store(&pool.stopping, 0);
}

static int stopped_for_fork;

/* An idle pool is joined before the fork: nothing of it can be half-way, and a process of one thread forks without Python's warning. */
static void before_fork(void)
{
    stopped_for_fork = !atomic_flag_test_and_set(&pool.busy);
    if (stopped_for_fork) {
        pthread_mutex_lock(&pool.growing);
        stop_threads();
    }
}

static void after_fork_parent(void)
{
    if (!stopped_for_fork) return;
    pthread_mutex_unlock(&pool.growing);
    atomic_flag_clear(&pool.busy);
}

static void after_fork_child(void)
{
    pool.started = 0;
    pthread_mutex_init(&pool.growing, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.opened, NULL);
    pthread_cond_init(&pool.finished, NULL);
    atomic_store(&pool.seats, JOB(atomic_load(&pool.seats)) << 32);
    atomic_store(&pool.asleep, 0);
    atomic_store(&pool.waiting, 0);
    atomic_store(&pool.stopping, 0);
    atomic_flag_clear(&pool.busy);
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork_parent, after_fork_child); }

/* ------------------------------------------------------------------------------------------------------------------------- jobs */

/* Have `wanted` threads, or as many as the system gives.  They take no signals: Ctrl-C belongs to the caller's threads. */
static void grow(int wanted)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (pool.started >= wanted) return;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&pool.growing);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
#ifdef __linux__
    if (pool.started == 0 && pthread_getaffinity_np(pthread_self(), sizeof pool.cpus, &pool.cpus) != 0) CPU_ZERO(&pool.cpus);
    pool.kept_off = -1;
#endif
    while (pool.started < wanted && pthread_create(&pool.threads[pool.started], &small, live, NULL) == 0) pool.started++;
    pthread_attr_destroy(&small);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_mutex_unlock(&pool.growing);
}

/* Leave the caller's CPU to the caller.
 *
 * A scheduler that packs woken threads onto few CPUs (to save energy, or a host's virtual CPUs) puts a sleeper on the CPU of who wakes it
 * and moves it off only after some 5 ms: two threads then share one core, 0.2 ms of work took 0.41 ms, and 0.25 with this.  The caller
 * seldom moves, so mostly this is one look at a number.
 */
static void keep_off_this_cpu(void)
{
#ifdef __linux__
    int here = sched_getcpu();
    if (here == pool.kept_off || here < 0 || here >= CPU_SETSIZE || CPU_COUNT(&pool.cpus) < 2) return;
    cpu_set_t others = pool.cpus;
    CPU_CLR(here, &others);
    for (int i = 0; i < pool.started; ++i) pthread_setaffinity_np(pool.threads[i], sizeof others, &others);
    pool.kept_off = here;
#endif
}

int qkvc_pool_started(void) { return pool.started; }

static atomic_int process_threads = 1;

__attribute__((visibility("default"))) int qkvc_get_num_threads(void) { return atomic_load(&process_threads); }

__attribute__((visibility("default"))) void qkvc_set_num_threads(int n)
{
    atomic_store(&process_threads, n < 1 ? 1 : n > QKVC_MAX_THREADS ? QKVC_MAX_THREADS : n);
}

static void wait_for_workers(qkvc_idle idle)
{
    int64_t end = now_ns() + SPIN_NS;
    for (int i = 1; WORKING(atomic_load_explicit(&pool.seats, memory_order_acquire)); ++i) {
        PAUSE();
        if (i % 64 == 0 && now_ns() > end) break;
    }
    if (!WORKING(atomic_load_explicit(&pool.seats, memory_order_acquire))) return;
    atomic_store(&pool.waiting, 1);
    pthread_mutex_lock(&pool.lock);
    while (WORKING(atomic_load(&pool.seats))) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += IDLE_NS;
        t.tv_sec += t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        if (pthread_cond_timedwait(&pool.finished, &pool.lock, &t) == ETIMEDOUT && idle) {
            pthread_mutex_unlock(&pool.lock);
            idle(pool.context);
            pthread_mutex_lock(&pool.lock);
        }
    }
    pthread_mutex_unlock(&pool.lock);
    atomic_store(&pool.waiting, 0);
}

void qkvc_pool_run(qkvc_task task, qkvc_idle idle, void *context, ptrdiff_t tasks, int threads)
{
    int seats = (threads < QKVC_MAX_THREADS ? threads : QKVC_MAX_THREADS) - 1;
    if (tasks - 1 < seats) seats = (int)(tasks - 1);
    if (seats < 1 || atomic_flag_test_and_set_explicit(&pool.busy, memory_order_acquire)) {
        for (ptrdiff_t i = 0; i < tasks; ++i) task(context, i, 0);
        return;
    }
    grow(seats);
    keep_off_this_cpu();
    pool.task = task;
    pool.context = context;
    pool.tasks = tasks;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    uint64_t job = (JOB(atomic_load(&pool.seats)) + 1) & 0xffffffff;
    if (job == 0) job = 1; /* 0 is what a thread has seen that has seen nothing */
    atomic_store(&pool.seats, job << 32 | (uint64_t)seats << 16);
    if (atomic_load(&pool.asleep)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.opened);
        pthread_mutex_unlock(&pool.lock);
    }
    work(0);
    uint64_t s = atomic_load(&pool.seats); /* close: who has not begun need not */
    while (!atomic_compare_exchange_weak(&pool.seats, &s, s & ~((uint64_t)0xffff << 16))) {}
    wait_for_workers(idle);
    atomic_flag_clear_explicit(&pool.busy, memory_order_release);
}
