#include "client/cli/demo_proc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"

enum { POLL_MS = 50, TAIL_BYTES = 1500 };

/* Between fork and exec only what is safe there. */
static void become(const struct proc *p, int log, int null)
{
    (void)setpgid(0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    (void)dup2(null, STDIN_FILENO);
    (void)dup2(log, STDOUT_FILENO);
    (void)dup2(log, STDERR_FILENO);
    struct sigaction plain = {.sa_handler = SIG_DFL};
    (void)sigaction(SIGINT, &plain, NULL);
    (void)sigaction(SIGTERM, &plain, NULL);
    (void)sigaction(SIGPIPE, &plain, NULL);
    char *argv[PROC_ARGS_MAX];
    memcpy(argv, p->argv, sizeof(argv)); // exec's prototype lacks a const that it keeps
    (void)execv(argv[0], argv);
    _exit(127);
}

enum status proc_start(struct proc *p, struct err *e)
{
    int log = open(p->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log < 0 || null < 0) {
        return err_set(e, ST_IO, "cannot write %s: %s", p->log, strerror(errno));
    }
    pid_t pid = fork();
    if (pid == 0) {
        become(p, log, null);
    }
    int saved = errno;
    (void)close(log);
    (void)close(null);
    if (pid < 0) {
        return err_set(e, ST_NOMEM, "cannot start %s: %s", p->name, strerror(saved));
    }
    p->pid = pid;
    return ST_OK;
}

bool proc_ended(struct proc *p, int *code)
{
    int status = 0;
    if (p->pid <= 0 || waitpid(p->pid, &status, WNOHANG) != p->pid) {
        return false;
    }
    p->pid = 0;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
}

static int running(struct proc *procs, int count)
{
    int n = 0;
    for (int i = 0; i < count; i++) {
        int code = 0;
        n += procs[i].pid > 0 && !proc_ended(&procs[i], &code) ? 1 : 0;
    }
    return n;
}

void proc_stop(struct proc *procs, int count, double grace_s)
{
    for (int i = 0; i < count; i++) {
        if (procs[i].pid > 0) {
            (void)kill(procs[i].pid, SIGTERM);
        }
    }
    double until = clock_mono_s() + grace_s;
    while (running(procs, count) > 0 && clock_mono_s() < until) {
        clock_sleep_ms(POLL_MS);
    }
    for (int i = 0; i < count; i++) {
        if (procs[i].pid > 0) {
            proc_kill(&procs[i]);
        }
    }
}

void proc_kill(struct proc *p)
{
    int status = 0;
    if (p->pid > 0) {
        (void)kill(p->pid, SIGKILL);
        while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR) {
        }
        p->pid = 0;
    }
}

int proc_run(struct proc *p, bool (*stop)(void), struct err *e)
{
    if (proc_start(p, e)) {
        return 127;
    }
    int code = 0;
    while (!proc_ended(p, &code)) {
        if (stop()) {
            proc_stop(p, 1, 5.0);
            return 130;
        }
        clock_sleep_ms(POLL_MS);
    }
    if (code) {
        (void)err_set(e, ST_IO, "%s ended with status %d; its log is %s", p->name, code, p->log);
    }
    return code;
}

void proc_show_log(const struct proc *p)
{
    char text[TAIL_BYTES + 1];
    int fd = open(p->log, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    off_t end = lseek(fd, 0, SEEK_END);
    ssize_t n = pread(fd, text, TAIL_BYTES, end > TAIL_BYTES ? end - TAIL_BYTES : 0);
    (void)close(fd);
    if (n > 0) {
        text[n] = '\0';
        const char *from = end > TAIL_BYTES ? strchr(text, '\n') : NULL;
        (void)fprintf(stderr, "---- %s\n%s", p->log, from ? from + 1 : text);
    }
}
