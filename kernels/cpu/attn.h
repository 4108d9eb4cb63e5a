/*
 * attn.h - causal attention of one head, tile by tile (Dao et al. 2022; Milakov & Gimelshein 2018).
 *
 * Included by lanes_*.c. A head is first packed: zero-padded to whole tiles, in the layouts that
 * tile.h reads without stalling. "Rows" is (T, D) row-major, the A operand of a product over D;
 * "cols" has D as inner dimension, units (D, T), the B operand of such a product; "mix" has time as
 * inner dimension, units (T, D), the B operand of a product over queries or keys.
 *
 * Forward, per tile of 64 queries, keys from the start up to the diagonal: S = Q K^T; the running
 * maximum m and sum l of each row are updated, P = exp(S - m) is rounded where units are pairs, O
 * is rescaled and P V added. Scores are kept in units of log 2, so that a probability is one exp2.
 * Backward recomputes P from lse; dQ gathers over key tiles in ascending order, dK and dV over
 * query tiles in ascending order. A head goes by itself, or is packed once and its tiles are done
 * by many threads: dK and dV of each key tile, dQ of each query tile, with P and dS once for
 * either. Each sum has the same terms in the same order both ways. ALiBi's far tiles are skipped by
 * the rule of attn_skip.h.
 */
#ifndef KERNELS_CPU_ATTN_H
#define KERNELS_CPU_ATTN_H

#include "kernels/attn_skip.h"
#include "kernels/cpu/tile.h"

#define LOG2E 1.4426950408889634f
#define LN2   0.6931471805599453f

/* One head's geometry: how many units make D or a tile, and padded sizes. */
struct head {
    int64_t T, D;
    int64_t Tp, Dp; /* rounded up to whole tiles, whole vectors */
    int64_t ku;     /* units of D */
    int64_t tu;     /* units of a tile */
    float scale;    /* log2 e / sqrt D: of a product, into units of log 2 */
    float slope;    /* ALiBi's, likewise */
    float inner;    /* 1 / sqrt D: the slope of a score in its product */
};

INL struct head head_of(const bool pairs, const struct attn *x, int64_t item)
{
    struct head h = {.T = x->T, .D = x->D};
    h.Tp = (x->T + ATTN_TILE - 1) / ATTN_TILE * ATTN_TILE;
    h.Dp = (x->D + VL - 1) / VL * VL;
    h.ku = pairs ? (x->D + 1) / 2 : x->D;
    h.tu = pairs ? ATTN_TILE / 2 : ATTN_TILE;
    h.inner = 1.0f / sqrtf((float)x->D);
    h.scale = LOG2E * h.inner;
    h.slope = x->slopes ? x->slopes[item % x->H] * LOG2E : 0.0f;
    return h;
}

/* A matrix (T, D) of one head inside a larger tensor. */
struct slice {
    const char *p;
    int64_t ld; /* elements between rows */
};

INL struct slice head_slice(const enum dtype at, const void *base, int64_t item, int64_t T,
                            int64_t H, int64_t D, int64_t of, int64_t which)
{
    int64_t b = item / H;
    int64_t h = item % H;
    int64_t start = ((b * T * of + which) * H + h) * D;
    return (struct slice){(const char *)base + (size_t)start * dtype_size(at), of * H * D};
}

/* Are an operand's units pairs? */
INL bool has_pairs(const enum dtype at)
{
    return unit_is_pair(at == DTYPE_BF16);
}

/* n elements from element i on, as units of one float each */
INL void pack_floats(const enum dtype at, uint32_t *to, const void *p, int64_t i, int64_t n)
{
    if (at == DTYPE_F32) {
        memcpy(to, (const float *)p + i, (size_t)n * 4);
        return;
    }
    const uint16_t *from = (const uint16_t *)p + i;
    for (int64_t d = 0; d < n; d++) {
        to[d] = (uint32_t)from[d] << 16;
    }
}

