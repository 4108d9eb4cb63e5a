/* An object store's XML: whatever comes is read within its bounds, and what is found is sound. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "server/s3_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = mem_alloc(size + 1);
    memcpy(text, data, size);
    text[size] = '\0';
    const char *at = text;
    struct s3_object o;
    while (s3_xml_object(&at, &o)) {
        require(at > text && at <= text + strlen(text));
        require(o.bytes >= 0 && o.modified_s >= 0 && strlen(o.key) < sizeof(o.key));
    }
    at = text;
    char code[16];
    for (const char *before = at; s3_xml_text(&at, "Code", code, sizeof(code)); before = at) {
        require(at > before && strlen(code) < sizeof(code));
    }
    (void)s3_xml_time(text);
    mem_free(text);
    return 0;
}
