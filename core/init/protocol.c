/* Layouts of the control socket's messages: see codec.h and protocol.h. No system calls here. */
#include <errno.h>
#include <string.h>

#include "codec.h"

static int bad_message(struct tp_error *err, const char *what, unsigned type) {
  return tp_fail(err, EBADMSG, "%s of type %u", what, type);
}

static void read_header(struct tp_reader *reader, uint16_t *type, uint32_t *serial) {
  *type = tp_read_u16(reader);
  if (tp_read_u16(reader) != 0)
    reader->bad = true;
  *serial = tp_read_u32(reader);
}

static void write_header(struct tp_writer *writer, uint16_t type, uint32_t serial) {
  tp_write_u16(writer, type);
  tp_write_u16(writer, 0);
  tp_write_u32(writer, serial);
}

static void read_start(struct tp_reader *reader, struct tp_init_start *start) {
  start->flags = tp_read_u32(reader);
  start->attach = tp_read_u32(reader);
  start->ring = tp_read_u32(reader);
  start->cols = tp_read_u16(reader);
  start->rows = tp_read_u16(reader);
  start->key = tp_read_text(reader, TP_INIT_NAME);
  start->name = tp_read_text(reader, TP_INIT_NAME);
  start->user = tp_read_text(reader, TP_INIT_NAME);
  start->cwd = tp_read_text(reader, TP_INIT_PATH);
  start->argv = tp_read_list(reader, TP_INIT_STRINGS);
  start->env = tp_read_list(reader, TP_INIT_STRINGS);
  if (start->argv.count == 0)
    reader->bad = true;
}

int tp_init_decode_request(const uint8_t *bytes, size_t length, struct tp_init_request *request,
                           struct tp_error *err) {
  struct tp_reader reader = tp_reader_of(bytes, length);
  *request = (struct tp_init_request){0};
  read_header(&reader, &request->type, &request->serial);
  switch (request->type) {
  case TP_INIT_HELLO: request->version = tp_read_u32(&reader); break;
  case TP_INIT_START: read_start(&reader, &request->start); break;
  case TP_INIT_ATTACH:
    request->attach.id = tp_read_u32(&reader);
    request->attach.flags = tp_read_u32(&reader);
    request->attach.offset = tp_read_u64(&reader);
    break;
  case TP_INIT_SIGNAL:
    request->signal.id = tp_read_u32(&reader);
    request->signal.signal = (int32_t)tp_read_u32(&reader);
    break;
  case TP_INIT_LIST:
  case TP_INIT_QUIESCE: break;
  case TP_INIT_FORGET: request->id = tp_read_u32(&reader); break;
  case TP_INIT_AGENT: request->user = tp_read_text(&reader, TP_INIT_NAME); break;
  case TP_INIT_CONNECT:
    request->connect.family = tp_read_u32(&reader);
    request->connect.port = tp_read_u32(&reader);
    break;
  case TP_INIT_SHUTDOWN: request->grace = tp_read_u32(&reader); break;
  default: return bad_message(err, "unknown request", request->type);
  }
  if (!tp_reader_done(&reader))
    return bad_message(err, "malformed request", request->type);
  return 0;
}

void tp_init_encode_request(struct tp_writer *writer, const struct tp_init_request *request) {
  write_header(writer, request->type, request->serial);
  switch (request->type) {
  case TP_INIT_HELLO: tp_write_u32(writer, request->version); break;
  case TP_INIT_START:
    tp_write_u32(writer, request->start.flags);
    tp_write_u32(writer, request->start.attach);
    tp_write_u32(writer, request->start.ring);
    tp_write_u16(writer, request->start.cols);
    tp_write_u16(writer, request->start.rows);
    tp_write_text(writer, request->start.key);
    tp_write_text(writer, request->start.name);
    tp_write_text(writer, request->start.user);
    tp_write_text(writer, request->start.cwd);
    tp_write_list(writer, request->start.argv);
    tp_write_list(writer, request->start.env);
    break;
  case TP_INIT_ATTACH:
    tp_write_u32(writer, request->attach.id);
    tp_write_u32(writer, request->attach.flags);
    tp_write_u64(writer, request->attach.offset);
    break;
  case TP_INIT_SIGNAL:
    tp_write_u32(writer, request->signal.id);
    tp_write_u32(writer, (uint32_t)request->signal.signal);
    break;
  case TP_INIT_FORGET: tp_write_u32(writer, request->id); break;
  case TP_INIT_AGENT: tp_write_text(writer, request->user); break;
  case TP_INIT_CONNECT:
    tp_write_u32(writer, request->connect.family);
    tp_write_u32(writer, request->connect.port);
    break;
  case TP_INIT_SHUTDOWN: tp_write_u32(writer, request->grace); break;
  }
}

