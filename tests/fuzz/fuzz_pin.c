/* A pin that is taken prints back as the text it was read from: each has one spelling. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/mem.h"
#include "common/pin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = mem_alloc(len + 1); // of its own, so that a read past its end is seen
    memcpy(text, data, len);
    text[len] = '\0';
    struct pin p;
    struct err e = {0};
    if (pin_parse(&p, text, &e) == ST_OK) {
        char back[PIN_TEXT_MAX + 1];
        pin_print(&p, back);
        assert(strcmp(back, text) == 0);
    } else {
        assert(e.st == ST_INVALID && e.msg[0]);
    }
    mem_free(text);
    return 0;
}
