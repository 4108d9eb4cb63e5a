/*
 * service.h - what a service manager is told: ready, stopping, still alive.
 *
 * The protocol of systemd's sd_notify(3), without its library: one datagram to the socket that
 * NOTIFY_SOCKET names. Without that variable nothing is sent.
 */
#ifndef SERVER_SERVICE_H
#define SERVER_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

/* "READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=..."; a failure is of no consequence. */
void service_notify(const char *state);

/* How often the manager wants WATCHDOG=1, in milliseconds, half of its patience; 0: not at all. */
int64_t service_watchdog_ms(void);

#endif
