/* core.stream: attached to a process, its output as frames, its input as bytes.
 *
 * A frame comes as several values, the type first, since a table a frame costs more than the frame:
 *   "data", stream (1 stdout, 2 stderr), offset, bytes
 *   "lost", offset, count          that many bytes from offset on are gone
 *   "exit", "code"|"signal", code, wall seconds, end offset      the last one
 *   "end", offset                  without follow: that was all for now; the last one
 *   "stdin_closed"                 the process reads no more
 *   nil, message, code             EAGAIN: wait for stream:number(); EPIPE: it was cut off */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../stream.h"
#include "bind.h"

#define STREAM_TYPE "tidepool.Stream"
#define DECODER_TYPE "tidepool.StreamDecoder"
#define READ_SIZE (256u << 10)
#define FIRST_READ (4u << 10) /* most processes say little */
#define OUTGOING (32u << 10)

struct stream {
  int fd;
  bool ended, failed;
  struct tp_buffer input; /* what was read of frames */
  size_t read_size;
  uint8_t *outgoing; /* the rest of an input frame that the socket took in part; OUTGOING bytes */
  size_t outgoing_start, outgoing_end;
  size_t outgoing_header; /* how much of it, from its beginning, is the frame's header */
  unsigned outgoing_type;
};

static int push_frame(lua_State *L, const struct tp_stream_frame *frame) {
  switch (frame->type) {
  case TP_ATTACH_DATA:
    lua_pushliteral(L, "data");
    lua_pushinteger(L, (lua_Integer)frame->stream);
    lua_pushnumber(L, (lua_Number)frame->offset);
    lua_pushlstring(L, (const char *)frame->bytes, frame->length);
    return 4;
  case TP_ATTACH_LOST:
    lua_pushliteral(L, "lost");
    lua_pushnumber(L, (lua_Number)frame->offset);
    lua_pushnumber(L, (lua_Number)frame->lost);
    return 3;
  case TP_ATTACH_EXIT:
    lua_pushliteral(L, "exit");
    lua_pushstring(L, frame->kind == TP_EXIT_SIGNAL ? "signal" : "code");
    lua_pushinteger(L, frame->code);
    lua_pushnumber(L, (lua_Number)frame->wall / 1e9);
    lua_pushnumber(L, (lua_Number)frame->offset);
    return 5;
  case TP_ATTACH_END:
    lua_pushliteral(L, "end");
    lua_pushnumber(L, (lua_Number)frame->offset);
    return 2;
  default: lua_pushliteral(L, "stdin_closed"); return 1;
  }
}

static int fail_code(lua_State *L, int code, const char *what) {
  struct tp_error err;
  tp_fail(&err, code, "%s", what);
  return tp_lua_fail(L, &err);
}

static struct stream *check_stream(lua_State *L) {
  return luaL_checkudata(L, 1, STREAM_TYPE);
}

/* core.stream.open(fd) -> stream; takes the descriptor over and makes it non-blocking */
static int l_open(lua_State *L) {
  int fd = tp_check_fd(L, 1);
  struct stream *stream = lua_newuserdata(L, sizeof *stream);
  memset(stream, 0, sizeof *stream);
  stream->fd = -1;
  luaL_getmetatable(L, STREAM_TYPE);
  lua_setmetatable(L, -2);
  if (lua_isuserdata(L, 1))
    *(int *)lua_touserdata(L, 1) = -1;
  stream->fd = fd;
  stream->read_size = FIRST_READ;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  return 1;
}

/* Fill the buffer until the socket is empty or a good load is there: fewer, larger frames. */
static int fill(struct stream *stream, struct tp_error *err) {
  size_t total = 0;
  while (!stream->ended && total < READ_SIZE) {
    uint8_t *room;
    size_t size;
    if (tp_buffer_reserve(&stream->input, stream->read_size, &room, &size, err) < 0)
      return -1;
    ssize_t got = read(stream->fd, room, size);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      break;
    if (got < 0 && errno != ECONNRESET)
      return tp_fail(err, errno, "read stream");
    if (got <= 0) {
      stream->ended = true;
      break;
    }
    if ((size_t)got == size)
      stream->read_size = READ_SIZE;
    tp_buffer_commit(&stream->input, (size_t)got);
    total += (size_t)got;
  }
  return 0;
}

/* stream:read() -> a frame, see above */
static int l_read(lua_State *L) {
  struct stream *stream = check_stream(L);
  struct tp_stream_frame frame;
  struct tp_error err;
  if (stream->fd < 0)
    return fail_code(L, EPIPE, "stream is closed");
  if (stream->failed)
    return fail_code(L, EBADMSG, "read stream");
  int found = tp_stream_next(&stream->input, 1, &frame, &err);
  if (found == 0) {
    if (fill(stream, &err) < 0)
      return tp_lua_fail(L, &err);
    found = tp_stream_next(&stream->input, 1, &frame, &err);
  }
  if (found < 0) {
    stream->failed = true;
    return tp_lua_fail(L, &err);
  }
  if (found == 0)
    return fail_code(L, stream->ended ? EPIPE : EAGAIN, "read stream");
  return push_frame(L, &frame);
}

