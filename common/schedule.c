#include "common/schedule.h"

int32_t schedule_fragments(const struct run_spec *s)
{
    return s->federation.fragments > 1 ? s->federation.fragments : 1;
}

int32_t schedule_fragment(const struct run_spec *s, int64_t round)
{
    return (int32_t)((round - 1) % schedule_fragments(s));
}

int32_t schedule_outer_step(const struct run_spec *s, int32_t round)
{
    return (round - 1) / schedule_fragments(s) + 1;
}

bool schedule_renewed(const struct run_spec *s, int32_t fragment, int64_t kept, int64_t round)
{
    int64_t parts = schedule_fragments(s);
    if (kept < 1 || kept >= round || round - kept >= parts) {
        return true;
    }
    // From `kept` on, whose own update is in the checkpoint after it, fragments follow in turn.
    int64_t first = schedule_fragment(s, kept);
    return (fragment - first + parts) % parts < round - kept;
}

int32_t schedule_steps_ahead(const struct run_spec *s, int64_t kept, int64_t round)
{
    return kept >= 1 && kept == round - 1 ? s->federation.overlap_steps : 0;
}

bool schedule_keeps_weights(const struct run_spec *s)
{
    return s->federation.overlap_steps > 0 || schedule_fragments(s) > 1 || s->personal.count > 0;
}
