/*
 * s3_xml.h - the few facts we want from an object store's XML: texts between tags, in order.
 *
 * No parser of XML: tags without attributes, as the S3 API has them (namespaces are on the root
 * alone), looked for as text. Pure, and safe with whatever bytes come.
 */
#ifndef SERVER_S3_XML_H
#define SERVER_S3_XML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The text of the first <tag> at or after *at, with &amp; and the like resolved; *at moves behind
 * it. False: there is none, it does not end, or it does not fit; *at and out stay.
 */
bool s3_xml_text(const char **at, const char *tag, char *out, size_t size);

/* From a <Contents> of a listing on; *at moves behind it. False: there is no further one. */
struct s3_object {
    char key[1100];
    int64_t bytes;
    int64_t modified_s; /* Unix time */
};
bool s3_xml_object(const char **at, struct s3_object *out);

/* 2026-01-31T12:00:00.000Z as Unix time; -1: it is none. */
int64_t s3_xml_time(const char *text);

#endif
