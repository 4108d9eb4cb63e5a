/*
 * join.h - how a folder becomes a silo: a one-time join token is traded for the silo's own.
 */
#ifndef CLIENT_JOIN_H
#define CLIENT_JOIN_H

/* photon-client join URL ...; an exit code. argv[0] is the verb. */
int join_main(int argc, char **argv);
/* photon-client leave: forget the silo's token. */
int leave_main(int argc, char **argv);

#endif
