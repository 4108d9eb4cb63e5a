/* The actors of sim_world.h: silos, servers, people, chance. */
#include "tests/support/sim_world.h"

#include <math.h>

enum { PATIENCE = 12 }; // seconds until a silo asks again

/* ---- the network ---- */

static double latency(void)
{
    return sim_stormy() && sim_below(20) == 0 ? sim_between(1.0, 20.0) : sim_between(0.001, 0.3);
}

static void carry(enum event_kind kind, int actor, unsigned life, const struct message *m)
{
    struct event e = {.kind = kind, .actor = actor, .life = life, .m = *m};
    if (sim_stormy() && (w.cut_until[m->silo][m->server] > w.now || sim_unit() < w.loss)) {
        sim_note("lost", m->silo, m->server);
        return;
    }
    sim_push(e, latency());
    if (sim_stormy() && sim_unit() < w.twice) {
        sim_push(e, latency());
    }
    if (sim_stormy() && kind == TO_SERVER && sim_unit() < w.late) {
        sim_push(e, sim_between(20.0, 300.0));
    }
}

/* ---- silos ---- */

static void set_timer(int i, double in_s)
{
    struct silo *o = &w.silo[i];
    sim_push(
        (struct event){.kind = SILO_TIMER, .actor = i, .life = o->life, .stage = (int)++o->timer},
        in_s);
}

static void ask(int i, enum request what)
{
    struct silo *o = &w.silo[i];
    struct message m = {.what = what,
                        .silo = i,
                        .server = o->server,
                        .id = what == BEAT ? 0 : ++o->asked,
                        .task = o->task,
                        .upload = o->upload,
                        .digest = o->digest,
                        .code = o->code};
    carry(TO_SERVER, m.server, 0, &m);
    if (what != BEAT) {
        set_timer(i, PATIENCE);
    }
}

static void rest(int i, double in_s)
{
    w.silo[i].phase = IDLE;
    set_timer(i, in_s);
}

static void begin_task(int i, const struct sim_task *t)
{
    struct silo *o = &w.silo[i];
    o->task = *t;
    o->digest = sim_mix(sim_mix(t->base, (uint64_t)i), 11);
    sim_push((struct event){.kind = SILO_BEAT, .actor = i, .life = o->life, .stage = (int)o->asked},
             SEAT_BEAT_S);
    if (o->trained == o->digest && o->trained_number == t->number) {
        o->phase = CREATING; // the attempt before was given up, or the agent restarted
        ask(i, CREATE);
        return;
    }
    o->phase = TRAIN;
    set_timer(i, o->speed * sim_between(0.8, 1.3));
}

static void trained(int i)
{
    static const char *const codes[] = {"oom", "transient", "shutdown", "diverged", "disk_full"};
    struct silo *o = &w.silo[i];
    if (sim_stormy() && sim_below(w.fails_one_in) == 0) {
        o->code = codes[sim_below(5)];
        o->phase = RELEASING;
        ask(i, RELEASE);
        return;
    }
    o->trained = o->digest;
    o->trained_number = o->task.number;
    o->phase = CREATING;
    ask(i, CREATE);
}

static void silo_timer(int i)
{
    static const enum request next[] = {CLAIM, CLAIM, CREATE, CHUNK, FINISHED, RELEASE};
    struct silo *o = &w.silo[i];
    if (o->phase == TRAIN) {
        trained(i);
        return;
    }
    o->server =
        sim_below(4) ? o->server : sim_below(SIM_SERVERS); // no answer: perhaps from the other
    ask(i, next[o->phase]);
}

static void beat(int i, int asked)
{
    struct silo *o = &w.silo[i];
    if (o->phase == IDLE || o->phase == RELEASING) {
        return;
    }
    ask(i, BEAT);
    sim_push((struct event){.kind = SILO_BEAT, .actor = i, .life = o->life, .stage = asked},
             SEAT_BEAT_S);
}

static void silo_told(int i, const struct message *m)
{
    struct silo *o = &w.silo[i];
    bool same = m->task.round == o->task.round && m->task.epoch == o->task.epoch &&
                m->task.seat == o->task.seat;
    if (m->what == BEAT) {
        if (m->hold != HOLD_YES && same && o->phase == TRAIN) {
            rest(i, sim_between(0.1, 2.0)); // somebody else has it: stop
        }
        return;
    }
    if (m->id != o->asked) {
        return; // the answer to what it has long asked again
    }
    if (m->what == CLAIM) {
        if (m->found) {
            begin_task(i, &m->task);
        } else {
            rest(i, sim_between(1.0, 5.0));
        }
    } else if (m->what == FINISHED && m->counted) {
        w.told[m->upload] = true;
        rest(i, 0.1);
    } else if (m->what == RELEASE || m->hold != HOLD_YES || m->bad) {
        if (m->what == FINISHED && m->hold == HOLD_ROUND_OVER) {
            w.over[m->upload] = true;
        }
        if (m->bad) {
            o->trained = 0; // thrown away: it trains anew
        }
        rest(i, sim_between(0.1, 2.0));
    } else if (m->what == CREATE) {
        o->upload = m->upload;
        bool hasty = sim_stormy() && sim_below(40) == 0; // says that it is done, and is not
        o->phase = hasty ? FINISHING : SENDING;
        ask(i, hasty ? FINISHED : CHUNK);
    } else if (m->what == CHUNK) {
        o->phase = FINISHING;
        ask(i, FINISHED);
    }
}

