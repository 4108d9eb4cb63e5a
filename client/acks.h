/*
 * acks.h - what the server told this silo counts: STATE/acks, one line each, synced before the silo
 * acts on it.
 *
 *     <upload> <sha256 of the update> <run> <round>
 *
 * `photon-client acks` prints them and `photon-server check --acks` compares: an update that was
 * acknowledged and is not there is the one thing that must never happen.
 */
#ifndef CLIENT_ACKS_H
#define CLIENT_ACKS_H

#include <stdint.h>
#include <stdio.h>

#include "common/status.h"

/* Appends and syncs. Telling the same again is harmless. ST_LIMIT: the disk is full; ST_IO. */
enum status acks_note(const char *state_dir, const char *upload, const char *sha256,
                      const char *run, int64_t round, struct err *e) MUST_CHECK;

/* Whole lines to out; what a crash has torn is left out. *count of them. ST_IO. */
enum status acks_print(const char *state_dir, FILE *out, int64_t *count, struct err *e) MUST_CHECK;

/* The verb `photon-client acks`. */
int acks_main(int argc, char **argv);

#endif
