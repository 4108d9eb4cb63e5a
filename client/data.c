#include "client/data.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "client/shard.h"
#include "client/tokenizer.h"
#include "common/arena.h"
#include "common/mem.h"
#include "common/rng.h"

enum { BLOCK_DRAWS = 4096, SOURCES_MAX = 64, ARENA_MAX = 64 * 1024 * 1024 };

/* The shards of one split of one source, joined. */
struct stream {
    struct shard *shards;
    int64_t *ends; // tokens up to and including shard i
    int32_t count;
    int64_t tokens;
};

struct source {
    char dir[200]; // for messages
    struct stream splits[SPLIT_COUNT];
    int32_t quota; // draws in a block
    int32_t first; // the quotas before it, added
};

struct data {
    struct source *sources;
    int32_t count;
    struct data_info info;
    struct tokenizer *tokenizer;
};

/* ---- opening ---- */

static enum status open_shards(struct source *s, struct arena *a, const struct manifest *m,
                               const char *dir, struct err *e)
{
    for (int i = 0; i < SPLIT_COUNT; i++) {
        size_t room = (size_t)m->shard_count + 1;
        s->splits[i].shards = mem_alloc(room * sizeof(*s->splits[i].shards));
        s->splits[i].ends = mem_alloc(room * sizeof(*s->splits[i].ends));
    }
    for (int32_t i = 0; i < m->shard_count; i++) {
        const struct manifest_shard *want = &m->shards[i];
        struct stream *t = &s->splits[want->split];
        const char *path = arena_fmt(a, "%s/%s", dir, want->file);
        TRY(shard_open(&t->shards[t->count], path, e));
        int64_t tokens = t->shards[t->count].head.tokens;
        t->tokens += tokens;
        t->ends[t->count++] = t->tokens;
        if (tokens != want->tokens) {
            return err_set(e, ST_CORRUPT,
                           "%s has %" PRId64 " tokens where the manifest says %" PRId64
                           "; try `photon data check`",
                           path, tokens, want->tokens);
        }
    }
    return ST_OK;
}

/* The first source brings the tokenizer; the others must agree with it. */
static enum status take_tokenizer(struct data *d, struct arena *a, const struct manifest *m,
                                  const char *dir, struct err *e)
{
    struct tokenizer_info info;
    if (!d->tokenizer) {
        const char *path = *m->tokenizer_sha256 ? arena_fmt(a, "%s/tokenizer.json", dir) : "";
        TRY(tokenizer_open(&d->tokenizer, path, e));
        tokenizer_info(d->tokenizer, &info);
        if (strcmp(info.sha256, m->tokenizer_sha256) != 0) {
            return err_set(e, ST_CORRUPT,
                           "%s is not the tokenizer that the folder was made with; try `photon "
                           "data prepare` again",
                           path);
        }
        memcpy(d->info.tokenizer_sha256, info.sha256, sizeof(d->info.tokenizer_sha256));
    }
    tokenizer_info(d->tokenizer, &info);
    if (strcmp(info.sha256, m->tokenizer_sha256) != 0) {
        return err_set(e, ST_INVALID,
                       "%s was made with another tokenizer than the source before it; try `photon "
                       "data prepare` with one tokenizer for both",
                       dir);
    }
    if (info.ids < m->ids) {
        return err_set(e, ST_CORRUPT, "%s/manifest.json speaks of %d ids, its tokenizer of %d", dir,
                       m->ids, info.ids);
    }
    return ST_OK;
}

static enum status open_source(struct data *d, struct source *s, const char *dir, struct err *e)
{
    struct arena *a = arena_new(ARENA_MAX);
    struct manifest m;
    (void)snprintf(s->dir, sizeof(s->dir), "%s", dir);
    enum status st = manifest_read(&m, a, dir, e);
    st = st ? st : take_tokenizer(d, a, &m, dir, e);
    st = st ? st : open_shards(s, a, &m, dir, e);
    if (!st) {
        d->info.vocab_size = m.ids > d->info.vocab_size ? m.ids : d->info.vocab_size;
        d->info.train_tokens += s->splits[SPLIT_TRAIN].tokens;
        d->info.heldout_tokens += s->splits[SPLIT_HELDOUT].tokens;
    }
    arena_free(a);
    return st;
}

