/*
 * version.h - what this build calls itself, and the silo protocol it speaks.
 */
#ifndef COMMON_VERSION_H
#define COMMON_VERSION_H

#define PHOTON_VERSION  "0.1.0"
#define PHOTON_PROTOCOL "1"

#endif