static void silo_dies(int i)
{
    struct silo *o = &w.silo[i];
    sim_note("silo dies", i, (int)o->phase);
    o->up = false;
    o->life++;
    sim_push((struct event){.kind = SILO_UP, .actor = i, .life = o->life},
             sim_below(3) ? sim_between(0.5, 30.0) : sim_between(30.0, 400.0));
}

/* ---- servers ---- */

static void server_dies(int i)
{
    sim_note("server dies", i, 0);
    w.server[i].up = false;
    w.server[i].folding = false;
    w.server[i].life++;
    sim_push((struct event){.kind = SERVER_UP, .actor = i, .life = w.server[i].life},
             sim_below(3) ? sim_between(0.2, 5.0) : sim_between(5.0, 200.0));
}

/* After each transaction of a request: its server may die before the next, or before it answers. */
static bool survives(int server)
{
    if (sim_stormy() && sim_below(250) == 0) {
        server_dies(server);
        return false;
    }
    return true;
}

static void reply(const struct message *m)
{
    if (survives(m->server)) {
        carry(TO_SILO, m->silo, w.silo[m->silo].life, m);
    }
}

/* A finish is several transactions with time between them. */
static void finish(struct message m, int stage)
{
    if (stage == 0) {
        m.hold = sim_may_finish(w.store, &m.task, m.silo, m.upload, &m.counted, w.now);
        if (m.counted || m.hold != HOLD_YES) {
            reply(&m);
            return;
        }
    } else if (stage == 1) {
        if (sim_stormy() && sim_below(40) == 0) {
            m.bad = true;
            sim_refuse(w.store, &m.task, m.silo, m.upload, w.now);
            reply(&m);
            return;
        }
        sim_place(w.store, m.upload);
    } else {
        bool rots = sim_stormy() && sim_below(w.rots_one_in) == 0;
        double rots_at = rots ? w.now + sim_between(0.0, 60.0) : (double)INFINITY;
        enum accept a = sim_accept(w.store, &m.task, m.silo, m.upload, rots_at, w.now);
        m.counted = a == ACCEPT_COUNT || a == ACCEPT_AGAIN;
        m.bad = a == ACCEPT_GONE;
        m.hold = HOLD_YES;
        if (a == ACCEPT_REFUSE) {
            m.hold = sim_may_finish(w.store, &m.task, m.silo, m.upload, &m.counted, w.now);
        }
        sim_note(m.counted ? "counts" : "does not count", m.silo, m.task.round);
        reply(&m);
        return;
    }
    if (survives(m.server)) {
        sim_push((struct event){.kind = FINISH,
                                .actor = m.server,
                                .life = w.server[m.server].life,
                                .stage = stage + 1,
                                .m = m},
                 sim_stormy() && sim_below(10) == 0 ? sim_between(1.0, 90.0)
                                                    : sim_between(0.001, 0.5));
    }
}

/* One silo speaks for the task of another, with all that it could have overheard. */
static void steal(struct message m)
{
    m.silo = (m.silo + 1) % w.store->spec.silos;
    m.digest++;
    if (sim_create(w.store, &m.task, m.silo, m.digest, &m.upload) == HOLD_YES) {
        (void)sim_chunk(w.store, &m.task, m.silo, m.upload, w.now);
        sim_place(w.store, m.upload);
        (void)sim_accept(w.store, &m.task, m.silo, m.upload, (double)INFINITY, w.now);
    }
    sim_release(w.store, &m.task, m.silo, "oom", 0.0, w.now);
}

static void serve(struct message m)
{
    if (m.what == CREATE && sim_stormy() && sim_below(20) == 0) {
        steal(m);
    }
    switch (m.what) {
    case CLAIM:
        m.found = sim_claim(w.store, m.silo, w.now, &m.task);
        if (m.found) {
            sim_note("claimed", m.silo, m.task.round * 100 + m.task.seat);
        }
        break;
    case BEAT:
        m.hold = sim_beat(w.store, &m.task, m.silo, w.now);
        break;
    case CREATE:
        m.hold = sim_create(w.store, &m.task, m.silo, m.digest, &m.upload);
        break;
    case CHUNK:
        m.hold = sim_chunk(w.store, &m.task, m.silo, m.upload, w.now);
        break;
    case FINISHED:
        finish(m, 0);
        return;
    case RELEASE:
        sim_release(w.store, &m.task, m.silo, m.code, sim_unit(), w.now);
        break;
    default:
        break;
    }
    reply(&m);
}

