/*
 * fault.h - named places at which a build for tests waits, stops, dies or fails on purpose.
 *
 * In every build but VARIANT=fault the macros are nothing. There, PHOTON_FAULT chooses what happens
 * where; the places of a program are listed by PHOTON_FAULT=list. A rule is NAME=ACTION, rules are
 * parted by ';', and a NAME that ends in '*' means all that begin so:
 *
 *     accept.locked=delay:50ms        wait
 *     accept.*=delay:0-70ms@7         wait for a time drawn anew each time, seeded by 7
 *     blob.sync=errno:ENOSPC          a FAULT_ERR() fails like this; a mere place has nothing to
 * fail publish.moved=exit              die on the spot, with status 99 and no clean-up
 *     fold.made=stop                  stop as by SIGSTOP, until somebody sends SIGCONT
 *
 * After the action "#3" means the third time alone, "/4" one time of four, drawn from the seed. The
 * first rule that fits a place is the one that counts. With PHOTON_FAULT_LOG=FILE each place adds
 * its name to the file when it is first reached and "NAME!" when a rule first acts there, so that a
 * test knows what it has walked over. Both macros are thread-safe.
 *
 *     FAULT("accept.locked");                             a place
 *     if (FAULT_ERR("blob.sync") || fsync(fd))            a call that may be made to fail, with
 * errno set
 */
#ifndef COMMON_FAULT_H
#define COMMON_FAULT_H

#include <stdbool.h>

#ifdef PHOTON_FAULTS

struct fault_point {
    const char *name;
    bool fails;  /* is a FAULT_ERR() */
    int reached; /* how often; atomic */
    int acted;
};

/* Does what the rules say; true, with errno set, when the call that follows must not be made. */
bool fault_at(struct fault_point *p);

// Each place puts itself into a section of the program, where the list finds it.
#define FAULT_POINT_(text, may_fail)                                                               \
    __extension__({                                                                                \
        static struct fault_point fault_here_ = {.name = (text), .fails = (may_fail)};             \
        static struct fault_point *fault_link_ __attribute__((section("fault_points"), used)) =    \
            &fault_here_;                                                                          \
        fault_at(&fault_here_);                                                                    \
    })
#define FAULT(name)     ((void)FAULT_POINT_(name, false))
#define FAULT_ERR(name) FAULT_POINT_(name, true)

#else

#define FAULT(name)     ((void)0)
#define FAULT_ERR(name) false

#endif
#endif
