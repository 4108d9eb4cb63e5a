#include "common/spec_schedule.h"

#include "common/layout.h"
#include "common/schedule.h"

static void check_fragments(const struct spec_part *p, const struct run_spec *s)
{
    int32_t parts = s->federation.fragments;
    int32_t most = layout_fragments_max(s);
    if (parts > most) {
        spec_complain(p, "fragments", "%d is more than the model has blocks and embeddings; try %d",
                      parts, most);
    } else if (parts > s->federation.rounds) {
        spec_complain(p, "fragments", "%d rounds never synchronise all of %d fragments; try %d",
                      s->federation.rounds, parts, s->federation.rounds);
    }
    if (s->inner_state == INNER_STATE_AVERAGE) {
        spec_complain(p, "fragments",
                      "an update of a fragment has no moments of the others to average; try "
                      "inner_state keep, or 1");
    }
}

static void check_overlap(const struct spec_part *p, const struct run_spec *s)
{
    int32_t tau = s->federation.local_steps;
    if (s->federation.overlap_steps > tau) {
        spec_complain(p, "overlap_steps", "a round has %d steps; try %d", tau, (tau + 3) / 4);
    }
    if (s->federation.local_steps_policy != STEPS_FIXED) {
        spec_complain(p, "overlap_steps",
                      "the next round's steps are not known yet; try local_steps_policy fixed, or "
                      "0");
    }
    if (s->inner_state == INNER_STATE_AVERAGE) {
        spec_complain(p, "overlap_steps",
                      "averaged moments come with the checkpoint; try inner_state keep, or 0");
    }
}

void spec_schedule_check(const struct spec_part *federation, const struct run_spec *s)
{
    if (s->federation.overlap_steps > 0) {
        check_overlap(federation, s);
    }
    if (schedule_fragments(s) > 1) {
        check_fragments(federation, s);
    }
}