static void read_process(struct tp_reader *reader, struct tp_init_process *process) {
  process->id = tp_read_u32(reader);
  process->pid = tp_read_u32(reader);
  process->flags = tp_read_u32(reader);
  process->kind = tp_read_u32(reader);
  process->code = (int32_t)tp_read_u32(reader);
  process->started = tp_read_u64(reader);
  process->wall = tp_read_u64(reader);
  process->start = tp_read_u64(reader);
  process->end = tp_read_u64(reader);
  process->dropped = tp_read_u64(reader);
  process->key = tp_read_text(reader, TP_INIT_NAME);
  process->name = tp_read_text(reader, TP_INIT_NAME);
  process->user = tp_read_text(reader, TP_INIT_NAME);
  process->cwd = tp_read_text(reader, TP_INIT_PATH);
  process->argv = tp_read_list(reader, TP_INIT_STRINGS);
}

static void write_process(struct tp_writer *writer, const struct tp_init_process *process) {
  tp_write_u32(writer, process->id);
  tp_write_u32(writer, process->pid);
  tp_write_u32(writer, process->flags);
  tp_write_u32(writer, process->kind);
  tp_write_u32(writer, (uint32_t)process->code);
  tp_write_u64(writer, process->started);
  tp_write_u64(writer, process->wall);
  tp_write_u64(writer, process->start);
  tp_write_u64(writer, process->end);
  tp_write_u64(writer, process->dropped);
  tp_write_text(writer, process->key);
  tp_write_text(writer, process->name);
  tp_write_text(writer, process->user);
  tp_write_text(writer, process->cwd);
  tp_write_list(writer, process->argv);
}

static void read_exit(struct tp_reader *reader, struct tp_init_exit *exit) {
  exit->id = tp_read_u32(reader);
  exit->kind = tp_read_u32(reader);
  exit->code = (int32_t)tp_read_u32(reader);
  exit->wall = tp_read_u64(reader);
  exit->end = tp_read_u64(reader);
  exit->dropped = tp_read_u64(reader);
  exit->cpu = tp_read_u64(reader);
  exit->memory = tp_read_u64(reader);
}

int tp_init_decode_reply(const uint8_t *bytes, size_t length, struct tp_init_reply *reply,
                         struct tp_error *err) {
  struct tp_reader reader = tp_reader_of(bytes, length);
  *reply = (struct tp_init_reply){0};
  read_header(&reader, &reply->type, &reply->serial);
  switch (reply->type) {
  case TP_INIT_WELCOME:
    reply->welcome.version = tp_read_u32(&reader);
    if (!reader.bad && reader.end - reader.at >= TP_INIT_NONCE) {
      memcpy(reply->welcome.nonce, reader.at, TP_INIT_NONCE);
      reader.at += TP_INIT_NONCE;
    } else {
      reader.bad = true;
    }
    reply->welcome.processes = tp_read_u32(&reader);
    break;
  case TP_INIT_OK:
  case TP_INIT_CONNECTED: break;
  case TP_INIT_FAILED:
    reply->failed.step = tp_read_u32(&reader);
    reply->failed.code = (int32_t)tp_read_u32(&reader);
    reply->failed.message = tp_read_text(&reader, 1024);
    break;
  case TP_INIT_STARTED:
    reply->started.id = tp_read_u32(&reader);
    reply->started.pid = tp_read_u32(&reader);
    break;
  case TP_INIT_PROCESS: read_process(&reader, &reply->process); break;
  case TP_INIT_EXIT: read_exit(&reader, &reply->exit); break;
  default: return bad_message(err, "unknown reply", reply->type);
  }
  if (!tp_reader_done(&reader))
    return bad_message(err, "malformed reply", reply->type);
  return 0;
}

void tp_init_encode_reply(struct tp_writer *writer, const struct tp_init_reply *reply) {
  write_header(writer, reply->type, reply->serial);
  switch (reply->type) {
  case TP_INIT_WELCOME:
    tp_write_u32(writer, reply->welcome.version);
    tp_write_bytes(writer, reply->welcome.nonce, TP_INIT_NONCE);
    tp_write_u32(writer, reply->welcome.processes);
    break;
  case TP_INIT_FAILED:
    tp_write_u32(writer, reply->failed.step);
    tp_write_u32(writer, (uint32_t)reply->failed.code);
    tp_write_text(writer, reply->failed.message);
    break;
  case TP_INIT_STARTED:
    tp_write_u32(writer, reply->started.id);
    tp_write_u32(writer, reply->started.pid);
    break;
  case TP_INIT_PROCESS: write_process(writer, &reply->process); break;
  case TP_INIT_EXIT:
    tp_write_u32(writer, reply->exit.id);
    tp_write_u32(writer, reply->exit.kind);
    tp_write_u32(writer, (uint32_t)reply->exit.code);
    tp_write_u64(writer, reply->exit.wall);
    tp_write_u64(writer, reply->exit.end);
    tp_write_u64(writer, reply->exit.dropped);
    tp_write_u64(writer, reply->exit.cpu);
    tp_write_u64(writer, reply->exit.memory);
    break;
  }
}