/* rows[t][unit] */
INL void pack_rows(const enum dtype at, uint32_t *rows, struct slice s, const struct head *h)
{
    for (int64_t t = 0; t < h->T; t++) {
        uint32_t *to = rows + t * h->ku;
        if (has_pairs(at)) {
            to[h->ku - 1] = 0; // the other half of an odd D's last pair
            memcpy(to, s.p + t * s.ld * 2, (size_t)h->D * 2);
        } else {
            pack_floats(at, to, s.p, t * s.ld, h->D);
        }
    }
    memset(rows + h->T * h->ku, 0, (size_t)((h->Tp - h->T) * h->ku) * 4);
}

/* cols[unit][t], from rows */
INL void pack_cols(uint32_t *cols, const uint32_t *rows, const struct head *h)
{
    enum { STEP = 16 };
    for (int64_t t0 = 0; t0 < h->Tp; t0 += STEP) {
        for (int64_t k = 0; k < h->ku; k++) {
            uint32_t *to = cols + k * h->Tp + t0;
            const uint32_t *from = rows + t0 * h->ku + k;
            for (int64_t t = 0; t < STEP; t++) {
                to[t] = from[t * h->ku];
            }
        }
    }
}

/* mix[unit of t][d] */
INL void pack_mix(const enum dtype at, uint32_t *mix, struct slice s, const struct head *h)
{
    int64_t step = has_pairs(at) ? 2 : 1;
    for (int64_t t = 0; t < h->Tp; t += step) {
        uint32_t *to = mix + t / step * h->Dp;
        memset(to, 0, (size_t)h->Dp * 4);
        if (t >= h->T) {
            continue;
        }
        if (!has_pairs(at)) {
            pack_floats(at, to, s.p, t * s.ld, h->D);
            continue;
        }
        const uint16_t *p0 = (const uint16_t *)(const void *)s.p + t * s.ld;
        if (t + 1 < h->T) {
            const uint16_t *p1 = p0 + s.ld;
            for (int64_t d = 0; d < h->D; d++) {
                to[d] = (uint32_t)p0[d] | (uint32_t)p1[d] << 16;
            }
        } else {
            for (int64_t d = 0; d < h->D; d++) {
                to[d] = p0[d];
            }
        }
    }
}

/* n whole cache lines of 4-byte units out of a thread's scratch */
INL void *carve(char **scratch, int64_t n)
{
    void *p = *scratch;
    *scratch += (n * 4 + 63) / 64 * 64;
    return p;
}

KERNEL size_t attn_scratch(const struct attn *x, enum attn_memory what)
{
    int64_t Tp = (x->T + ATTN_TILE - 1) / ATTN_TILE * ATTN_TILE;
    int64_t Dp = (x->D + VL - 1) / VL * VL;
    int64_t tiles = 4 * ATTN_TILE * ATTN_TILE + 4 * ATTN_TILE * Dp + (8 + VL) * ATTN_TILE;
    const int64_t units[] = {[ATTN_FORWARD] = 4 * Tp * Dp + Tp + tiles,
                             [ATTN_HEAD] = 7 * Tp * Dp + 3 * Tp,
                             [ATTN_WORK] = Tp * Dp + tiles};
    return (size_t)(units[what] * 4 + 64 * 32) / 64 * 64;
}

/* The largest norms of each tile's queries and keys; NULL where no tile can be skipped. */
struct norms {
    const float *q, *k;
};

INL void tile_norms(const enum dtype at, float *out, struct slice s, const struct head *h)
{
    for (int64_t t0 = 0; t0 < h->T; t0 += ATTN_TILE) {
        float top = 0.0f;
        for (int64_t t = t0; t < t0 + ATTN_TILE && t < h->T; t++) {
            vf sum = {0};
            for (int64_t c = 0; c < h->D; c += VL) {
                int64_t left = h->D - c;
                vf x = left >= VL ? v_get(at, s.p, t * s.ld + c)
                                  : v_get_n(at, s.p, t * s.ld + c, left);
                sum += x * x;
            }
            top = fmaxf(top, v_sum(sum));
        }
        out[t0 / ATTN_TILE] = ATTN_NORM_SLACK * sqrtf(top);
    }
}

