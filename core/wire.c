/* Cursors over message bodies: see wire.h. No system calls here. */
#include "wire.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t *take(struct tp_reader *reader, size_t count) {
  if (reader->bad || (size_t)(reader->end - reader->at) < count) {
    reader->bad = true;
    return NULL;
  }
  const uint8_t *at = reader->at;
  reader->at += count;
  return at;
}

static uint64_t read_number(struct tp_reader *reader, unsigned size) {
  const uint8_t *at = take(reader, size);
  uint64_t value = 0;
  for (unsigned i = 0; at && i < size; i++)
    value |= (uint64_t)at[i] << 8 * i;
  return value;
}

uint16_t tp_read_u16(struct tp_reader *reader) {
  return (uint16_t)read_number(reader, 2);
}

uint32_t tp_read_u32(struct tp_reader *reader) {
  return (uint32_t)read_number(reader, 4);
}

uint64_t tp_read_u64(struct tp_reader *reader) {
  return read_number(reader, 8);
}

struct tp_bytes tp_read_text(struct tp_reader *reader, uint32_t max) {
  struct tp_bytes text = {.length = tp_read_u32(reader)};
  if (text.length > max)
    reader->bad = true;
  text.data = take(reader, text.length);
  if (text.data && memchr(text.data, 0, text.length))
    reader->bad = true;
  if (reader->bad)
    return (struct tp_bytes){.data = reader->end};
  return text;
}

struct tp_list tp_read_list(struct tp_reader *reader, uint32_t max) {
  struct tp_list list = {.count = tp_read_u32(reader), .bytes = reader->at};
  if (list.count > max)
    reader->bad = true;
  for (uint32_t i = 0; i < list.count && !reader->bad; i++)
    tp_read_text(reader, UINT32_MAX);
  if (reader->bad)
    return (struct tp_list){.bytes = reader->end};
  list.length = (size_t)(reader->at - list.bytes);
  return list;
}

struct tp_bytes tp_read_rest(struct tp_reader *reader) {
  size_t left = reader->bad ? 0 : (size_t)(reader->end - reader->at);
  struct tp_bytes rest = {.data = reader->at, .length = (uint32_t)left};
  reader->at += left;
  return rest;
}

bool tp_reader_done(const struct tp_reader *reader) {
  return !reader->bad && reader->at == reader->end;
}

bool tp_list_next(struct tp_list *list, struct tp_bytes *item) {
  if (list->count == 0)
    return false;
  struct tp_reader reader = tp_reader_of(list->bytes, list->length);
  *item = tp_read_text(&reader, UINT32_MAX);
  list->count--;
  list->bytes = reader.at;
  list->length = (size_t)(reader.end - reader.at);
  return !reader.bad;
}

void tp_writer_init(struct tp_writer *writer, size_t limit) {
  *writer = (struct tp_writer){.limit = limit};
}

void tp_writer_free(struct tp_writer *writer) {
  free(writer->bytes);
  *writer = (struct tp_writer){.limit = writer->limit};
}

void tp_write_bytes(struct tp_writer *writer, const void *bytes, size_t length) {
  if (writer->bad || writer->limit - writer->length < length) {
    writer->bad = true;
    return;
  }
  if (writer->size - writer->length < length) {
    size_t size = writer->size ? writer->size * 2 : 256;
    if (size < writer->length + length)
      size = writer->length + length;
    uint8_t *grown = realloc(writer->bytes, size);
    if (!grown) {
      writer->bad = true;
      return;
    }
    writer->bytes = grown;
    writer->size = size;
  }
  if (length)
    memcpy(writer->bytes + writer->length, bytes, length);
  writer->length += length;
}

static void write_number(struct tp_writer *writer, uint64_t value, unsigned size) {
  uint8_t bytes[8];
  for (unsigned i = 0; i < size; i++)
    bytes[i] = (uint8_t)(value >> 8 * i);
  tp_write_bytes(writer, bytes, size);
}

void tp_write_u16(struct tp_writer *writer, uint16_t value) {
  write_number(writer, value, 2);
}

void tp_write_u32(struct tp_writer *writer, uint32_t value) {
  write_number(writer, value, 4);
}

void tp_write_u64(struct tp_writer *writer, uint64_t value) {
  write_number(writer, value, 8);
}

void tp_write_text(struct tp_writer *writer, struct tp_bytes text) {
  tp_write_u32(writer, text.length);
  tp_write_bytes(writer, text.data, text.length);
}

void tp_write_list(struct tp_writer *writer, struct tp_list list) {
  tp_write_u32(writer, list.count);
  tp_write_bytes(writer, list.bytes, list.length);
}
