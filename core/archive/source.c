/* Reading one layer: see source.h. */
#include "source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int tp_digest_parse(const char *text, char hex[TP_DIGEST_HEX + 1]) {
  if (strncmp(text, "sha256:", 7) != 0 || strlen(text) != 7 + TP_DIGEST_HEX ||
      strspn(text + 7, "0123456789abcdef") != TP_DIGEST_HEX)
    return -1;
  memcpy(hex, text + 7, TP_DIGEST_HEX + 1);
  return 0;
}

void tp_digest_hex(struct sha256_ctx *context, char hex[TP_DIGEST_HEX + 1]) {
  uint8_t digest[SHA256_DIGEST_SIZE];
  sha256_digest(context, sizeof digest, digest);
  for (size_t i = 0; i < sizeof digest; i++)
    snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

static ssize_t read_stored(struct archive *archive, void *data, const void **buffer) {
  struct tp_source *source = data;
  size_t want = sizeof source->buffer;
  ssize_t got;
  if (source->layer->length && source->layer->length - source->read < want)
    want = (size_t)(source->layer->length - source->read);
  do
    got = read(source->layer->fd, source->buffer, want);
  while (got < 0 && errno == EINTR);
  if (got < 0) {
    source->read_errno = errno;
    archive_set_error(archive, errno, "can't read");
    return -1;
  }
  if (got == 0)
    source->ended = true;
  source->read += (uint64_t)got;
  if (*source->layer->digest)
    sha256_update(&source->stored, (size_t)got, source->buffer);
  *buffer = source->buffer;
  return got;
}

/* The limit is on what comes out of the decompressor, so that a bomb stops early, whatever the
 * entries in it claim. */
static ssize_t read_unpacked(struct archive *archive, void *data, const void **buffer) {
  struct tp_source *source = data;
  size_t size;
  la_int64_t offset;
  int result = archive_read_data_block(source->raw, buffer, &size, &offset);
  if (result == ARCHIVE_EOF)
    return 0;
  if (result < ARCHIVE_OK) {
    archive_set_error(archive, EBADMSG, "%s", archive_error_string(source->raw));
    return -1;
  }
  source->unpacked += size;
  if (source->unpacked > source->limit) {
    source->over = true;
    archive_set_error(archive, EFBIG, "too large");
    return -1;
  }
  if (*source->layer->diff_id)
    sha256_update(&source->content, size, *buffer);
  return (ssize_t)size;
}

int tp_source_fail(struct tp_source *source, struct tp_error *err) {
  const char *why = archive_error_string(source->tar);
  if (source->over)
    return tp_fail(err, EFBIG, "unpacks to more than %llu bytes",
                   (unsigned long long)source->limit);
  if (source->read_errno)
    return tp_fail(err, source->read_errno, "read");
  return tp_fail(err, EBADMSG, "damaged archive (%s)", why ? why : "?");
}

int tp_source_open(struct tp_source *source, const struct tp_layer *layer, uint64_t limit,
                   struct tp_error *err) {
  source->layer = layer;
  source->limit = limit;
  source->read = source->unpacked = 0;
  source->read_errno = 0;
  source->ended = source->over = false;
  sha256_init(&source->stored);
  sha256_init(&source->content);
  source->raw = archive_read_new();
  source->tar = archive_read_new();
  if (!source->raw || !source->tar)
    return tp_fail(err, ENOMEM, "open archive");

  archive_read_support_filter_gzip(source->raw);
  archive_read_support_filter_zstd(source->raw);
  archive_read_support_filter_xz(source->raw);
  archive_read_support_filter_bzip2(source->raw);
  archive_read_support_format_raw(source->raw);
  archive_read_support_format_tar(source->tar);
  archive_read_support_format_empty(source->tar);

  struct archive_entry *whole;
  if (archive_read_open(source->raw, source, NULL, read_stored, NULL) != ARCHIVE_OK ||
      archive_read_next_header(source->raw, &whole) != ARCHIVE_OK) {
    if (source->read_errno)
      return tp_fail(err, source->read_errno, "read");
    return tp_fail(err, EBADMSG, "not an archive (%s)",
                   archive_error_string(source->raw) ?: "empty");
  }
  if (archive_read_open(source->tar, source, NULL, read_unpacked, NULL) != ARCHIVE_OK)
    return tp_source_fail(source, err);
  return 0;
}

static int compare(struct sha256_ctx *context, const char *expected, const char *what,
                   struct tp_error *err) {
  char hex[TP_DIGEST_HEX + 1];
  if (!*expected)
    return 0;
  tp_digest_hex(context, hex);
  if (strcmp(hex, expected) == 0)
    return 0;
  return tp_fail(err, EBADMSG, "%s is sha256:%.16s..., expected sha256:%.16s...", what, hex,
                 expected);
}

int tp_source_verify(struct tp_source *source, struct tp_error *err) {
  const void *ignored;
  ssize_t got;
  /* A tar's padding counts for the digest, and whoever writes into our pipe must not get EPIPE. */
  while ((got = read_unpacked(source->tar, source, &ignored)) > 0)
    ;
  while (got == 0 && !source->ended)
    got = read_stored(source->tar, source, &ignored) < 0 ? -1 : 0;
  if (got < 0)
    return tp_source_fail(source, err);

  if (compare(&source->stored, source->layer->digest, "digest", err) < 0)
    return -1;
  return compare(&source->content, source->layer->diff_id, "content", err);
}

void tp_source_close(struct tp_source *source) {
  if (source->tar)
    archive_read_free(source->tar);
  if (source->raw)
    archive_read_free(source->raw);
  source->tar = source->raw = NULL;
}