INL struct norms norms_of(const enum dtype at, char **scratch, struct slice q, struct slice k,
                          const struct head *h)
{
    float *nq = carve(scratch, h->Tp / ATTN_TILE);
    float *nk = carve(scratch, h->Tp / ATTN_TILE);
    if (h->slope == 0.0f) {
        return (struct norms){NULL, NULL};
    }
    tile_norms(at, nq, q, h);
    tile_norms(at, nk, k, h);
    return (struct norms){nq, nk};
}

INL bool skips(const struct head *h, const struct norms *n, int64_t i0, int64_t j0)
{
    if (!n->q || i0 == j0) {
        return false;
    }
    int64_t i = i0 / ATTN_TILE;
    return attn_can_skip(n->q[i], n->k[j0 / ATTN_TILE], n->k[i], h->inner, h->slope * LN2,
                         (float)(i0 - (j0 + ATTN_TILE - 1)));
}

/* Where row i may not look: a score or probability there is replaced. gap is j - i. */
INL vf v_hide(vf x, vf gap, float by)
{
    return v_select((vi)(gap > v_set(0.0f)), v_set(by), x);
}

/*
 * A row's products become scores in place, t = product * scale + slope (j - i), and what the mask
 * hides -infinity. Returns the largest. Without ALiBi and mask the products are only looked at, and
 * scaled on the way into exp2.
 */
INL float row_scores(float *s, const struct head *h, int64_t i, int64_t j0, int64_t cols)
{
    vf top = v_set(-INFINITY);
    bool hides = j0 + cols - 1 > i;
    if (!hides && h->slope == 0.0f) {
        for (int64_t c = 0; c < cols; c += VL) {
            top = v_max(top, v_load(s + c));
        }
        return v_maximum(top) * h->scale;
    }
    vf bias = v_set(h->slope / h->scale);
    vf gap = v_lanes() + v_set((float)(j0 - i));
    for (int64_t c = 0; c < cols; c += VL) {
        vf t = v_fma(bias, gap, v_load(s + c));
        t = hides ? v_hide(t, gap, -INFINITY) : t;
        v_store(s + c, t);
        top = v_max(top, t);
        gap += v_set((float)VL);
    }
    return v_maximum(top) * h->scale;
}

/* 2^x of a score less the row's top or sum */
INL vf prob(const enum dtype at, vf x)
{
    return at == DTYPE_F32 ? v_exp2(x) : v_exp2_short(v_max(v_set(POLY_EXP2_SMALLEST), x));
}

/* What probabilities and their gradients are kept as between two products: they are operands. */
INL enum dtype unit_type(const enum dtype at)
{
    return has_pairs(at) ? DTYPE_BF16 : DTYPE_F32;
}

/* p = exp2(s scale - m) as units of the A operand, and the unrounded sums of the lanes into l */
INL void row_probs(const enum dtype at, const float *s, uint32_t *p, float scale, float m, float *l,
                   int64_t cols)
{
    vf sum = v_load(l);
    vf factor = v_set(scale);
    vf shift = v_set(-m);
    for (int64_t c = 0; c < cols; c += VL) {
        vf e = prob(at, v_fma(v_load(s + c), factor, shift));
        sum += e;
        v_put(unit_type(at), p, c, e);
    }
    v_store(l, sum);
}

INL void row_scale(float *o, float factor, int64_t Dp)
{
    vf f = v_set(factor);
    for (int64_t d = 0; d < Dp; d += VL) {
        v_store(o + d, v_load(o + d) * f);
    }
}

