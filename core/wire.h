/* Cursors over little-endian message bodies, sans-I/O: bounded reading, growing writing.
 *
 * A reader never passes its end: after a short read it is `bad`, every further value is 0 and
 * `tp_reader_done` says no. So a decoder reads straight through and checks once. What it hands out
 * points into the message. Used by init, its agent, the server and clients. */
#ifndef TP_WIRE_H
#define TP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tp_bytes {
  const uint8_t *data;
  uint32_t length;
};

/* A list of strings, still encoded; tp_list_next walks it. Validated when it was read. */
struct tp_list {
  uint32_t count;
  const uint8_t *bytes;
  size_t length;
};

struct tp_reader {
  const uint8_t *at, *end;
  bool bad;
};

static inline struct tp_reader tp_reader_of(const void *bytes, size_t length) {
  return (struct tp_reader){.at = bytes, .end = (const uint8_t *)bytes + length};
}

uint16_t tp_read_u16(struct tp_reader *reader);
uint32_t tp_read_u32(struct tp_reader *reader);
uint64_t tp_read_u64(struct tp_reader *reader);
/* A string of at most `max` bytes without NUL: it ends up in system calls. */
struct tp_bytes tp_read_text(struct tp_reader *reader, uint32_t max);
/* A list of at most `max` such strings. */
struct tp_list tp_read_list(struct tp_reader *reader, uint32_t max);
struct tp_bytes tp_read_rest(struct tp_reader *reader);
/* All was there and nothing is left over. */
bool tp_reader_done(const struct tp_reader *reader);

/* The next string of the list; false at its end. Consumes *list, copy it to walk twice. */
bool tp_list_next(struct tp_list *list, struct tp_bytes *item);

/* A buffer that grows up to `limit`; beyond it, or out of memory, it is `bad`. Owns `bytes`. */
struct tp_writer {
  uint8_t *bytes;
  size_t length, size, limit;
  bool bad;
};

void tp_writer_init(struct tp_writer *writer, size_t limit);
void tp_writer_free(struct tp_writer *writer);
void tp_write_bytes(struct tp_writer *writer, const void *bytes, size_t length);
void tp_write_u16(struct tp_writer *writer, uint16_t value);
void tp_write_u32(struct tp_writer *writer, uint32_t value);
void tp_write_u64(struct tp_writer *writer, uint64_t value);
void tp_write_text(struct tp_writer *writer, struct tp_bytes text);
void tp_write_list(struct tp_writer *writer, struct tp_list list);

#endif