/* Write what is left of the last frame: 1 all of it, 0 the socket is full, -1. */
static int flush(struct stream *stream, struct tp_error *err) {
  while (stream->outgoing_start < stream->outgoing_end) {
    ssize_t sent = send(stream->fd, stream->outgoing + stream->outgoing_start,
                        stream->outgoing_end - stream->outgoing_start,
                        MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR)
      continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return 0;
    if (sent < 0)
      return tp_fail(err, errno, "write stream");
    stream->outgoing_start += (size_t)sent;
  }
  stream->outgoing_start = stream->outgoing_end = 0;
  return 1;
}

/* Send one frame, whole; 1, 0 when the socket is full and nothing was taken, -1. A frame that the
 * socket takes in part must fit `outgoing`: large ones are offered piece by piece. */
static int send_frame(struct stream *stream, unsigned type, const void *bytes, size_t length,
                      struct tp_error *err) {
  if (stream->fd < 0)
    return tp_fail(err, EPIPE, "stream is closed");
  int empty = flush(stream, err);
  if (empty <= 0)
    return empty;
  if (!stream->outgoing && !(stream->outgoing = malloc(OUTGOING)))
    return tp_fail(err, ENOMEM, "buffer stream");
  uint8_t header[TP_ATTACH_INPUT_HEADER];
  tp_stream_input_header(header, type, length);
  struct iovec parts[2] = {{header, sizeof header}, {(void *)bytes, length}};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = length ? 2 : 1};
  ssize_t sent;
  do
    sent = sendmsg(stream->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent < 0)
    return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : tp_fail(err, errno, "write stream");
  size_t at = (size_t)sent;
  stream->outgoing_type = type;
  stream->outgoing_header = at < sizeof header ? sizeof header - at : 0;
  for (; at < sizeof header; at++)
    stream->outgoing[stream->outgoing_end++] = header[at];
  size_t from = at - sizeof header;
  if (from < length) {
    memcpy(stream->outgoing + stream->outgoing_end, (const uint8_t *)bytes + from, length - from);
    stream->outgoing_end += length - from;
  }
  return 1;
}

/* stream:write(bytes) -> how many were taken | nil, message, code (EAGAIN: none, wait for
 * writable). What was taken is on its way once stream:flush() says true. */
static int l_write(lua_State *L) {
  struct stream *stream = check_stream(L);
  size_t length, done = 0;
  const char *bytes = luaL_checklstring(L, 2, &length);
  struct tp_error err;
  while (done < length) {
    size_t part = length - done;
    if (part > OUTGOING - TP_ATTACH_INPUT_HEADER)
      part = OUTGOING - TP_ATTACH_INPUT_HEADER;
    int took = send_frame(stream, TP_ATTACH_STDIN, bytes + done, part, &err);
    if (took < 0 && done == 0)
      return tp_lua_fail(L, &err);
    if (took <= 0)
      break; /* a failure is met again by the next call */
    done += part;
  }
  if (done == 0 && length > 0)
    return fail_code(L, EAGAIN, "write stream");
  lua_pushinteger(L, (lua_Integer)done);
  return 1;
}

static int send_simple(lua_State *L, unsigned type, const void *bytes, size_t length) {
  struct tp_error err;
  int took = send_frame(check_stream(L), type, bytes, length, &err);
  if (took < 0)
    return tp_lua_fail(L, &err);
  if (took == 0)
    return fail_code(L, EAGAIN, "write stream");
  lua_pushboolean(L, 1);
  return 1;
}

/* stream:eof() -> true | nil, message, code (EAGAIN: try again) */
static int l_eof(lua_State *L) {
  return send_simple(L, TP_ATTACH_STDIN_EOF, NULL, 0);
}

/* stream:resize(cols, rows) -> true | nil, message, code (EAGAIN: try again) */
static int l_resize(lua_State *L) {
  lua_Integer cols = luaL_checkinteger(L, 2), rows = luaL_checkinteger(L, 3);
  luaL_argcheck(L, cols > 0 && cols < 65536, 2, "columns");
  luaL_argcheck(L, rows > 0 && rows < 65536, 3, "rows");
  uint8_t size[4] = {(uint8_t)cols, (uint8_t)(cols >> 8), (uint8_t)rows, (uint8_t)(rows >> 8)};
  return send_simple(L, TP_ATTACH_RESIZE, size, sizeof size);
}

/* stream:flush() -> true when all that was taken is with the socket, false | nil, message, code */
static int l_flush(lua_State *L) {
  struct stream *stream = check_stream(L);
  struct tp_error err;
  int empty = stream->fd < 0 ? tp_fail(&err, EPIPE, "stream is closed") : flush(stream, &err);
  if (empty < 0)
    return tp_lua_fail(L, &err);
  lua_pushboolean(L, empty);
  return 1;
}

