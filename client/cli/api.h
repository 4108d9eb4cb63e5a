/*
 * api.h - a command's way to the server: which one, as whom, and what to print when it says no.
 *
 * Server: --server, PHOTON_SERVER, else the running demo of this folder, else
 * http://127.0.0.1:8080. Token: --token-file, PHOTON_TOKEN (the token itself), PHOTON_TOKEN_FILE,
 * else the demo's. Functions that return int return an exit code and have said on stderr why it is
 * not 0.
 */
#ifndef CLIENT_CLI_API_H
#define CLIENT_CLI_API_H

#include <stdbool.h>

#include "client/options.h"
#include "client/transport.h"

struct api_options {
    const char *server;
    const char *token_file;
    const char *ca_file;
    const char *pin;
    bool json;
    bool quiet;
};

/* The rows every command that speaks to a server has. */
#define API_ROWS(o)                                                                                \
    {"server", 's', OPTION_TEXT,           "URL", "PHOTON_SERVER", &(o)->server,                   \
     0,        0,   "the server's address"},                                                       \
        {"token-file",                                                                             \
         0,                                                                                        \
         OPTION_TEXT,                                                                              \
         "FILE",                                                                                   \
         "PHOTON_TOKEN_FILE",                                                                      \
         &(o)->token_file,                                                                         \
         0,                                                                                        \
         0,                                                                                        \
         "a file holding your token; or PHOTON_TOKEN"},                                            \
        {"ca-file",                                                                                \
         0,                                                                                        \
         OPTION_TEXT,                                                                              \
         "FILE",                                                                                   \
         "PHOTON_CA_FILE",                                                                         \
         &(o)->ca_file,                                                                            \
         0,                                                                                        \
         0,                                                                                        \
         "certificates to trust instead of the system's"},                                         \
        {"pin",                                                                                    \
         0,                                                                                        \
         OPTION_TEXT,                                                                              \
         "PIN",                                                                                    \
         "PHOTON_PIN",                                                                             \
         &(o)->pin,                                                                                \
         0,                                                                                        \
         0,                                                                                        \
         "the server's key, sha256//..., as its start prints it"},                                 \
        {"json", 0, OPTION_FLAG, NULL, NULL, &(o)->json, 0, 0, "print JSON on stdout"},            \
    {                                                                                              \
        "quiet", 'q', OPTION_FLAG, NULL, NULL, &(o)->quiet, 0, 0, "no talk on stderr"              \
    }

struct api {
    struct transport *transport;
    struct arena *arena;
    bool json;
    bool quiet;
};

int api_open(struct api *api, const struct api_options *o);
void api_close(struct api *api);

/* Parse the command line, whose rows fill o, and open. False when the command is over, with *rc. */
bool api_begin(struct api *api, const struct command_line *c, const struct api_options *o, int argc,
               char **argv, const char **args, int *rc);

/* The id of the run or silo (noun) that people call by its id or name; of several the newest. */
int api_find(struct api *api, const char *noun, const char *word, const char **id);

/* One request, tried again for 20 s while no decision comes. out->json is an object on EXIT_DONE,
 * or NULL on 204. */
int api_call(struct api *api, const char *method, const char *path, const char *body,
             struct reply *out);

/* GET of a whole list, following next_cursor; fn is called for each item until it returns false. */
int api_list(struct api *api, const char *path, bool (*fn)(void *ctx, const struct json *item),
             void *ctx);

/* Read a secret from a file: the first line, without spaces around it. In the arena. */
int api_read_secret(struct arena *a, const char *file, const char **out);

/* What an error status means as an exit code, after it was printed. */
int api_exit_code(const struct reply *r, enum status st);

/* {"items":[…]} as it came, or one item a line for people: the caller's printer. */
void api_print_json(struct api *api, const struct json *v);

/*
 * Members with a fallback, for printing: a text with control characters is a copy without them, of
 * 511 bytes at most, that lasts for seven more such texts.
 */
const char *api_text(const struct json *o, const char *key, const char *absent);
double api_number(const struct json *o, const char *key); /* NAN when absent or null */
int64_t api_integer(const struct json *o, const char *key, int64_t absent);

#endif
