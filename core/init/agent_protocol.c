/* Layouts of the agent's requests and replies: see codec.h and protocol.h. No system calls here. */
#include <errno.h>
#include <string.h>

#include "codec.h"

static int bad_message(struct tp_error *err, const char *what, unsigned op) {
  return tp_fail(err, EBADMSG, "%s of operation %u", what, op);
}

/* Which fields an operation has, in their order on the wire. */
enum field { PATH = 1, OTHER, MODE, OFFSET, SIZE, MTIME, DATA };
static const uint8_t layouts[][4] = {
    [TP_AGENT_OPEN] = {PATH},
    [TP_AGENT_BEGIN] = {PATH, MODE},
    [TP_AGENT_WRITE] = {OFFSET, DATA},
    [TP_AGENT_COMMIT] = {SIZE, MTIME},
    [TP_AGENT_ABORT] = {0},
    [TP_AGENT_LIST] = {PATH},
    [TP_AGENT_STAT] = {PATH},
    [TP_AGENT_MKDIR] = {PATH, MODE},
    [TP_AGENT_REMOVE] = {PATH},
    [TP_AGENT_RENAME] = {PATH, OTHER},
    [TP_AGENT_CHMOD] = {PATH, MODE},
    [TP_AGENT_SYMLINK] = {OTHER, PATH},
    [TP_AGENT_TIMES] = {PATH, MTIME},
};

static const uint8_t *layout_of(uint16_t op) {
  if (op < TP_AGENT_OPEN || op >= sizeof layouts / sizeof *layouts || op == TP_AGENT_ENTRY ||
      op == TP_AGENT_DONE)
    return NULL;
  return layouts[op];
}

int tp_agent_decode_request(const uint8_t *bytes, size_t length, struct tp_agent_request *request,
                            struct tp_error *err) {
  struct tp_reader reader = tp_reader_of(bytes, length);
  *request = (struct tp_agent_request){.op = tp_read_u16(&reader)};
  request->flags = tp_read_u16(&reader);
  request->serial = tp_read_u32(&reader);
  const uint8_t *layout = layout_of(request->op);
  if (!layout)
    return bad_message(err, "unknown request", request->op);
  for (unsigned i = 0; i < sizeof *layouts && layout[i]; i++)
    switch (layout[i]) {
    case PATH: request->path = tp_read_text(&reader, TP_INIT_PATH); break;
    case OTHER: request->other = tp_read_text(&reader, TP_INIT_PATH); break;
    case MODE: request->mode = tp_read_u32(&reader); break;
    case OFFSET: request->offset = tp_read_u64(&reader); break;
    case SIZE: request->size = tp_read_u64(&reader); break;
    case MTIME: request->mtime = tp_read_u64(&reader); break;
    case DATA: request->data = tp_read_rest(&reader); break;
    }
  if (!tp_reader_done(&reader))
    return bad_message(err, "malformed request", request->op);
  return 0;
}

void tp_agent_encode_request(struct tp_writer *writer, const struct tp_agent_request *request) {
  tp_write_u16(writer, request->op);
  tp_write_u16(writer, request->flags);
  tp_write_u32(writer, request->serial);
  const uint8_t *layout = layout_of(request->op);
  for (unsigned i = 0; layout && i < sizeof *layouts && layout[i]; i++)
    switch (layout[i]) {
    case PATH: tp_write_text(writer, request->path); break;
    case OTHER: tp_write_text(writer, request->other); break;
    case MODE: tp_write_u32(writer, request->mode); break;
    case OFFSET: tp_write_u64(writer, request->offset); break;
    case SIZE: tp_write_u64(writer, request->size); break;
    case MTIME: tp_write_u64(writer, request->mtime); break;
    case DATA: tp_write_bytes(writer, request->data.data, request->data.length); break;
    }
}

static void read_stat(struct tp_reader *reader, struct tp_agent_stat *stat) {
  stat->mode = tp_read_u32(reader);
  stat->uid = tp_read_u32(reader);
  stat->gid = tp_read_u32(reader);
  stat->links = tp_read_u32(reader);
  stat->size = tp_read_u64(reader);
  stat->mtime = tp_read_u64(reader);
  stat->inode = tp_read_u64(reader);
  stat->blocks = tp_read_u64(reader);
}

static void write_stat(struct tp_writer *writer, const struct tp_agent_stat *stat) {
  tp_write_u32(writer, stat->mode);
  tp_write_u32(writer, stat->uid);
  tp_write_u32(writer, stat->gid);
  tp_write_u32(writer, stat->links);
  tp_write_u64(writer, stat->size);
  tp_write_u64(writer, stat->mtime);
  tp_write_u64(writer, stat->inode);
  tp_write_u64(writer, stat->blocks);
}

int tp_agent_decode_reply(const uint8_t *bytes, size_t length, struct tp_agent_reply *reply,
                          struct tp_error *err) {
  struct tp_reader reader = tp_reader_of(bytes, length);
  *reply = (struct tp_agent_reply){.op = tp_read_u16(&reader)};
  reply->status = tp_read_u16(&reader);
  reply->serial = tp_read_u32(&reader);
  if (reply->op < TP_AGENT_OPEN || reply->op > TP_AGENT_TIMES)
    return bad_message(err, "unknown reply", reply->op);
  if (reply->status) {
    reply->message = tp_read_text(&reader, 1024);
  } else {
    switch (reply->op) {
    case TP_AGENT_OPEN:
    case TP_AGENT_COMMIT: read_stat(&reader, &reply->stat); break;
    case TP_AGENT_ENTRY:
      reply->path = tp_read_text(&reader, TP_INIT_PATH);
      reply->target = tp_read_text(&reader, TP_INIT_PATH);
      read_stat(&reader, &reply->stat);
      break;
    case TP_AGENT_STAT:
      reply->target = tp_read_text(&reader, TP_INIT_PATH);
      read_stat(&reader, &reply->stat);
      break;
    }
  }
  if (!tp_reader_done(&reader))
    return bad_message(err, "malformed reply", reply->op);
  return 0;
}

void tp_agent_encode_reply(struct tp_writer *writer, const struct tp_agent_reply *reply) {
  tp_write_u16(writer, reply->op);
  tp_write_u16(writer, reply->status);
  tp_write_u32(writer, reply->serial);
  if (reply->status) {
    tp_write_text(writer, reply->message);
    return;
  }
  switch (reply->op) {
  case TP_AGENT_ENTRY: tp_write_text(writer, reply->path); /* fall through */
  case TP_AGENT_STAT: tp_write_text(writer, reply->target); /* fall through */
  case TP_AGENT_OPEN:
  case TP_AGENT_COMMIT: write_stat(writer, &reply->stat); break;
  }
}
