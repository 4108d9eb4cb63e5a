/* docs/openapi.json, carried in the program: what it serves is what it was built with. */
#include "server/openapi.h"

__asm__(".section .rodata\n"
        ".global openapi_text\n"
        ".global openapi_text_end\n"
        "openapi_text:\n"
        ".incbin \"docs/openapi.json\"\n"
        "openapi_text_end:\n"
        ".byte 0\n"
        ".previous\n");
