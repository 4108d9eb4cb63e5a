/* The invariants of sim_store.h. */
#include "tests/support/sim_store_int.h"

static void check_seat(struct sim_store *s, int round, int seat)
{
    const struct sim_seat *k = &s->round[round].seat[seat];
    int counted = 0;
    int rows = 0;
    for (int i = s->updates - 1; i >= 0 && s->update[i].round >= round; i--) {
        const struct sim_update *u = &s->update[i];
        if (u->round != round || u->seat != seat) {
            continue;
        }
        rows++;
        counted += u->accepted;
        bool real = u->epoch >= 1 && u->epoch <= k->leases;
        const struct sim_lease *l = real ? &k->lease[u->epoch - 1] : NULL;
        if (!l || l->silo != u->silo || l->outcome != OUT_ACCEPTED) {
            sim_broken(s, "I7: an update whose lease is another silo's, or was not accepted");
        }
        if (u->events != 1) {
            sim_broken(s, "I11: an update has %d events", u->events);
        }
    }
    if (counted > 1) {
        sim_broken(s, "I2: %d counted updates for one seat", counted);
    }
    if ((k->s.state == SEAT_DONE) != (rows == 1)) {
        sim_broken(s, "I7: done without its update, or the other way round");
    }
    const struct sim_lease *last = k->leases ? &k->lease[k->leases - 1] : NULL;
    bool open = last && last->outcome == OUT_HELD;
    if (open != (k->s.state == SEAT_LEASED) ||
        (open && (k->s.epoch != k->leases || k->s.silo != last->silo))) {
        sim_broken(s, "I7: an open lease without a leased task, or the other way round");
    }
    if (k->failures > SEAT_ATTEMPTS) {
        sim_broken(s, "a seat failed %d times", k->failures);
    }
}

static void check_round(struct sim_store *s, int round)
{
    const struct sim_round *q = &s->round[round];
    bool by[SIM_SILOS] = {0};
    int sits[SIM_SILOS] = {0};
    for (int k = 0; k < q->seats; k++) {
        check_seat(s, round, k);
        int u = sim_update_of(s, round, k);
        if (u >= 0 && by[s->update[u].silo]) {
            sim_broken(s, "I2: two counted updates of one silo");
        }
        if (u >= 0) {
            by[s->update[u].silo] = true;
        }
        enum seat_state state = q->seat[k].s.state;
        if (state == SEAT_PENDING || state == SEAT_LEASED || state == SEAT_DONE) {
            if (sits[q->seat[k].s.silo]++) {
                sim_broken(s, "task_silo_once: a silo has two seats of a round");
            }
        }
    }
    bool sealed = q->state == ROUND_IS_AGGREGATING || q->state == ROUND_IS_CLOSED;
    if (sealed && q->manifest != sim_manifest_now(s, round)) {
        sim_broken(s, "I6: updates changed after the seal");
    }
    if (sealed && sim_accepted(s, round) < q->quorum) {
        sim_broken(s, "I6: below quorum");
    }
    if (q->state == ROUND_IS_CLOSED) {
        int list[SIM_SEATS];
        int n = 0;
        for (int k = 0; k < q->seats; k++) {
            int u = sim_update_of(s, round, k);
            if (u >= 0) {
                list[n++] = u;
            }
        }
        const struct sim_checkpoint *c = &s->checkpoint[q->number];
        if (c->round != round || c->manifest != q->manifest ||
            c->weights != sim_sum(s, s->checkpoint[q->number - 1].weights, list, n)) {
            sim_broken(s, "I3: checkpoint %d is not its parent plus its round's manifest",
                       q->number);
        }
    }
}

bool sim_check(struct sim_store *s, bool whole)
{
    if (s->dirty >= 0) {
        check_round(s, s->dirty);
    }
    s->dirty = -1;
    const struct sim_round *q = sim_live(s);
    if (q && q->number != s->head + 1) {
        sim_broken(s, "I5: a live round that does not build on head");
    }
    for (int r = 0; whole && r < s->rounds; r++) {
        check_round(s, r);
        bool lives = s->round[r].state != ROUND_IS_CLOSED && s->round[r].state != ROUND_IS_ABORTED;
        if (lives && r != s->rounds - 1) {
            sim_broken(s, "I5: two live rounds");
        }
        for (int o = 0; o < r; o++) {
            if (s->round[o].number == s->round[r].number && s->round[o].state == ROUND_IS_CLOSED) {
                sim_broken(s, "I4: round %d was closed and opened again", s->round[r].number);
            }
        }
    }
    return !s->broken[0];
}
