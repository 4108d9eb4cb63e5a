#include "common/nearest.h"

#include <stddef.h>
#include <string.h>

enum { WORD_MAX = 48 };

static int min3(int a, int b, int c)
{
    int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Optimal string alignment: edits, with a swap of two neighbours counted once. */
static int distance(const char *a, int na, const char *b, int nb)
{
    int row[3][WORD_MAX + 1];
    for (int j = 0; j <= nb; j++) {
        row[0][j] = j;
    }
    for (int i = 1; i <= na; i++) {
        int *cur = row[i % 3];
        const int *up = row[(i + 2) % 3];
        const int *upper = row[(i + 1) % 3];
        cur[0] = i;
        for (int j = 1; j <= nb; j++) {
            int same = a[i - 1] == b[j - 1] ? 0 : 1;
            cur[j] = min3(up[j] + 1, cur[j - 1] + 1, up[j - 1] + same);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                upper[j - 2] + 1 < cur[j]) {
                cur[j] = upper[j - 2] + 1;
            }
        }
    }
    return row[na % 3][nb];
}

const char *nearest(const char *word, const char *const *list)
{
    size_t len = strlen(word);
    if (len > WORD_MAX) {
        return NULL;
    }
    int n = (int)len;
    const char *best = NULL;
    int best_edits = (n / 3 > 2 ? n / 3 : 2) + 1;
    for (; *list; list++) {
        size_t other = strlen(*list);
        if (other > WORD_MAX) {
            continue;
        }
        int edits = distance(word, n, *list, (int)other);
        // Two edits turn any two letters into any other two: a match must share something.
        if (edits < best_edits && edits < n && edits < (int)other) {
            best = *list;
            best_edits = edits;
        }
    }
    return best;
}
