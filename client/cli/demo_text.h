/*
 * demo_text.h - real text of different kinds on any Debian machine, one kind per silo of the demo.
 *
 * Nothing is downloaded and nobody's own files are read: only what packages put under /usr. Which
 * files of a kind are taken is a keyed draw over their paths, the same on every run.
 */
#ifndef CLIENT_CLI_DEMO_TEXT_H
#define CLIENT_CLI_DEMO_TEXT_H

#include <stdint.h>

#include "common/status.h"

enum { DEMO_SILOS_MAX = 16 };

struct demo_source {
    char name[64];  /* the silo's */
    char path[512]; /* text for `photon data prepare` */
    int64_t bytes;
};

/*
 * Up to `want` kinds with enough text, best ones first, written to dir/NAME.jsonl. ST_NOT_FOUND:
 * this machine has fewer; *count says how many.
 */
enum status demo_text_find(const char *dir, int want, struct demo_source *out, int *count,
                           struct err *e) MUST_CHECK;

/* One silo per subfolder or .txt, .jsonl, .gz file of a folder of the user's. */
enum status demo_text_given(const char *folder, int want, struct demo_source *out, int *count,
                            struct err *e) MUST_CHECK;

#endif