/* Whole draws of a block, by largest remainder; at least one each. */
static void share_block(struct data *d, const struct data_source_arg *args)
{
    double total = 0.0;
    for (int32_t i = 0; i < d->count; i++) {
        total += args[i].weight;
    }
    double rest[SOURCES_MAX];
    int32_t given = 0;
    for (int32_t i = 0; i < d->count; i++) {
        double share = args[i].weight / total * BLOCK_DRAWS;
        d->sources[i].quota = share < 1.0 ? 1 : (int32_t)share;
        rest[i] = share < 1.0 ? -1.0 : share - floor(share);
        given += d->sources[i].quota;
    }
    while (given != BLOCK_DRAWS) {
        int32_t best = 0;
        for (int32_t i = 1; i < d->count; i++) {
            bool more = given < BLOCK_DRAWS ? rest[i] > rest[best]
                                            : d->sources[i].quota > d->sources[best].quota;
            best = more ? i : best;
        }
        int32_t step = given < BLOCK_DRAWS ? 1 : -1;
        d->sources[best].quota += step;
        rest[best] -= 1.0;
        given += step;
    }
    for (int32_t i = 1; i < d->count; i++) {
        d->sources[i].first = d->sources[i - 1].first + d->sources[i - 1].quota;
    }
}

enum status data_open(struct data **out, const struct data_source_arg *sources, int count,
                      struct err *e)
{
    if (count < 1 || count > SOURCES_MAX) {
        return err_set(e, ST_INVALID, "%d sources of text, not 1 to %d", count, SOURCES_MAX);
    }
    for (int i = 0; i < count; i++) {
        if (!(sources[i].weight > 0.0) || sources[i].weight > 1e9) {
            return err_set(e, ST_INVALID, "the weight of %s must be above 0 and at most 1e9",
                           sources[i].dir);
        }
    }
    struct data *d = mem_alloc(sizeof(*d));
    d->sources = mem_alloc((size_t)count * sizeof(*d->sources));
    d->count = count;
    for (int i = 0; i < count; i++) {
        enum status st = open_source(d, &d->sources[i], sources[i].dir, e);
        if (st) {
            data_close(d);
            return st;
        }
    }
    share_block(d, sources);
    *out = d;
    return ST_OK;
}

void data_close(struct data *d)
{
    if (!d) {
        return;
    }
    for (int32_t i = 0; i < d->count; i++) {
        for (int k = 0; k < SPLIT_COUNT; k++) {
            struct stream *t = &d->sources[i].splits[k];
            for (int32_t n = 0; n < t->count; n++) {
                shard_close(&t->shards[n]);
            }
            mem_free(t->shards);
            mem_free(t->ends);
        }
    }
    tokenizer_free(d->tokenizer);
    mem_free(d->sources);
    mem_free(d);
}

void data_info(const struct data *d, struct data_info *out)
{
    *out = d->info;
}

enum status data_fits(const struct data *d, const char *tokenizer_sha256, int32_t vocab_size,
                      struct err *e)
{
    struct data_info info;
    data_info(d, &info);
    if (strcmp(info.tokenizer_sha256, tokenizer_sha256) != 0) {
        return err_set(e, ST_INVALID,
                       "the text is made with tokenizer '%.12s', the run wants '%.12s' (empty: "
                       "bytes); try photon data prepare with the run's tokenizer",
                       info.tokenizer_sha256, tokenizer_sha256);
    }
    if (info.vocab_size > vocab_size) {
        return err_set(e, ST_INVALID,
                       "the text has token ids up to %d, the model's vocabulary is %d; try photon "
                       "data prepare with the run's tokenizer",
                       info.vocab_size - 1, vocab_size);
    }
    return ST_OK;
}

/* ---- rows ---- */

static int64_t windows(const struct stream *t, int32_t seq_len)
{
    return t->tokens > 0 ? (t->tokens - 1) / seq_len : 0;
}

