#include "common/fault.h"

#ifdef PHOTON_FAULTS

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"

enum { RULES_MAX = 64, TEXT_MAX = 8192, EXIT_FAULT = 99, EXIT_USAGE = 2 };

enum action { ACT_DELAY = 0, ACT_ERRNO, ACT_EXIT, ACT_STOP };

struct rule {
    const char *name; // up to a final '*', when it has one
    size_t len;
    bool prefix;
    enum action action;
    int64_t from_ms, to_ms;
    int errnum;
    int nth;   // 0: each time
    int every; // 1: each time
    int seen;
    uint64_t draw;
};

static struct {
    pthread_once_t once;
    pthread_mutex_t lock;
    char text[TEXT_MAX];
    struct rule rules[RULES_MAX];
    int count;
    int log_fd;
} faults = {.once = PTHREAD_ONCE_INIT, .lock = PTHREAD_MUTEX_INITIALIZER, .log_fd = -1};

static const struct {
    const char *name;
    int value;
} errnos[] = {{"ENOSPC", ENOSPC},         {"EIO", EIO},       {"ENOMEM", ENOMEM},
              {"EDQUOT", EDQUOT},         {"EMFILE", EMFILE}, {"EACCES", EACCES},
              {"ECONNRESET", ECONNRESET}, {"EROFS", EROFS}};

// The linker's names for the ends of the section; weak, for a program without a place.
extern struct fault_point *__start_fault_points[] __attribute__((weak));
extern struct fault_point *__stop_fault_points[] __attribute__((weak));

_Noreturn static void misused(const char *rule)
{
    (void)fprintf(stderr, "PHOTON_FAULT: what is '%s'; see common/fault.h\n", rule);
    _exit(EXIT_USAGE);
}

/* ---- the rules ---- */

static bool parse_delay(struct rule *r, char *arg)
{
    char *end = NULL;
    r->from_ms = r->to_ms = strtoll(arg, &end, 10);
    if (*end == '-') {
        r->to_ms = strtoll(end + 1, &end, 10);
    }
    return strcmp(end, "ms") == 0 && r->from_ms >= 0 && r->to_ms >= r->from_ms;
}

static bool parse_errno(struct rule *r, const char *arg)
{
    for (size_t i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++) {
        if (strcmp(arg, errnos[i].name) == 0) {
            r->errnum = errnos[i].value;
        }
    }
    return r->errnum != 0;
}

static bool parse_action(struct rule *r, char *action)
{
    char *arg = strchr(action, ':');
    if (arg) {
        *arg++ = '\0';
    }
    if (strcmp(action, "delay") == 0) {
        r->action = ACT_DELAY;
        return arg && parse_delay(r, arg);
    }
    if (strcmp(action, "errno") == 0) {
        r->action = ACT_ERRNO;
        return arg && parse_errno(r, arg);
    }
    r->action = strcmp(action, "stop") == 0 ? ACT_STOP : ACT_EXIT;
    return !arg && (r->action == ACT_STOP || strcmp(action, "exit") == 0);
}

/* The number after a mark, which it cuts off the text. */
static uint64_t cut_number(char *text, char mark, uint64_t otherwise)
{
    char *at = strchr(text, mark);
    if (!at) {
        return otherwise;
    }
    *at = '\0';
    return strtoull(at + 1, NULL, 10);
}

static void parse_rule(char *text)
{
    char whole[128];
    (void)snprintf(whole, sizeof(whole), "%.100s", text);
    char *action = strchr(text, '=');
    if (!action || faults.count == RULES_MAX) {
        misused(whole);
        return; // never, but cppcheck does not know
    }
    *action++ = '\0';
    struct rule *r = &faults.rules[faults.count++];
    r->name = text;
    r->len = strlen(text);
    r->prefix = r->len > 0 && text[r->len - 1] == '*';
    r->len -= r->prefix;
    // Marks in the order in which they may stand, the last one first.
    r->every = (int)cut_number(action, '/', 1);
    r->nth = (int)cut_number(action, '#', 0);
    r->draw = cut_number(action, '@', 1);
    if (r->every < 1 || !parse_action(r, action)) {
        misused(whole);
    }
}

