/*
 * submit.h - photon run submit: a run spec from a file, changed by --set, sent to the server.
 */
#ifndef CLIENT_CLI_SUBMIT_H
#define CLIENT_CLI_SUBMIT_H

int run_submit(int argc, char **argv);

#endif
