/*
 * demo_proc.h - the demo's children: started in process groups of their own, so that Ctrl-C reaches
 * them through us, in order; told to stop when we die; never left behind.
 */
#ifndef CLIENT_CLI_DEMO_PROC_H
#define CLIENT_CLI_DEMO_PROC_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/status.h"

enum { PROC_ARGS_MAX = 24 };

struct proc {
    char name[64];
    char log[512];                   /* stdout and stderr are appended to this file */
    const char *argv[PROC_ARGS_MAX]; /* argv[0] is the program's path; borrowed */
    pid_t pid;                       /* 0: not running */
    int restarts;
};

enum status proc_start(struct proc *p, struct err *e) MUST_CHECK;

/* Has it ended by itself? *code is its exit status, or 128 + signal. */
bool proc_ended(struct proc *p, int *code);

/* SIGTERM to all, then SIGKILL to who is still there after grace_s; all are reaped. */
void proc_stop(struct proc *procs, int count, double grace_s);

/* kill -9, reaped. */
void proc_kill(struct proc *p);

/* Start, wait; the exit status. stop() is asked now and then and ends the child. */
int proc_run(struct proc *p, bool (*stop)(void), struct err *e);

/* The last lines of the child's log, on stderr. */
void proc_show_log(const struct proc *p);

#endif