/* stream:resume(other) -> true | nil, message, code
 *
 * What the socket of `other` has not taken of its last frame is sent by this one first: a new frame, of
 * the bytes that are left. A size of a terminal isn't, whoever has a new terminal tells it anew. */
static int l_resume(lua_State *L) {
  struct stream *stream = check_stream(L), *other = luaL_checkudata(L, 2, STREAM_TYPE);
  luaL_argcheck(L, stream != other, 2, "another stream");
  size_t from = other->outgoing_header > other->outgoing_start ? other->outgoing_header : other->outgoing_start;
  size_t left = other->outgoing_end > from ? other->outgoing_end - from : 0;
  bool whole = other->outgoing_start < other->outgoing_header; /* init has not seen its header */
  bool wanted = other->outgoing_type == TP_ATTACH_STDIN ? left > 0
                                                       : other->outgoing_type == TP_ATTACH_STDIN_EOF && whole;
  if (other->outgoing_start < other->outgoing_end && wanted) {
    if (!stream->outgoing && !(stream->outgoing = malloc(OUTGOING)))
      return fail_code(L, ENOMEM, "buffer stream");
    tp_stream_input_header(stream->outgoing, other->outgoing_type, left);
    memcpy(stream->outgoing + TP_ATTACH_INPUT_HEADER, other->outgoing + from, left);
    stream->outgoing_start = 0;
    stream->outgoing_end = TP_ATTACH_INPUT_HEADER + left;
    stream->outgoing_header = TP_ATTACH_INPUT_HEADER;
    stream->outgoing_type = other->outgoing_type;
  }
  other->outgoing_start = other->outgoing_end = 0;
  lua_pushboolean(L, 1);
  return 1;
}

/* stream:number() -> integer | nothing when closed */
static int l_number(lua_State *L) {
  struct stream *stream = check_stream(L);
  if (stream->fd < 0)
    return 0;
  lua_pushinteger(L, stream->fd);
  return 1;
}

/* stream:close(); closing twice is harmless. */
static int l_close(lua_State *L) {
  struct stream *stream = check_stream(L);
  if (stream->fd >= 0)
    close(stream->fd);
  stream->fd = -1;
  free(stream->outgoing);
  stream->outgoing = NULL;
  stream->outgoing_start = stream->outgoing_end = 0;
  tp_buffer_free(&stream->input);
  return 0;
}

/* core.stream.decoder() -> decoder: decoder:feed(bytes), decoder:next() -> a frame as stream:read
 * gives it; EAGAIN asks for more bytes */
static int l_decoder(lua_State *L) {
  struct tp_buffer *decoder = lua_newuserdata(L, sizeof *decoder);
  memset(decoder, 0, sizeof *decoder);
  luaL_getmetatable(L, DECODER_TYPE);
  lua_setmetatable(L, -2);
  return 1;
}

static int l_feed(lua_State *L) {
  struct tp_buffer *decoder = luaL_checkudata(L, 1, DECODER_TYPE);
  size_t length, size;
  const char *bytes = luaL_checklstring(L, 2, &length);
  uint8_t *room;
  struct tp_error err;
  if (tp_buffer_reserve(decoder, length, &room, &size, &err) < 0)
    return tp_lua_fail(L, &err);
  if (length)
    memcpy(room, bytes, length);
  tp_buffer_commit(decoder, length);
  lua_pushboolean(L, 1);
  return 1;
}

static int l_next(lua_State *L) {
  struct tp_buffer *decoder = luaL_checkudata(L, 1, DECODER_TYPE);
  struct tp_stream_frame frame;
  struct tp_error err;
  int found = tp_stream_next(decoder, 0, &frame, &err);
  if (found < 0)
    return tp_lua_fail(L, &err);
  if (found == 0)
    return fail_code(L, EAGAIN, "stream needs more bytes");
  return push_frame(L, &frame);
}

static int l_decoder_gc(lua_State *L) {
  tp_buffer_free(luaL_checkudata(L, 1, DECODER_TYPE));
  return 0;
}

int tp_open_stream(lua_State *L) {
  static const luaL_Reg stream_methods[] = {
      {"read", l_read},   {"write", l_write},   {"eof", l_eof},     {"resize", l_resize}, {"resume", l_resume},
      {"flush", l_flush}, {"number", l_number}, {"close", l_close}, {NULL, NULL}};
  static const luaL_Reg decoder_methods[] = {{"feed", l_feed}, {"next", l_next}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open", l_open}, {"decoder", l_decoder}, {NULL, NULL}};
  tp_define_class(L, STREAM_TYPE, l_close, stream_methods);
  tp_define_class(L, DECODER_TYPE, l_decoder_gc, decoder_methods);
  return tp_push_functions(L, functions);
}
