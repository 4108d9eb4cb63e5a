/*
 * loopback.h - is this host the machine itself, so that plain HTTP to it meets no wire?
 */
#ifndef COMMON_LOOPBACK_H
#define COMMON_LOOPBACK_H

#include <stdbool.h>

/*
 * "localhost", an address of 127.0.0.0/8, or ::1, in brackets or without. Names are not looked up:
 * whatever else a name begins with, whoever owns it decides where it leads.
 */
bool loopback_host(const char *host);

#endif