/* What a tile of queries carries from one tile of keys to the next. */
struct attn_fwd_tile {
    float *s;    /* (TILE, TILE) */
    uint32_t *p; /* (TILE, TILE), units of two or one along the row */
    float *o;    /* (TILE, Dp) */
    float *m;    /* (TILE), what is subtracted from a row's scores */
    float *l;    /* (TILE, VL), sums of the lanes */
};

/*
 * The row's shift m need not be its maximum, only near it: P, l and O all scale with it. So it
 * moves when a score exceeds it by this much (a factor of 256 in P), which is rare
 * after the first tile.
 */
#define ATTN_SLACK 8.0f

INL void row_shift(struct attn_fwd_tile *t, int64_t k, float top, int64_t Dp)
{
    if (t->m[k] == -INFINITY) {
        t->m[k] = top; // the first tile: nothing is there to rescale
    } else if (top > t->m[k] + ATTN_SLACK) {
        float factor = exp2f(t->m[k] - top);
        t->m[k] = top;
        row_scale(t->l + k * VL, factor, VL);
        row_scale(t->o + k * Dp, factor, Dp);
    }
}

/*
 * Columns of a tile that rows [r, r + TILE_ROWS) may look at, in whole vectors: on the diagonal the
 * rest is masked anyway.
 */
INL int64_t seen_cols(bool diagonal, int64_t r)
{
    int64_t n = (r + TILE_ROWS + VL - 1) / VL * VL;
    return diagonal && n < ATTN_TILE ? n : ATTN_TILE;
}

INL void attn_fwd_keys(const enum dtype at, const struct head *h, struct attn_fwd_tile *t,
                       const uint32_t *q, const uint32_t *kcols, const uint32_t *vmix, int64_t i0,
                       int64_t j0)
{
    const bool pairs = has_pairs(at);
    for (int64_t r = 0; r < ATTN_TILE; r += TILE_ROWS) {
        int64_t cols = seen_cols(i0 == j0, r);
        float *s = t->s + r * ATTN_TILE;
        struct a_view a = {q + r * h->ku, h->ku, 1};
        tile_rows(pairs, false, s, ATTN_TILE, a, kcols + j0, h->Tp, cols, h->ku);
        for (int64_t k = r; k < r + TILE_ROWS; k++) {
            s = t->s + k * ATTN_TILE;
            float top = row_scores(s, h, i0 + k, j0, cols);
            row_shift(t, k, top, h->Dp);
            row_probs(at, s, t->p + k * h->tu, h->scale, t->m[k], t->l + k * VL, cols);
        }
        struct a_view p = {t->p + r * h->tu, h->tu, 1};
        tile_rows(pairs, true, t->o + r * h->Dp, h->Dp, p, vmix + j0 * h->tu / ATTN_TILE * h->Dp,
                  h->Dp, h->Dp, pairs ? cols / 2 : cols);
    }
}

