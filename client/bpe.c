#include "client/bpe.h"

#include <assert.h>
#include <string.h>

#include "common/mem.h"

enum { CACHE_SLOTS = 1 << 15, KEY_MAX = 23, CACHED_IDS_MAX = 9, SHORT_MAX = 48 };

struct slot { // one cache line
    uint8_t len;
    uint8_t count;
    char key[KEY_MAX + 1];
    int32_t ids[CACHED_IDS_MAX];
};

/* A symbol of a long piece, in a list by place; the neighbours of a merged symbol skip it. */
struct node {
    int32_t id; // -1: merged into the one before
    int32_t prev;
    int32_t next;
};

/* A merge that was possible when it was found. */
struct offer {
    int32_t rank;
    int32_t at;   // the left symbol's place
    int32_t left; // what stood there then
    int32_t right;
    int32_t id;
};

struct bpe {
    const struct tokenizer *t;
    struct slot *slots;
    int32_t *ids;
    struct node *nodes;
    struct offer *heap;
    int32_t heap_count;
    size_t room; // of nodes; the heap holds three times as many
};

struct bpe *bpe_new(const struct tokenizer *t)
{
    struct bpe *b = mem_alloc(sizeof(*b));
    b->t = t;
    b->slots = mem_alloc(CACHE_SLOTS * sizeof(*b->slots));
    b->ids = mem_alloc(SHORT_MAX * sizeof(*b->ids));
    return b;
}

void bpe_free(struct bpe *b)
{
    if (b) {
        mem_free(b->slots);
        mem_free(b->ids);
        mem_free(b->nodes);
        mem_free(b->heap);
        mem_free(b);
    }
}

static const struct merge *find(const struct bpe *b, int32_t left, int32_t right)
{
    return merge_table_find(&b->t->merges, pair_of(left, right));
}

/* Each merge looks at all neighbours' ranks: cheap while they fit a few cache lines. */
static int32_t merge_short(struct bpe *b, const unsigned char *piece, int32_t n)
{
    const struct merge *with[SHORT_MAX]; // with[i]: merge of i and i + 1, or NULL
    for (int32_t i = 0; i < n; i++) {
        b->ids[i] = b->t->byte_id[piece[i]];
    }
    for (int32_t i = 0; i + 1 < n; i++) {
        with[i] = find(b, b->ids[i], b->ids[i + 1]);
    }
    for (;;) {
        int32_t best = -1;
        for (int32_t i = 0; i + 1 < n; i++) {
            if (with[i] && (best < 0 || with[i]->rank < with[best]->rank)) {
                best = i;
            }
        }
        if (best < 0) {
            return n;
        }
        b->ids[best] = with[best]->id;
        n--;
        for (int32_t i = best + 1; i < n; i++) {
            b->ids[i] = b->ids[i + 1];
            with[i - 1] = with[i];
        }
        if (best > 0) {
            with[best - 1] = find(b, b->ids[best - 1], b->ids[best]);
        }
        if (best + 1 < n) {
            with[best] = find(b, b->ids[best], b->ids[best + 1]);
        }
    }
}

static bool before(const struct offer *x, const struct offer *y)
{
    return x->rank != y->rank ? x->rank < y->rank : x->at < y->at;
}

static void push(struct bpe *b, struct offer o)
{
    int32_t i = b->heap_count++;
    assert((size_t)i < 3 * b->room);
    while (i > 0 && before(&o, &b->heap[(i - 1) / 2])) {
        b->heap[i] = b->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    b->heap[i] = o;
}

static struct offer pop(struct bpe *b)
{
    struct offer top = b->heap[0];
    struct offer last = b->heap[--b->heap_count];
    int32_t i = 0;
    for (int32_t child = 1; child < b->heap_count; child = 2 * i + 1) {
        if (child + 1 < b->heap_count && before(&b->heap[child + 1], &b->heap[child])) {
            child++;
        }
        if (!before(&b->heap[child], &last)) {
            break;
        }
        b->heap[i] = b->heap[child];
        i = child;
    }
    b->heap[i] = last;
    return top;
}

static void offer(struct bpe *b, int32_t at)
{
    if (at < 0 || b->nodes[at].next < 0) {
        return;
    }
    int32_t left = b->nodes[at].id;
    int32_t right = b->nodes[b->nodes[at].next].id;
    const struct merge *m = find(b, left, right);
    if (m) {
        push(b, (struct offer){m->rank, at, left, right, m->id});
    }
}

/* A piece of n bytes has n - 1 first offers and at most two more for each of its n - 1 merges. */
static void make_room(struct bpe *b, size_t n)
{
    if (n <= b->room) {
        return;
    }
    mem_free(b->nodes);
    mem_free(b->heap);
    mem_free(b->ids);
    b->room = n;
    b->nodes = mem_alloc(n * sizeof(*b->nodes));
    b->heap = mem_alloc(3 * n * sizeof(*b->heap));
    b->ids = mem_alloc(n * sizeof(*b->ids));
}

static int32_t merge_long(struct bpe *b, const unsigned char *piece, int32_t n)
{
    make_room(b, (size_t)n);
    for (int32_t i = 0; i < n; i++) {
        b->nodes[i] = (struct node){b->t->byte_id[piece[i]], i - 1, i + 1 < n ? i + 1 : -1};
    }
    b->heap_count = 0;
    for (int32_t i = 0; i < n; i++) {
        offer(b, i);
    }
    while (b->heap_count > 0) {
        struct offer o = pop(b);
        struct node *left = &b->nodes[o.at];
        if (left->id != o.left || left->next < 0 || b->nodes[left->next].id != o.right) {
            continue; // one of the two was merged with another meanwhile
        }
        b->nodes[left->next].id = -1;
        left->next = b->nodes[left->next].next;
        left->id = o.id;
        if (left->next >= 0) {
            b->nodes[left->next].prev = o.at;
        }
        offer(b, left->prev);
        offer(b, o.at);
    }
    int32_t count = 0;
    for (int32_t i = 0; i >= 0; i = b->nodes[i].next) {
        b->ids[count++] = b->nodes[i].id;
    }
    return count;
}

static struct slot *slot_of(struct bpe *b, const char *piece, size_t n)
{
    uint64_t h = n;
    uint64_t words[3] = {0};
    memcpy(words, piece, n);
    for (int i = 0; i < 3; i++) {
        h = (h ^ words[i]) * 0x9e3779b97f4a7c15U;
        h ^= h >> 32;
    }
    return &b->slots[h % CACHE_SLOTS];
}

const int32_t *bpe_piece(struct bpe *b, const char *piece, size_t n, int32_t *count)
{
    assert(n >= 1 && n <= INT32_MAX / 4);
    const unsigned char *bytes = (const unsigned char *)piece;
    if (n > KEY_MAX) {
        *count =
            n <= SHORT_MAX ? merge_short(b, bytes, (int32_t)n) : merge_long(b, bytes, (int32_t)n);
        return b->ids;
    }
    struct slot *s = slot_of(b, piece, n);
    if (s->len == n && memcmp(s->key, piece, n) == 0) {
        *count = s->count;
        return s->ids;
    }
    *count = merge_short(b, bytes, (int32_t)n);
    if (*count <= CACHED_IDS_MAX) {
        s->len = (uint8_t)n;
        s->count = (uint8_t)*count;
        memcpy(s->key, piece, n);
        memcpy(s->ids, b->ids, (size_t)*count * sizeof(*s->ids));
    }
    return b->ids;
}
