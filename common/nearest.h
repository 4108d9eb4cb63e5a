/*
 * nearest.h - the known word that somebody probably meant.
 *
 * For unknown keys of a document and unknown options of a command line: the error names it.
 */
#ifndef COMMON_NEAREST_H
#define COMMON_NEAREST_H

/*
 * The word of the NULL-terminated list with the fewest changed, missing, extra or swapped letters,
 * the first of equals; NULL when none is close (two changes, or a third of the word's letters).
 */
const char *nearest(const char *word, const char *const *list);

#endif
