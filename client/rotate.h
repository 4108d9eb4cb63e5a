/*
 * rotate.h - a new token for a silo while the old one still works.
 */
#ifndef CLIENT_ROTATE_H
#define CLIENT_ROTATE_H

/* photon-client rotate --state DIR; an exit code. argv[0] is the verb. */
int rotate_main(int argc, char **argv);

#endif