static void list(void)
{
    // The linker's bounds of one section, which cppcheck takes for two objects.
    // cppcheck-suppress comparePointers
    for (struct fault_point **p = __start_fault_points; p < __stop_fault_points; p++) {
        (void)printf("%s %s\n", (*p)->fails ? "call " : "place", (*p)->name);
    }
}

static void begin(void)
{
    const char *text = getenv("PHOTON_FAULT");
    const char *log = getenv("PHOTON_FAULT_LOG");
    if (log) {
        faults.log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    }
    if (!text || !*text) {
        return;
    }
    if ((size_t)snprintf(faults.text, sizeof(faults.text), "%s", text) >= sizeof(faults.text)) {
        misused("so long a text");
    }
    for (char *at = faults.text; at && *at;) {
        char *next = strchr(at, ';');
        if (next) {
            *next++ = '\0';
        }
        parse_rule(at);
        at = next;
    }
}

/* Before main(): no program needs an option for it. */
__attribute__((constructor)) static void list_if_asked(void)
{
    const char *text = getenv("PHOTON_FAULT");
    if (text && strcmp(text, "list") == 0) {
        list();
        (void)fflush(stdout);
        _exit(0);
    }
}

/* ---- at a place ---- */

static uint64_t next_draw(struct rule *r) // splitmix64
{
    uint64_t z = r->draw += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

static bool fits(const struct rule *r, const char *name)
{
    return r->prefix ? strncmp(name, r->name, r->len) == 0 : strcmp(name, r->name) == 0;
}

/* What is to be done here now; false: nothing. */
static bool decide(const char *name, enum action *action, int64_t *ms, int *errnum)
{
    bool acts = false;
    (void)pthread_mutex_lock(&faults.lock);
    for (int i = 0; i < faults.count; i++) {
        struct rule *r = &faults.rules[i];
        if (fits(r, name)) {
            r->seen++;
            acts = (r->nth == 0 || r->nth == r->seen) &&
                   (r->every == 1 || next_draw(r) % (uint64_t)r->every == 0);
            *action = r->action;
            *errnum = r->errnum;
            *ms =
                r->from_ms + (r->to_ms > r->from_ms
                                  ? (int64_t)(next_draw(r) % (uint64_t)(r->to_ms - r->from_ms + 1))
                                  : 0);
            break;
        }
    }
    (void)pthread_mutex_unlock(&faults.lock);
    return acts;
}

static void note(const char *name, const char *mark)
{
    char line[128];
    int n = snprintf(line, sizeof(line), "%s%s\n", name, mark);
    if (faults.log_fd >= 0 && n > 0 && write(faults.log_fd, line, (size_t)n) < 0) {
        (void)fprintf(stderr, "PHOTON_FAULT_LOG: %s\n", strerror(errno));
    }
}

bool fault_at(struct fault_point *p)
{
    int before = errno;
    enum action action = ACT_DELAY;
    int64_t ms = 0;
    int errnum = 0;
    (void)pthread_once(&faults.once, begin);
    if (__atomic_fetch_add(&p->reached, 1, __ATOMIC_RELAXED) == 0) {
        note(p->name, "");
    }
    bool acts = decide(p->name, &action, &ms, &errnum) && (action != ACT_ERRNO || p->fails);
    if (acts && __atomic_fetch_add(&p->acted, 1, __ATOMIC_RELAXED) == 0) {
        note(p->name, "!");
    }
    errno = before;
    if (!acts) {
        return false;
    }
    switch (action) {
    case ACT_DELAY:
        clock_sleep_ms(ms);
        errno = before;
        break;
    case ACT_STOP:
        (void)raise(SIGSTOP);
        break;
    case ACT_EXIT:
        _exit(EXIT_FAULT);
    case ACT_ERRNO:
    default:
        errno = errnum;
        return true;
    }
    return false;
}

#endif
