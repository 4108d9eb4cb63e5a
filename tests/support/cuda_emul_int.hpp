/*
 * cuda_emul_int.hpp - what the two halves of the emulator know of each other: cuda_emul.cpp has the
 * fibers and what every device does, cuda_emul_wgmma.cpp what Hopper adds.
 */
#ifndef TESTS_SUPPORT_CUDA_EMUL_INT_HPP
#define TESTS_SUPPORT_CUDA_EMUL_INT_HPP

#include "tests/support/cuda_emul.hpp"

enum { EMUL_THREADS = 1024, EMUL_SLOT = 32 };

extern unsigned emul_current;  /* the running thread's number in its block */
extern uint64_t emul_progress; /* counts whatever lets somebody go on */

void emul_stop(const char *why);
void emul_yield(); /* let the other threads run */

/* Every lane's value to every lane; valid until the lane's next exchange but one. */
unsigned char (*emul_exchange(const void *value, size_t size, int kind))[EMUL_SLOT];

void emul_block_begins();
void emul_block_ends();
/* Nobody can go on: does a copy that is under way arrive? */
bool emul_deliver();

#endif
