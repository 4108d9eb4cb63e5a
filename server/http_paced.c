/*
 * http_paced.c - files that go through control no faster than they may. Its event loop serves
 * everybody, so it never sleeps for one of them: the connection is suspended, and the ticker of
 * http_work.c resumes it when its time has come.
 */
#include <microhttpd.h>

#include "server/http_int.h"

void paced_init(struct paced *p)
{
    *p = (struct paced){.first = NULL};
    (void)pthread_mutex_init(&p->lock, NULL);
}

void paced_destroy(struct paced *p)
{
    (void)pthread_mutex_destroy(&p->lock);
}

bool paced_wait(struct paced *p, struct exchange *x)
{
    (void)pthread_mutex_lock(&p->lock);
    bool waits = !p->ended;
    if (waits) {
        MHD_suspend_connection(x->mhd);
        x->next = p->first;
        p->first = x;
    }
    (void)pthread_mutex_unlock(&p->lock);
    return waits;
}

/* Under the lock, so that none is resumed before it is suspended. */
static void resume(struct paced *p, int64_t now_ms)
{
    for (struct exchange **at = &p->first; *at;) {
        struct exchange *x = *at;
        if (p->ended || x->send_at_ms <= now_ms) {
            *at = x->next;
            x->next = NULL;
            exchange_resume(x); // it is libmicrohttpd's from here on
        } else {
            at = &x->next;
        }
    }
}

void paced_tick(struct paced *p, int64_t now_ms)
{
    (void)pthread_mutex_lock(&p->lock);
    resume(p, now_ms);
    (void)pthread_mutex_unlock(&p->lock);
}

void paced_end(struct paced *p)
{
    (void)pthread_mutex_lock(&p->lock);
    p->ended = true;
    resume(p, 0);
    (void)pthread_mutex_unlock(&p->lock);
}