INL void attn_fwd_at(const enum dtype at, const struct attn *x, int64_t item, int64_t part,
                     char *scratch)
{
    struct head h = head_of(has_pairs(at), x, item);
    uint32_t *q = carve(&scratch, h.Tp * h.Dp);
    uint32_t *k = carve(&scratch, h.Tp * h.Dp);
    uint32_t *kcols = carve(&scratch, h.Tp * h.Dp);
    uint32_t *vmix = carve(&scratch, h.Tp * h.Dp);
    struct attn_fwd_tile t = {
        .s = carve(&scratch, (int64_t)ATTN_TILE * ATTN_TILE),
        .p = carve(&scratch, (int64_t)ATTN_TILE * ATTN_TILE),
        .o = carve(&scratch, ATTN_TILE * h.Dp),
        .m = carve(&scratch, ATTN_TILE),
        .l = carve(&scratch, ATTN_TILE * VL),
    };
    struct slice sq = head_slice(at, x->qkv, item, x->T, x->H, x->D, 3, 0);
    struct slice sk = head_slice(at, x->qkv, item, x->T, x->H, x->D, 3, 1);
    struct norms n = norms_of(at, &scratch, sq, sk, &h);
    pack_rows(at, q, sq, &h);
    pack_rows(at, k, sk, &h);
    pack_cols(kcols, k, &h);
    pack_mix(at, vmix, head_slice(at, x->qkv, item, x->T, x->H, x->D, 3, 2), &h);

    int64_t o0 = (item / x->H * x->T * x->H + item % x->H) * x->D;
    for (int64_t i0 = part * ATTN_TILE; i0 < h.T; i0 += x->parts * ATTN_TILE) {
        memset(t.o, 0, (size_t)(ATTN_TILE * h.Dp) * sizeof(float));
        memset(t.l, 0, ATTN_TILE * VL * sizeof(float));
        for (int64_t r = 0; r < ATTN_TILE; r++) {
            t.m[r] = -INFINITY;
        }
        for (int64_t j0 = 0; j0 <= i0; j0 += ATTN_TILE) {
            if (skips(&h, &n, i0, j0)) {
                continue;
            }
            attn_fwd_keys(at, &h, &t, q + i0 * h.ku, kcols, vmix, i0, j0);
        }
        for (int64_t r = 0; r < ATTN_TILE && i0 + r < h.T; r++) {
            float l = v_sum(v_load(t.l + r * VL));
            x->lse[item * x->T + i0 + r] = t.m[r] * LN2 + logf(l);
            int64_t to = o0 + (i0 + r) * x->H * x->D;
            vf inv = v_set(1.0f / l);
            for (int64_t d = 0; d < h.D; d += VL) {
                vf v = v_load(t.o + r * h.Dp + d) * inv;
                if (d + VL <= h.D) {
                    v_put(at, x->o, to + d, v);
                } else {
                    v_put_n(at, x->o, to + d, h.D - d, v);
                }
            }
        }
    }
}

KERNEL void attn_fwd(const struct attn *x, int64_t item, int64_t part, void *scratch)
{
    if (x->at == DTYPE_BF16) {
        products_begin();
        attn_fwd_at(DTYPE_BF16, x, item, part, scratch);
        products_end();
    } else {
        attn_fwd_at(DTYPE_F32, x, item, part, scratch);
    }
}

// ---- backward -------------------------------------------------------------------------------

/* A head as the products read it. */
struct attn_bwd_head {
    struct head h;
    uint32_t *q, *dout;      /* rows */
    uint32_t *kcols, *vcols; /* cols */
    uint32_t *qmix, *domix;  /* mix */
    uint32_t *kmix;          /* mix */
    float *lse;              /* (Tp), units of log 2; padding +infinity, so that P is zero there */
    float *delta;            /* (Tp), sum of do o */
    float *nq, *nk;          /* (Tp / TILE), of tile_norms() */
};

/* What a thread works with. */
struct attn_bwd_work {
    uint32_t *rows;            /* (Tp, D) while a head is packed, */
    float *dq;                 /* in the same place: (its query tiles, Dp) */
    float *s, *dp;             /* (TILE, TILE) */
    uint32_t *p_t, *ds_t, *ds; /* P, dS: inner dimension queries (mixed), dS also by rows */
    float *dk, *dv;            /* (TILE, Dp) */
};

/*
 * Two rows of P and dS at a time where a unit of the transposed operands holds two queries; else
 * each row goes by itself.
 */
