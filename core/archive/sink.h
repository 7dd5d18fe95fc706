/* Writing one layer: tar -> sha256 -> compression -> sha256 -> descriptor.
 *
 * The mirror of source.h, in the confined worker only. The tar is PAX with nothing of the machine in
 * it (no inode numbers, no access times), so that equal trees make equal bytes. */
#ifndef TP_SINK_H
#define TP_SINK_H

#include <archive.h>
#include <nettle/sha2.h>
#include <stdint.h>

#include "../error.h"

struct tp_sink {
  int fd;
  uint64_t stored; /* bytes written to fd */
  int write_errno;
  struct archive *raw, *tar;
  struct sha256_ctx digest, diff_id; /* of the bytes as they are stored; of the tar */
};

/* `compression` is "zstd", "gzip" or "none"; `level` 0 is the compressor's own choice. Writes to
 * `fd` from where it stands. Close it whatever comes back. */
int tp_sink_open(struct tp_sink *sink, int fd, const char *compression, int level,
                 struct tp_error *err);

/* Ends the archive; then the digests are those of the whole. */
int tp_sink_finish(struct tp_sink *sink, struct tp_error *err);

/* Fill err with why `archive`, one of the sink's, failed and return -1. */
int tp_sink_fail(struct tp_sink *sink, struct archive *archive, struct tp_error *err);

void tp_sink_close(struct tp_sink *sink);

#endif
