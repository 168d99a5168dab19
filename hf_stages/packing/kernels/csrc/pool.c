/* A few threads that share out the chunks of one job at a time; whoever calls works along.
 *
 * OpenMP is left alone: two of its runtimes in a process fight over cores, and a forked child hangs in them. A caller who
 * finds the threads taken works alone. A forked child begins without threads, and starts its own. */
#include "lowbit.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MOST 64
#define SPINS 1500 /* some 30 us: about what waking a thread takes */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int started;
    void (*work)(void *, int64_t);
    void *about;
    int64_t chunks;
    atomic_int taken;      /* by a caller */
    atomic_int open;       /* threads may join */
    atomic_int places;     /* for so many more of them */
    atomic_int inside;
    atomic_int sleeping;
    atomic_uint turn;
    atomic_llong next;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void share(void) {
    int64_t chunk;
    while ((chunk = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed)) < pool.chunks)
        pool.work(pool.about, chunk);
}

static unsigned await_turn(unsigned seen) {
    for (int spin = 0; spin < SPINS; spin++) {
        const unsigned turn = atomic_load(&pool.turn);
        if (turn != seen) return turn;
        pause_briefly();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleeping, 1);
    while (atomic_load(&pool.turn) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleeping, 1);
    pthread_mutex_unlock(&pool.lock);
    return atomic_load(&pool.turn);
}

static void *serve(void *began) {
    unsigned turn = (unsigned)(uintptr_t)began;
    for (;;) {
        turn = await_turn(turn);
        /* First in, then look: a caller who closes and then sees nobody inside is alone. */
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.open) && atomic_fetch_sub(&pool.places, 1) > 0) share();
        atomic_fetch_sub(&pool.inside, 1);
    }
    return 0;
}

static void forget(void) { /* in a forked child, where no thread but the caller lives on */
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
    pool.lock = lock, pool.wake = wake, pool.started = 0;
    atomic_store(&pool.taken, 0), atomic_store(&pool.open, 0), atomic_store(&pool.inside, 0), atomic_store(&pool.sleeping, 0);
}

static void start(int wanted) { /* by whoever has taken the pool */
    static int registered;
    if (!registered) registered = !pthread_atfork(0, 0, forget);
    if (!registered) return;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    while (pool.started < wanted) {
        pthread_t thread;
        const uintptr_t turn = atomic_load(&pool.turn);
        if (pthread_create(&thread, &attributes, serve, (void *)turn)) break; /* fewer, then */
        pool.started++;
    }
    pthread_attr_destroy(&attributes);
}

void lb_parallel(int threads, int64_t chunks, void (*work)(void *, int64_t), void *about) {
    int helpers = (int)lb_min(lb_min(threads, MOST), chunks) - 1, none = 0;
    if (helpers < 1 || !atomic_compare_exchange_strong(&pool.taken, &none, 1)) {
        for (int64_t chunk = 0; chunk < chunks; chunk++) work(about, chunk);
        return;
    }
    if (pool.started < helpers) start(helpers);
    pool.work = work, pool.about = about, pool.chunks = chunks;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.places, helpers);
    atomic_store(&pool.open, 1);
    atomic_fetch_add(&pool.turn, 1);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    share();
    atomic_store(&pool.open, 0);
    for (int spin = 0; atomic_load(&pool.inside); spin++) {
        if (spin < SPINS) pause_briefly();
        else sched_yield(); /* one of them may have lost its core in mid-chunk */
    }
    atomic_store(&pool.taken, 0);
}