INL void attn_bwd_rows(const enum dtype at, const struct attn_bwd_head *b,
                       const struct attn_bwd_work *w, int64_t r, int64_t i, int64_t j0,
                       int64_t cols)
{
    vf scale = v_set(b->h.scale);
    vf slope = v_set(b->h.slope);
    vf inner = v_set(b->h.inner);
    const int rows = has_pairs(at) ? 2 : 1;
    bool hides = j0 + cols - 1 > i;
    bool biased = b->h.slope != 0.0f;
    for (int64_t c = 0; c < cols; c += VL) {
        vf p[2];
        vf ds[2];
        for (int k = 0; k < rows; k++) {
            int64_t at0 = (r + k) * ATTN_TILE + c;
            vf t = v_fma(v_load(w->s + at0), scale, v_set(-b->lse[i + k]));
            vf gap = v_lanes() + v_set((float)(j0 + c - i - k));
            p[k] = prob(at, biased ? v_fma(slope, gap, t) : t);
            p[k] = hides ? v_hide(p[k], gap, 0.0f) : p[k];
            ds[k] = p[k] * v_fma(v_load(w->dp + at0), inner, v_set(-b->delta[i + k]));
        }
        if (rows == 1) {
            memcpy(w->p_t + r * ATTN_TILE + c, &p[0], sizeof(p[0]));
            memcpy(w->ds_t + r * ATTN_TILE + c, &ds[0], sizeof(ds[0]));
            continue;
        }
#if defined(ISA_BF16)
        struct v_rounded pr = v_round_rows(p[0], p[1]);
        struct v_rounded dr = v_round_rows(ds[0], ds[1]);
        memcpy(w->p_t + r / 2 * ATTN_TILE + c, &pr.pairs, sizeof(pr.pairs));
        memcpy(w->ds_t + r / 2 * ATTN_TILE + c, &dr.pairs, sizeof(dr.pairs));
        memcpy((uint16_t *)w->ds + r * ATTN_TILE + c, &dr.even, sizeof(dr.even));
        memcpy((uint16_t *)w->ds + (r + 1) * ATTN_TILE + c, &dr.odd, sizeof(dr.odd));
#endif
    }
}

/*
 * One tile of queries against one of keys: the products for P and dS, then those for the gradients
 * that are wanted. dq is the tile's.
 */
INL void attn_bwd_pair(const enum dtype at, const struct attn_bwd_head *b,
                       const struct attn_bwd_work *w, float *dq, bool keys, int64_t i0, int64_t j0)
{
    const bool pairs = has_pairs(at);
    const struct head *h = &b->h;
    const bool diagonal = i0 == j0;
    const int64_t rows = pairs ? 2 : 1;
    const uint32_t *kmix = b->kmix + j0 / rows * h->Dp;

    for (int64_t r = 0; r < ATTN_TILE; r += TILE_ROWS) {
        int64_t cols = seen_cols(diagonal, r);
        struct a_view q = {b->q + (i0 + r) * h->ku, h->ku, 1};
        struct a_view dout = {b->dout + (i0 + r) * h->ku, h->ku, 1};
        tile_rows(pairs, false, w->s + r * ATTN_TILE, ATTN_TILE, q, b->kcols + j0, h->Tp, cols,
                  h->ku);
        tile_rows(pairs, false, w->dp + r * ATTN_TILE, ATTN_TILE, dout, b->vcols + j0, h->Tp, cols,
                  h->ku);
        for (int64_t k = r; k < r + TILE_ROWS; k += rows) {
            attn_bwd_rows(at, b, w, k, i0 + k, j0, cols);
        }
        if (dq) {
            struct a_view ds = {w->ds + r * h->tu, h->tu, 1};
            tile_rows(pairs, true, dq + r * h->Dp, h->Dp, ds, kmix, h->Dp, h->Dp, cols / rows);
        }
    }
    for (int64_t c = 0; keys && c < ATTN_TILE; c += TILE_ROWS) {
        // On the diagonal the keys from c on are seen by the queries from c on alone.
        int64_t u0 = diagonal ? c / rows : 0;
        int64_t units = h->tu - u0;
        struct a_view p = {w->p_t + u0 * ATTN_TILE + c, 1, ATTN_TILE};
        struct a_view ds = {w->ds_t + u0 * ATTN_TILE + c, 1, ATTN_TILE};
        int64_t mix = (i0 / rows + u0) * h->Dp;
        tile_rows(pairs, true, w->dv + c * h->Dp, h->Dp, p, b->domix + mix, h->Dp, h->Dp, units);
        tile_rows(pairs, true, w->dk + c * h->Dp, h->Dp, ds, b->qmix + mix, h->Dp, h->Dp, units);
    }
}