/* Tokens [at, at + count) of the joined shards, each below the vocabulary. */
static enum status read_stream(const struct data *d, const struct source *s, enum split split,
                               int64_t at, int64_t count, int32_t *out, struct err *e)
{
    const struct stream *t = &s->splits[split];
    assert(at >= 0 && at + count <= t->tokens);
    int32_t low = 0;
    for (int32_t high = t->count - 1; low < high;) { // the shard that holds token `at`
        int32_t mid = low + (high - low) / 2;
        if (t->ends[mid] > at) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    for (int64_t done = 0; done < count; low++) {
        int64_t start = low > 0 ? t->ends[low - 1] : 0;
        int64_t left = t->ends[low] - (at + done);
        int64_t some = left < count - done ? left : count - done;
        shard_read(&t->shards[low], at + done - start, some, out + done);
        done += some;
    }
    for (int64_t i = 0; i < count; i++) {
        if (out[i] < 0 || out[i] >= d->info.vocab_size) {
            return err_set(e, ST_CORRUPT,
                           "token %d in the %s shards of %s is no id below %d; try `photon data "
                           "check %s`",
                           out[i], SPLIT_NAMES[split], s->dir, d->info.vocab_size, s->dir);
        }
    }
    return ST_OK;
}

/* The source of a draw, and how many draws of that source came before it. */
static const struct source *pick(const struct data *d, uint64_t key, uint64_t draw, uint64_t *nth)
{
    uint64_t block = draw / BLOCK_DRAWS;
    int32_t place = (int32_t)(draw % BLOCK_DRAWS);
    if (d->count > 1) {
        place = (int32_t)rng_permute(rng_u64(key, block), (uint64_t)place, BLOCK_DRAWS);
    }
    const struct source *s = d->sources;
    while (place >= s->first + s->quota) {
        s++;
    }
    *nth = block * (uint64_t)s->quota + (uint64_t)(place - s->first);
    return s;
}

enum status data_train_rows(const struct data *d, uint64_t seed, int32_t silo_ordinal, int64_t step,
                            int32_t rows, int32_t seq_len, int32_t *out, struct err *e)
{
    assert(step >= 0 && rows > 0 && seq_len > 0);
    uint64_t key = rng_u64(rng_key(seed, "data rows"), (uint64_t)(uint32_t)silo_ordinal);
    for (int32_t r = 0; r < rows; r++) {
        uint64_t nth = 0;
        const struct source *s = pick(d, key, (uint64_t)step * (uint64_t)rows + (uint64_t)r, &nth);
        uint64_t n = (uint64_t)windows(&s->splits[SPLIT_TRAIN], seq_len);
        if (n == 0) {
            return err_set(e, ST_LIMIT,
                           "%s has %" PRId64 " tokens to train on, less than one row of %d; try "
                           "more text or a smaller seq_len",
                           s->dir, s->splits[SPLIT_TRAIN].tokens, seq_len + 1);
        }
        // A permutation of its own for every source and every time through it.
        uint64_t own = rng_u64(key ^ 0x736f75726365U, (uint64_t)(s - d->sources));
        uint64_t window = rng_permute(rng_u64(own, nth / n), nth % n, n);
        TRY(read_stream(d, s, SPLIT_TRAIN, (int64_t)window * seq_len, (int64_t)seq_len + 1,
                        out + (int64_t)r * (seq_len + 1), e));
    }
    return ST_OK;
}

int64_t data_heldout_windows(const struct data *d, int32_t seq_len)
{
    int64_t count = 0;
    for (int32_t i = 0; i < d->count; i++) {
        count += windows(&d->sources[i].splits[SPLIT_HELDOUT], seq_len);
    }
    return count;
}

enum status data_heldout_row(const struct data *d, int64_t i, int32_t seq_len, int32_t *out,
                             int64_t *target_bytes, struct err *e)
{
    int64_t left = i;
    const struct source *s = d->sources;
    const struct source *end = d->sources + d->count;
    for (; s < end && left >= windows(&s->splits[SPLIT_HELDOUT], seq_len); s++) {
        left -= windows(&s->splits[SPLIT_HELDOUT], seq_len);
    }
    if (i < 0 || s == end) {
        return err_set(e, ST_LIMIT,
                       "no held-out window %" PRId64 " of %d tokens; there are %" PRId64, i,
                       seq_len, data_heldout_windows(d, seq_len));
    }
    TRY(read_stream(d, s, SPLIT_HELDOUT, left * seq_len, (int64_t)seq_len + 1, out, e));
    int64_t bytes = 0;
    for (int32_t k = 1; k <= seq_len; k++) {
        bytes += tokenizer_token_bytes(d->tokenizer, out[k]);
    }
    *target_bytes = bytes;
    return ST_OK;
}

static enum status rows_train(void *ctx, int64_t step, int32_t rows, int32_t seq_len, int32_t *out,
                              struct err *e)
{
    const struct data_rows *r = ctx;
    return data_train_rows(r->data, r->seed, r->silo_ordinal, step, rows, seq_len, out, e);
}

static enum status rows_heldout(void *ctx, int64_t i, int32_t seq_len, int32_t *out,
                                int64_t *target_bytes, struct err *e)
{
    const struct data_rows *r = ctx;
    return data_heldout_row(r->data, i, seq_len, out, target_bytes, e);
}

struct row_source data_row_source(struct data_rows *rows)
{
    bool heldout = rows->data->info.heldout_tokens > 0;
    return (struct row_source){
        .ctx = rows, .train = rows_train, .heldout = heldout ? rows_heldout : NULL};
}
