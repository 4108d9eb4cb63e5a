#include "server/admin_token.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/id.h"

/* The secret in the file, or "" when there is none that looks like one. */
static void read_secret(const char *path, char *secret)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t n = fd >= 0 ? read(fd, secret, SECRET_LEN) : 0;
    secret[n > 0 ? n : 0] = '\0';
    if (fd >= 0) {
        (void)close(fd);
    }
    if (!secret_valid(secret)) {
        secret[0] = '\0';
    }
}

static enum status write_secret(struct arena *a, const char *path, const char *secret,
                                struct err *e)
{
    const char *tmp = arena_fmt(a, "%s.new", path);
    const char *line = arena_fmt(a, "%s\n", secret);
    (void)unlink(tmp);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_set(e, ST_IO, "cannot write '%s': %s", path, strerror(errno));
    }
    bool bad = write(fd, line, strlen(line)) != (ssize_t)strlen(line) || fsync(fd) != 0;
    bad = close(fd) != 0 || bad;
    if (bad || rename(tmp, path) != 0) {
        return err_set(e, ST_IO, "cannot write '%s': %s", path, strerror(errno));
    }
    return ST_OK;
}

static enum status is_good(struct db *db, struct arena *a, const char *secret, bool *good,
                           struct err *e)
{
    struct digest d;
    struct db_rows rows;
    sha256_of(secret, strlen(secret), &d);
    const char *argv[] = {db_arg_digest(a, &d)};
    TRY(db_query(db, a,
                 "SELECT 1 FROM token WHERE hash = $1 AND role = 'admin' AND revoked_at IS NULL"
                 "   AND (expires_at IS NULL OR expires_at > clock_timestamp())",
                 1, argv, &rows, e));
    *good = rows.count > 0;
    return ST_OK;
}

static const char SQL_TOKEN[] =
    "WITH t AS (INSERT INTO token (id, hash, role, name) VALUES ($1, $2, 'admin', 'first admin')"
    "           RETURNING id),"
    " said AS (INSERT INTO event (kind, message, detail) SELECT 'token_created',"
    "          'the first admin token was made', jsonb_build_object('token', id) FROM t)"
    " INSERT INTO audit (role, name, address, action, object, status, request)"
    "        SELECT 'nobody', 'photon-server', '', 'token_create', id, 201, '' FROM t";

static enum status ensure(struct db *db, struct arena *a, const char *path, char *secret,
                          bool *fresh, struct err *e)
{
    bool good = false;
    read_secret(path, secret);
    if (secret[0]) {
        TRY(is_good(db, a, secret, &good, e));
    }
    *fresh = !good;
    if (good) {
        return ST_OK;
    }
    struct digest d;
    char id[ID_LEN + 1];
    id_new('k', id);
    secret_new(secret, &d);
    TRY(write_secret(a, path, secret, e));
    const char *argv[] = {id, db_arg_digest(a, &d)};
    return db_exec(db, SQL_TOKEN, 2, argv, NULL, e);
}

enum status admin_token_ensure(struct db *db, const char *data_dir, char *secret, bool *fresh,
                               struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    enum status st = ensure(db, a, arena_fmt(a, "%s/admin-token", data_dir), secret, fresh, e);
    arena_free(a);
    return st;
}