/* rows of from (rows, Dp) -> one of the three parts of dqkv */
INL void attn_bwd_put(const enum dtype at, const struct attn *x, int64_t item, int64_t which,
                      const float *from, int64_t t0, int64_t count, int64_t Dp)
{
    int64_t start = ((item / x->H * x->T * 3 + which) * x->H + item % x->H) * x->D;
    for (int64_t t = 0; t < count && t0 + t < x->T; t++) {
        int64_t to = start + (t0 + t) * 3 * x->H * x->D;
        for (int64_t d = 0; d < x->D; d += VL) {
            vf v = v_load(from + t * Dp + d);
            if (d + VL <= x->D) {
                v_put(at, x->dqkv, to + d, v);
            } else {
                v_put_n(at, x->dqkv, to + d, x->D - d, v);
            }
        }
    }
}

/* The per-row constants: lse in units of log 2, and delta = sum of do o. */
INL void attn_bwd_consts(const enum dtype at, const struct attn *x, int64_t item,
                         const struct attn_bwd_head *b)
{
    struct slice o = head_slice(at, x->o_read, item, x->T, x->H, x->D, 1, 0);
    struct slice d = head_slice(at, x->dout, item, x->T, x->H, x->D, 1, 0);
    for (int64_t t = 0; t < b->h.Tp; t++) {
        b->lse[t] = t < x->T ? x->lse_read[item * x->T + t] * LOG2E : INFINITY;
        vf sum = {0};
        for (int64_t c = 0; c < x->D && t < x->T; c += VL) {
            int64_t i = t * o.ld + c;
            int64_t n = x->D - c;
            sum += n >= VL ? v_get(at, o.p, i) * v_get(at, d.p, i)
                           : v_get_n(at, o.p, i, n) * v_get_n(at, d.p, i, n);
        }
        b->delta[t] = v_sum(sum) * b->h.inner;
    }
}

INL struct attn_bwd_head bwd_head_of(const bool pairs, const struct attn *x, int64_t item,
                                     char *memory)
{
    struct attn_bwd_head b = {.h = head_of(pairs, x, item)};
    int64_t all = b.h.Tp * b.h.Dp;
    b.q = carve(&memory, all);
    b.dout = carve(&memory, all);
    b.kcols = carve(&memory, all);
    b.vcols = carve(&memory, all);
    b.qmix = carve(&memory, all);
    b.domix = carve(&memory, all);
    b.kmix = carve(&memory, all);
    b.lse = carve(&memory, b.h.Tp);
    b.delta = carve(&memory, b.h.Tp);
    b.nq = carve(&memory, b.h.Tp / ATTN_TILE);
    b.nk = carve(&memory, b.h.Tp / ATTN_TILE);
    return b;
}

INL struct attn_bwd_work bwd_work_of(const bool pairs, const struct head *h, char *memory)
{
    int64_t square = (int64_t)ATTN_TILE * ATTN_TILE;
    struct attn_bwd_work w = {.rows = carve(&memory, h->Tp * h->Dp)};
    w.dq = (float *)(void *)w.rows;
    w.s = carve(&memory, square);
    w.dp = carve(&memory, square);
    w.p_t = carve(&memory, square);
    w.ds_t = carve(&memory, square);
    w.ds = pairs ? carve(&memory, square / 2) : w.ds_t;
    w.dk = carve(&memory, ATTN_TILE * h->Dp);
    w.dv = carve(&memory, ATTN_TILE * h->Dp);
    return w;
}

