/*
 * passive_wait.h - threads that wait for each other sleep instead of spinning.
 *
 * OpenMP's threads spin at every barrier for a while, which takes the cores from whatever else runs
 * on a silo's machine: a second silo, the data preparation, somebody's work. libgomp reads
 * OMP_WAIT_POLICY once, when it is loaded, so a program cannot change it for itself any more: it
 * has to start again with the variable set. A program that trains calls this first thing in main().
 */
#ifndef CLIENT_PASSIVE_WAIT_H
#define CLIENT_PASSIVE_WAIT_H

/*
 * Starts this program anew, in the same process, with OMP_WAIT_POLICY=passive; it returns when
 * somebody has chosen a policy already (the second time too), or when the program cannot be started
 * again: then it goes on as it is.
 */
void passive_wait(char **argv);

#endif
