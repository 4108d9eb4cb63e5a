#include "tests/support/fake_pq.h"

#include <fcntl.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct pg_result {
    const struct fake_reply *reply;
};

static const struct fake_reply fine;
static const struct fake_reply *script;
static int script_len;
static int script_at;
static int live;
static int connects;
static bool lost;
static bool failed_tx;
static const char *refusal;
static const char *notification;
static struct {
    char name[16];
    char sql[64];
} prepared[1024]; // of the connection that there is
static int prepared_count;

void fake_pq_script(const struct fake_reply *replies, int n)
{
    script = replies;
    script_len = n;
    script_at = 0;
    live = 0;
    connects = 0;
    lost = false;
    failed_tx = false;
    refusal = NULL;
    notification = NULL;
}

void fake_pq_refuse(const char *text)
{
    refusal = text;
}

void fake_pq_hang_up(void)
{
    lost = true;
}

void fake_pq_notify(const char *payload)
{
    notification = payload;
}

int fake_pq_unused(void)
{
    return script_len - script_at;
}

int fake_pq_live_results(void)
{
    return live;
}

int fake_pq_connects(void)
{
    return connects;
}

int fake_pq_prepared(void)
{
    return prepared_count;
}

static void connect_now(void)
{
    lost = refusal != NULL;
    connects += !lost;
    prepared_count = 0;
}

PGconn *PQconnectdbParams(const char *const *keywords, const char *const *values, int expand_dbname)
{
    (void)keywords, (void)values, (void)expand_dbname;
    static int token;
    connect_now();
    return (PGconn *)&token;
}

/* The real one is asked by the tests of the programs. */
PQconninfoOption *PQconninfoParse(const char *conninfo, char **errmsg)
{
    (void)conninfo, (void)errmsg;
    return NULL;
}

void PQconninfoFree(PQconninfoOption *options)
{
    (void)options;
}

void PQreset(PGconn *conn)
{
    (void)conn;
    connect_now();
}

ConnStatusType PQstatus(const PGconn *conn)
{
    (void)conn;
    return lost ? CONNECTION_BAD : CONNECTION_OK;
}

int PQconsumeInput(PGconn *conn)
{
    (void)conn;
    return !lost;
}

/* Always readable, so that db_wait_notify() never really waits. */
int PQsocket(const PGconn *conn)
{
    (void)conn;
    static int fd = -1;
    if (fd < 0) {
        fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    }
    return fd;
}

PGnotify *PQnotifies(PGconn *conn)
{
    (void)conn;
    if (!notification) {
        return NULL;
    }
    PGnotify *n = calloc(1, sizeof(*n));
    if (!n) {
        abort();
    }
    n->extra = (char *)(size_t)notification;
    notification = NULL;
    return n;
}

void PQfreemem(void *p)
{
    free(p);
}

PGTransactionStatusType PQtransactionStatus(const PGconn *conn)
{
    (void)conn;
    return failed_tx ? PQTRANS_INERROR : PQTRANS_INTRANS;
}

PQnoticeReceiver PQsetNoticeReceiver(PGconn *conn, PQnoticeReceiver proc, void *arg)
{
    (void)conn, (void)proc, (void)arg;
    return NULL;
}

void PQfinish(PGconn *conn)
{
    (void)conn;
}

char *PQerrorMessage(const PGconn *conn)
{
    (void)conn;
    static char text[256];
    (void)snprintf(text, sizeof(text), "%s", refusal ? refusal : "");
    return text;
}

static PGresult *answer(const char *command)
{
    const struct fake_reply *reply = &fine;
    if (strncmp(command, "SELECT set_config(", 18) != 0) {
        if (script_at >= script_len || !strstr(command, script[script_at].sql)) {
            (void)fprintf(stderr, "fake_pq: the test did not foresee: %s\n", command);
            abort();
        }
        reply = &script[script_at++];
    }
    if (reply->lost) {
        lost = true;
        return NULL;
    }
    failed_tx = reply->sqlstate != NULL;
    PGresult *res = malloc(sizeof(*res));
    if (!res) {
        abort();
    }
    res->reply = reply;
    live++;
    return res;
}

PGresult *PQexec(PGconn *conn, const char *command)
{
    (void)conn;
    return answer(command);
}

PGresult *PQexecParams(PGconn *conn, const char *command, int nParams, const Oid *paramTypes,
                       const char *const *paramValues, const int *paramLengths,
                       const int *paramFormats, int resultFormat)
{
    (void)conn, (void)nParams, (void)paramTypes, (void)paramValues, (void)paramLengths;
    (void)paramFormats, (void)resultFormat;
    return answer(command);
}

static int find_prepared(const char *name)
{
    int i = 0;
    while (i < prepared_count && strcmp(prepared[i].name, name) != 0) {
        i++;
    }
    return i;
}

/* What cannot be prepared fails here, with the reply of its turn; else that waits for its run. */
PGresult *PQprepare(PGconn *conn, const char *name, const char *query, int nParams,
                    const Oid *paramTypes)
{
    (void)conn, (void)nParams, (void)paramTypes;
    bool fails = script_at < script_len && script[script_at].unprepared;
    if (fails) {
        return answer(query);
    }
    int i = find_prepared(name);
    if (i < prepared_count || strlen(query) >= sizeof(prepared[0].sql)) {
        (void)fprintf(stderr, "fake_pq: %s again, or too long: %s\n", name, query);
        abort();
    }
    (void)snprintf(prepared[i].name, sizeof(prepared[i].name), "%s", name);
    (void)snprintf(prepared[i].sql, sizeof(prepared[i].sql), "%s", query);
    prepared_count++;
    static const struct fake_reply done = {.command = true};
    PGresult *res = malloc(sizeof(*res));
    if (!res) {
        abort();
    }
    res->reply = &done;
    live++;
    return res;
}

PGresult *PQexecPrepared(PGconn *conn, const char *name, int nParams,
                         const char *const *paramValues, const int *paramLengths,
                         const int *paramFormats, int resultFormat)
{
    (void)conn, (void)nParams, (void)paramValues, (void)paramLengths;
    (void)paramFormats, (void)resultFormat;
    int i = find_prepared(name);
    if (i == prepared_count) {
        (void)fprintf(stderr, "fake_pq: no statement %s on this connection\n", name);
        abort();
    }
    return answer(prepared[i].sql);
}

ExecStatusType PQresultStatus(const PGresult *res)
{
    return !res || res->reply->sqlstate ? PGRES_FATAL_ERROR
           : res->reply->command        ? PGRES_COMMAND_OK
                                        : PGRES_TUPLES_OK;
}

char *PQresultErrorField(const PGresult *res, int fieldcode)
{
    static char text[] = "scripted failure";
    if (!res) {
        return NULL;
    }
    switch (fieldcode) {
    case PG_DIAG_SQLSTATE:
        return (char *)(size_t)res->reply->sqlstate;
    case PG_DIAG_CONSTRAINT_NAME:
        return (char *)(size_t)res->reply->constraint;
    default:
        return text;
    }
}

int PQntuples(const PGresult *res)
{
    return res->reply->rows;
}

char *PQcmdTuples(PGresult *res)
{
    static char none[] = "";
    return res->reply->affected ? (char *)(size_t)res->reply->affected : none;
}

int PQgetisnull(const PGresult *res, int row, int col)
{
    return res->reply->fields[row * res->reply->cols + col] == NULL;
}

char *PQgetvalue(const PGresult *res, int row, int col)
{
    return (char *)(size_t)res->reply->fields[row * res->reply->cols + col];
}

void PQclear(PGresult *res)
{
    if (res) {
        live--;
        free(res);
    }
}