INL void attn_pack_at(const enum dtype at, const struct attn *x, int64_t item, int part, char *head,
                      char *work)
{
    struct attn_bwd_head b = bwd_head_of(has_pairs(at), x, item, head);
    struct attn_bwd_work w = bwd_work_of(has_pairs(at), &b.h, work);
    struct slice q = head_slice(at, x->qkv, item, x->T, x->H, x->D, 3, 0);
    struct slice k = head_slice(at, x->qkv, item, x->T, x->H, x->D, 3, 1);
    struct slice v = head_slice(at, x->qkv, item, x->T, x->H, x->D, 3, 2);
    struct slice d = head_slice(at, x->dout, item, x->T, x->H, x->D, 1, 0);
    switch (part) {
    case 0:
        pack_rows(at, w.rows, k, &b.h);
        pack_cols(b.kcols, w.rows, &b.h);
        break;
    case 1:
        pack_rows(at, w.rows, v, &b.h);
        pack_cols(b.vcols, w.rows, &b.h);
        break;
    case 2:
        pack_rows(at, b.q, q, &b.h);
        pack_mix(at, b.qmix, q, &b.h);
        break;
    case 3:
        pack_rows(at, b.dout, d, &b.h);
        pack_mix(at, b.domix, d, &b.h);
        break;
    case 4:
        pack_mix(at, b.kmix, k, &b.h);
        attn_bwd_consts(at, x, item, &b);
        if (b.h.slope != 0.0f) {
            tile_norms(at, b.nq, q, &b.h);
            tile_norms(at, b.nk, k, &b.h);
        }
        break;
    default:
        break;
    }
}

KERNEL void attn_pack(const struct attn *x, int64_t item, int part, void *head, void *work)
{
    if (x->at == DTYPE_BF16) {
        attn_pack_at(DTYPE_BF16, x, item, part, head, work);
    } else {
        attn_pack_at(DTYPE_F32, x, item, part, head, work);
    }
}

INL void attn_bwd_at(const enum dtype at, const struct attn *x, int64_t item,
                     const struct attn_range *range, char *head, char *work)
{
    struct attn_bwd_head b = bwd_head_of(has_pairs(at), x, item, head);
    struct attn_bwd_work w = bwd_work_of(has_pairs(at), &b.h, work);
    const struct head *h = &b.h;
    struct norms n = {h->slope == 0.0f ? NULL : b.nq, b.nk};
    int64_t i_first = range->query0 * ATTN_TILE;
    int64_t i_end = range->query1 * ATTN_TILE;
    if (range->queries) {
        memset(w.dq, 0, (size_t)((i_end - i_first) * h->Dp) * sizeof(float));
    }
    for (int64_t j0 = range->key0 * ATTN_TILE; j0 < range->key1 * ATTN_TILE; j0 += ATTN_TILE) {
        memset(w.dk, 0, (size_t)(ATTN_TILE * h->Dp) * sizeof(float));
        memset(w.dv, 0, (size_t)(ATTN_TILE * h->Dp) * sizeof(float));
        for (int64_t i0 = j0 > i_first ? j0 : i_first; i0 < i_end; i0 += ATTN_TILE) {
            if (!skips(h, &n, i0, j0)) {
                float *dq = range->queries ? w.dq + (i0 - i_first) * h->Dp : NULL;
                attn_bwd_pair(at, &b, &w, dq, range->keys, i0, j0);
            }
        }
        if (range->keys) {
            attn_bwd_put(at, x, item, 1, w.dk, j0, ATTN_TILE, h->Dp);
            attn_bwd_put(at, x, item, 2, w.dv, j0, ATTN_TILE, h->Dp);
        }
    }
    if (range->queries) {
        attn_bwd_put(at, x, item, 0, w.dq, i_first, i_end - i_first, h->Dp);
    }
}

KERNEL void attn_bwd(const struct attn *x, int64_t item, const struct attn_range *range, void *head,
                     void *work)
{
    if (x->at == DTYPE_BF16) {
        products_begin();
        attn_bwd_at(DTYPE_BF16, x, item, range, head, work);
        products_end();
    } else {
        attn_bwd_at(DTYPE_F32, x, item, range, head, work);
    }
}

#endif