static void folder(int i)
{
    struct server *v = &w.server[i];
    sim_push((struct event){.kind = FOLDER, .actor = i, .life = v->life}, sim_between(1.0, 3.0));
    if (v->folding) {
        return;
    }
    sim_fold_begin(w.store, &v->fold, w.now);
    if (v->fold.found && survives(i)) {
        sim_note("folds", i, v->fold.round);
        if (sim_stormy() && v->fold.count > 0 &&
            sim_below(6) == 0) { // rots after this one has read it
            w.store->update[v->fold.update[sim_below(v->fold.count)]].rots_at = w.now + 0.01;
        }
        v->folding = true; // for seconds, or as one that is stopped: the fence must hold it off
        sim_push((struct event){.kind = FOLD_END, .actor = i, .life = v->life},
                 sim_stormy() && sim_below(2) == 0 ? sim_between(5.0, 100.0)
                                                   : sim_between(0.5, 4.0));
    }
}

static void tend(int i)
{
    const struct sim_store *s = w.store;
    int rounds = s->rounds;
    enum round_state state = rounds ? s->round[rounds - 1].state : ROUND_IS_NONE;
    sim_tend(w.store, i, w.now);
    if (s->rounds && (s->rounds != rounds || s->round[rounds - 1].state != state)) {
        sim_note("round", s->rounds - 1, (int)s->round[s->rounds - 1].state);
    }
    if (survives(i)) {
        sim_push((struct event){.kind = TENDER, .actor = i, .life = w.server[i].life},
                 sim_between(1.5, 3.0));
    }
}

static void server_up(int i)
{
    struct server *v = &w.server[i];
    v->up = true;
    sim_note("server up", i, 0);
    sim_arrive(w.store, i, w.now);
    sim_push((struct event){.kind = TENDER, .actor = i, .life = v->life}, sim_between(0.1, 1.0));
    sim_push((struct event){.kind = FOLDER, .actor = i, .life = v->life}, sim_between(0.1, 1.0));
}

/* ---- what people and chance do ---- */

static void chaos(void)
{
    if (!sim_stormy()) {
        return;
    }
    int silo = sim_below(w.store->spec.silos);
    int server = sim_below(SIM_SERVERS);
    switch (sim_below(8)) {
    case 0:
    case 1:
    case 2:
        if (w.silo[silo].up) {
            silo_dies(silo);
        }
        break;
    case 3:
        if (w.server[server].up) {
            server_dies(server);
        }
        break;
    case 4:
        for (int i = 0; i < SIM_SERVERS; i++) {
            if (w.server[i].up) {
                server_dies(i);
            }
        }
        break;
    case 5:
        w.cut_until[silo][server] = w.now + sim_between(1.0, 300.0);
        break;
    case 6:
        for (int i = 0; i < SIM_SERVERS; i++) {
            w.cut_until[silo][i] = w.now + sim_between(1.0, 200.0);
        }
        break;
    default:
        sim_note("pause", 0, 0);
        sim_pause(w.store);
        break;
    }
    sim_push((struct event){.kind = CHAOS}, sim_between(1.0, 80.0));
}

void sim_step(const struct event *e)
{
    bool of_server = e->kind == TENDER || e->kind == FOLDER || e->kind == FOLD_END ||
                     e->kind == FINISH || e->kind == SERVER_UP;
    bool of_silo =
        e->kind == TO_SILO || e->kind == SILO_TIMER || e->kind == SILO_BEAT || e->kind == SILO_UP;
    if ((of_server && e->life != w.server[e->actor].life) ||
        (of_silo && e->life != w.silo[e->actor].life)) {
        return;
    }
    switch (e->kind) {
    case TO_SERVER:
        if (w.server[e->actor].up) {
            serve(e->m);
        }
        break;
    case TO_SILO:
        silo_told(e->actor, &e->m);
        break;
    case SILO_TIMER:
        if ((unsigned)e->stage == w.silo[e->actor].timer) {
            silo_timer(e->actor);
        }
        break;
    case SILO_BEAT:
        if (e->m.what == CLAIM) {
            beat(e->actor, e->stage);
        }
        break;
    case SILO_UP:
        sim_note("silo up", e->actor, 0);
        w.silo[e->actor].up = true;
        rest(e->actor, 0.01);
        break;
    case SERVER_UP:
        server_up(e->actor);
        break;
    case TENDER:
        tend(e->actor);
        break;
    case FOLDER:
        folder(e->actor);
        break;
    case FOLD_END:
        w.server[e->actor].folding = false;
        sim_fold_end(w.store, &w.server[e->actor].fold, w.now);
        sim_note("folded", e->actor, w.store->head);
        break;
    case FINISH:
        finish(e->m, e->stage);
        break;
    case CHAOS:
        chaos();
        break;
    case PEOPLE:
        sim_resume(w.store, w.now);
        sim_push((struct event){.kind = PEOPLE}, sim_between(20.0, 200.0));
        break;
    case EVENT_KINDS:
    default:
        break;
    }
}
