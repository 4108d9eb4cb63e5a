/*
 * doctor.h - what could keep this silo from working, each finding with the line that mends it.
 */
#ifndef CLIENT_DOCTOR_H
#define CLIENT_DOCTOR_H

/* photon-client doctor --state DIR [--data DIR ...]; 0 when nothing is wrong. */
int doctor_main(int argc, char **argv);

/* "DIR[:WEIGHT]" of --data: dir is cut out of text, which is changed. */
struct data_source_arg;
int data_arg_parse(char *text, struct data_source_arg *out);

#endif
