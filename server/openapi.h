/*
 * openapi.h - the description of the API, served at /openapi.json.
 */
#ifndef SERVER_OPENAPI_H
#define SERVER_OPENAPI_H

extern const char openapi_text[];     /* NUL-terminated */
extern const char openapi_text_end[]; /* its end */

#endif
