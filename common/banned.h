/*
 * banned.h - functions that must not appear in this project.
 *
 * Included on the compiler's command line (-include), so no file can forget it.
 */
#ifndef COMMON_BANNED_H
#define COMMON_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#pragma GCC poison strcpy strcat strncpy strncat strtok sprintf vsprintf gets atoi atol atof
#pragma GCC poison gmtime localtime ctime asctime mktemp tmpnam srand

#endif
