/*
 * auth.h - who asks: bearer tokens, and the cookie that stands for one in a browser.
 *
 * A secret is 256 random bits written as `pht_` and 43 characters of base64url; only its SHA-256 is
 * stored. Login draws another secret for the browser, kept as a session that dies with its token. A
 * principal is remembered for at most a second, so that a revoked token is refused within one.
 */
#ifndef SERVER_AUTH_H
#define SERVER_AUTH_H

#include <stdbool.h>

#include "common/hash.h"
#include "common/status.h"
#include "server/http.h"

enum { SECRET_LEN = 47 };

/* A new secret and the digest to store. */
void secret_new(char out[SECRET_LEN + 1], struct digest *digest);

/* Pattern only: pht_ and 43 characters of base64url. */
bool secret_valid(const char *text);

/* The value of a cookie in a Cookie header: false when it is absent or longer than size - 1. */
bool cookie_get(const char *header, const char *name, char *out, size_t size);

/* The secret in an Authorization header, NULL unless it is `Bearer <secret>` with a valid one. */
const char *bearer_secret(const char *header);

const char *role_name(enum role r);

/*
 * Fills rq->who. When it is nobody, or somebody whose role is not among roles, rs becomes 401 or
 * 403 (rs->status is set) and ST_OK is returned. Other statuses are the database's.
 */
enum status auth_check(struct request *rq, struct response *rs, unsigned roles,
                       struct err *e) MUST_CHECK;

/* As auth_check() does it, but for a secret in hand. ST_NOT_FOUND: nobody's, revoked or expired. */
enum status auth_lookup(struct principal *out, struct db *db, struct arena *a, const char *secret,
                        struct err *e) MUST_CHECK;

/* Is this what a browser sends as Origin from pages under that URL? */
bool origin_is_of(const char *origin, const char *url);

/* May a write by cookie come from this page? True for bearer tokens, for which
 * it does not matter. */
bool origin_allowed(const struct request *rq);

/* Forget what is remembered: a token of this process was just revoked. */
void auth_forget(void);

#endif
