/* Reading one layer: bytes -> sha256 -> decompression -> sha256 -> tar.
 *
 * Runs in the confined worker only. Gzip, zstd, xz and bzip2 are told by their magic; other
 * filters stay off, because libarchive would run programs for some of them. */
#ifndef TP_SOURCE_H
#define TP_SOURCE_H

#include <archive.h>
#include <nettle/sha2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

#define TP_DIGEST_HEX 64

/* A layer as the command line names it; digests are lower-case hex, or empty when unknown. */
struct tp_layer {
  int fd;
  uint64_t at, length; /* where in the file; length 0: all of it */
  const char *name;
  char digest[TP_DIGEST_HEX + 1];  /* of the bytes as they are stored */
  char diff_id[TP_DIGEST_HEX + 1]; /* of the tar after decompression */
};

struct tp_source {
  const struct tp_layer *layer;
  struct archive *raw, *tar;
  struct sha256_ctx stored, content;
  uint64_t read;            /* bytes before decompression */
  uint64_t unpacked, limit; /* bytes after decompression */
  bool ended, over;
  int read_errno;
  uint8_t buffer[256 * 1024];
};

/* 0 with source->tar ready for archive_read_next_header, or -1. Close it in either case. */
int tp_source_open(struct tp_source *source, const struct tp_layer *layer, uint64_t limit,
                   struct tp_error *err);

/* Fill err with why source->tar failed and return -1. */
int tp_source_fail(struct tp_source *source, struct tp_error *err);

/* Read what follows the archive and compare the digests: EBADMSG when one differs. */
int tp_source_verify(struct tp_source *source, struct tp_error *err);

void tp_source_close(struct tp_source *source);

/* "sha256:HEX" -> hex; -1 when it is anything else. */
int tp_digest_parse(const char *text, char hex[TP_DIGEST_HEX + 1]);
void tp_digest_hex(struct sha256_ctx *context, char hex[TP_DIGEST_HEX + 1]);

#endif
