/* Writing one layer: see sink.h. */
#include "sink.h"

#include <archive_entry.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define BLOCK (512 * 1024)
#define MAX_THREADS 16

static la_ssize_t write_stored(struct archive *archive, void *data, const void *bytes, size_t length) {
  struct tp_sink *sink = data;
  ssize_t put;
  do
    put = write(sink->fd, bytes, length);
  while (put < 0 && errno == EINTR);
  if (put < 0) {
    sink->write_errno = errno;
    archive_set_error(archive, errno, "can't write");
    return -1;
  }
  sha256_update(&sink->digest, (size_t)put, bytes);
  sink->stored += (uint64_t)put;
  return put;
}

static la_ssize_t write_tar(struct archive *archive, void *data, const void *bytes, size_t length) {
  struct tp_sink *sink = data;
  sha256_update(&sink->diff_id, length, bytes);
  if (archive_write_data(sink->raw, bytes, length) == (la_ssize_t)length)
    return (la_ssize_t)length;
  archive_set_error(archive, archive_errno(sink->raw), "%s",
                    archive_error_string(sink->raw) ?: "can't compress");
  return -1;
}

int tp_sink_fail(struct tp_sink *sink, struct archive *archive, struct tp_error *err) {
  const char *why = archive_error_string(archive);
  int code = archive_errno(archive);
  if (sink->write_errno)
    return tp_fail(err, sink->write_errno, "write the layer");
  return tp_fail(err, code > 0 ? code : EIO, "%s", why ? why : "write the layer");
}

static int set_compression(struct archive *raw, const char *compression, int level) {
  char number[16];
  int result = ARCHIVE_OK;
  if (strcmp(compression, "zstd") == 0) {
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    result = archive_write_add_filter_zstd(raw);
    snprintf(number, sizeof number, "%ld", cpus < 1 ? 1 : cpus > MAX_THREADS ? MAX_THREADS : cpus);
    if (result == ARCHIVE_OK)
      result = archive_write_set_filter_option(raw, "zstd", "threads", number);
  } else if (strcmp(compression, "gzip") == 0) {
    result = archive_write_add_filter_gzip(raw);
    if (result == ARCHIVE_OK)
      result = archive_write_set_filter_option(raw, "gzip", "timestamp", NULL);
  }
  if (result == ARCHIVE_OK && level && strcmp(compression, "none") != 0) {
    snprintf(number, sizeof number, "%d", level);
    result = archive_write_set_filter_option(raw, compression, "compression-level", number);
  }
  return result;
}

static int open_raw(struct tp_sink *sink, const char *compression, int level) {
  struct archive *raw = sink->raw;
  struct archive_entry *whole = archive_entry_new();
  int result = whole ? archive_write_set_format_raw(raw) : ARCHIVE_FATAL;
  if (result == ARCHIVE_OK)
    result = set_compression(raw, compression, level);
  archive_write_set_bytes_per_block(raw, BLOCK);
  archive_write_set_bytes_in_last_block(raw, 1);
  if (result == ARCHIVE_OK)
    result = archive_write_open(raw, sink, NULL, write_stored, NULL);
  archive_entry_set_pathname(whole, "layer");
  archive_entry_set_filetype(whole, AE_IFREG);
  if (result == ARCHIVE_OK)
    result = archive_write_header(raw, whole);
  archive_entry_free(whole);
  return result;
}

int tp_sink_open(struct tp_sink *sink, int fd, const char *compression, int level,
                 struct tp_error *err) {
  *sink = (struct tp_sink){.fd = fd, .raw = archive_write_new(), .tar = archive_write_new()};
  sha256_init(&sink->digest);
  sha256_init(&sink->diff_id);
  if (!sink->raw || !sink->tar)
    return tp_fail(err, ENOMEM, "open archive");
  if (open_raw(sink, compression, level) != ARCHIVE_OK)
    return tp_sink_fail(sink, sink->raw, err);

  archive_write_set_bytes_per_block(sink->tar, 0); /* hand on at once, without a copy */
  if (archive_write_set_format_pax(sink->tar) != ARCHIVE_OK ||
      archive_write_set_format_option(sink->tar, "pax", "xattrheader", "SCHILY") != ARCHIVE_OK ||
      archive_write_open(sink->tar, sink, NULL, write_tar, NULL) != ARCHIVE_OK)
    return tp_sink_fail(sink, sink->tar, err);
  return 0;
}

int tp_sink_finish(struct tp_sink *sink, struct tp_error *err) {
  if (archive_write_close(sink->tar) != ARCHIVE_OK)
    return tp_sink_fail(sink, sink->tar, err);
  if (archive_write_close(sink->raw) != ARCHIVE_OK)
    return tp_sink_fail(sink, sink->raw, err);
  return 0;
}

void tp_sink_close(struct tp_sink *sink) {
  /* A failed archive is freed without being ended, else it would write into what is closed. */
  if (sink->tar)
    archive_write_fail(sink->tar), archive_write_free(sink->tar);
  if (sink->raw)
    archive_write_fail(sink->raw), archive_write_free(sink->raw);
  sink->tar = sink->raw = NULL;
}
