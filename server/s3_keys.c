/*
 * s3_keys.c - what requests to the object store are signed with: of the environment, for good, or
 * of a file, which is read again when it is another one. Session tokens end, and whoever renews
 * them writes the file anew.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"
#include "server/s3_int.h"

const char *s3_env(const char *name, const char *otherwise)
{
    const char *v = getenv(name);
    return v && v[0] ? v : otherwise;
}

/* "key = value" of the profile's section, as the AWS tools write it. */
static void take_line(struct s3_keys *k, char *line, const char *profile, bool *ours)
{
    char key[64];
    char value[S3_SESSION_MAX];
    char section[80];
    if (sscanf(line, " [%79[^]]]", section) == 1) {
        *ours = strcmp(section, profile) == 0;
    } else if (*ours && sscanf(line, " %63[a-z_] = %2047[!-~]", key, value) == 2) {
        char *to = strcmp(key, "aws_access_key_id") == 0       ? k->user
                   : strcmp(key, "aws_secret_access_key") == 0 ? k->password
                   : strcmp(key, "aws_session_token") == 0     ? k->session
                                                               : NULL;
        if (to) {
            (void)snprintf(to, to == k->session ? sizeof(k->session) : S3_TEXT_MAX, "%s", value);
        }
    }
}

static enum status complete(const struct s3_keys *k, struct err *e)
{
    return k->user[0] && k->password[0]
               ? ST_OK
               : err_set(e, ST_INVALID,
                         "no credentials for the bucket; set AWS_ACCESS_KEY_ID and "
                         "AWS_SECRET_ACCESS_KEY, or name a file with --s3-credentials");
}

static enum status read_file(struct s3_keys *k, const char *path, struct err *e)
{
    char line[2200];
    bool ours = false;
    struct stat sb;
    FILE *f = fopen(path, "re");
    if (!f) {
        return err_set(e, ST_INVALID, "cannot read the credentials '%.120s': %s", path,
                       strerror(errno));
    }
    if (fstat(fileno(f), &sb) == 0 && (sb.st_mode & 077) != 0) {
        (void)fclose(f);
        return err_set(e, ST_INVALID, "others may read the credentials '%.120s'; try chmod 600",
                       path);
    }
    while (fgets(line, sizeof(line), f)) {
        take_line(k, line, s3_env("AWS_PROFILE", "default"), &ours);
    }
    (void)fclose(f);
    explicit_bzero(line, sizeof(line));
    return complete(k, e);
}

/* Is it another file than was looked at last, or changed since? One that is away is no other. */
static bool changed(struct s3 *s)
{
    struct stat sb;
    if (stat(s->keys_file, &sb) != 0) {
        return false;
    }
    bool same = sb.st_ino == s->keys_seen.st_ino && sb.st_size == s->keys_seen.st_size &&
                sb.st_mode == s->keys_seen.st_mode &&
                sb.st_mtim.tv_sec == s->keys_seen.st_mtim.tv_sec &&
                sb.st_mtim.tv_nsec == s->keys_seen.st_mtim.tv_nsec;
    s->keys_seen = sb; // before it is read: what changes in between is a change once more
    return !same;
}

enum status s3_keys_find(struct s3 *s, const char *file, struct err *e)
{
    const char *path = file ? file : getenv("AWS_SHARED_CREDENTIALS_FILE");
    struct s3_keys *k = &s->keys;
    if (file || (!getenv("AWS_ACCESS_KEY_ID") && path)) {
        s->keys_file = arena_fmt(s->arena, "%s", path);
        (void)changed(s);
        return read_file(k, path, e);
    }
    (void)snprintf(k->user, sizeof(k->user), "%s", s3_env("AWS_ACCESS_KEY_ID", ""));
    (void)snprintf(k->password, sizeof(k->password), "%s", s3_env("AWS_SECRET_ACCESS_KEY", ""));
    (void)snprintf(k->session, sizeof(k->session), "%s", s3_env("AWS_SESSION_TOKEN", ""));
    return complete(k, e);
}

void s3_keys_now(struct s3 *s, struct s3_keys *out)
{
    struct s3_keys next = {0};
    struct err e = {0};
    (void)pthread_mutex_lock(&s->lock);
    if (s->keys_file && changed(s)) {
        if (read_file(&next, s->keys_file, &e)) {
            log_error("%s; those in use are still the last", e.msg);
        } else {
            s->keys = next;
            log_info("the credentials for the bucket were read again");
        }
    }
    *out = s->keys;
    (void)pthread_mutex_unlock(&s->lock);
    explicit_bzero(&next, sizeof(next));
}
