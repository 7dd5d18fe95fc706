/* The messages of protocol.h as structs, and their encoders and decoders, sans-I/O.
 *
 * Both sides use these: init decodes requests and encodes replies, the server the reverse, the
 * agent and its clients likewise. Decoded strings and lists point into the message. Every decoder
 * takes bytes that an enemy may have written and says -1 for anything but a whole, exact message. */
#ifndef TP_INIT_CODEC_H
#define TP_INIT_CODEC_H

#include "../error.h"
#include "../wire.h"
#include "protocol.h"

#define TP_INIT_STRINGS 65536u /* most strings in argv or env */
#define TP_INIT_NAME 256u      /* key, name, user: most bytes */
#define TP_INIT_PATH 4096u

struct tp_init_start {
  uint32_t flags, attach, ring;
  uint16_t cols, rows;
  struct tp_bytes key, name, user, cwd;
  struct tp_list argv, env;
};

struct tp_init_request {
  uint16_t type;
  uint32_t serial;
  union {
    uint32_t version; /* HELLO */
    struct tp_init_start start;
    struct {
      uint32_t id, flags;
      uint64_t offset;
    } attach;
    struct {
      uint32_t id;
      int32_t signal;
    } signal;
    uint32_t id;          /* FORGET */
    struct tp_bytes user; /* AGENT */
    struct {
      uint32_t family, port;
    } connect;
    uint32_t grace; /* SHUTDOWN, milliseconds */
  };
};

/* One process as LIST tells it. */
struct tp_init_process {
  uint32_t id, pid, flags; /* enum tp_start_flags */
  uint32_t kind;           /* enum tp_exit_kind */
  int32_t code;
  uint64_t started;    /* realtime, ns */
  uint64_t wall;       /* ns, to the exit or to now */
  uint64_t start, end; /* offsets that the ring holds */
  uint64_t dropped;    /* bytes that left the ring before any client had taken them */
  struct tp_bytes key, name, user, cwd;
  struct tp_list argv; /* cut to its first strings when it is long */
};

struct tp_init_exit {
  uint32_t id, kind;
  int32_t code;
  uint64_t wall, end, dropped;
  uint64_t cpu;    /* ns, of the process and those it waited for */
  uint64_t memory; /* bytes, the largest resident set */
};

struct tp_init_reply {
  uint16_t type;
  uint32_t serial;
  union {
    struct {
      uint32_t version;
      uint8_t nonce[TP_INIT_NONCE];
      uint32_t processes;
    } welcome;
    struct {
      uint32_t step;
      int32_t code; /* errno */
      struct tp_bytes message;
    } failed;
    struct {
      uint32_t id, pid;
    } started;
    struct tp_init_process process;
    struct tp_init_exit exit;
  };
};

int tp_init_decode_request(const uint8_t *bytes, size_t length, struct tp_init_request *request,
                           struct tp_error *err);
int tp_init_decode_reply(const uint8_t *bytes, size_t length, struct tp_init_reply *reply,
                         struct tp_error *err);
void tp_init_encode_request(struct tp_writer *writer, const struct tp_init_request *request);
void tp_init_encode_reply(struct tp_writer *writer, const struct tp_init_reply *reply);

struct tp_agent_stat {
  uint32_t mode, uid, gid, links;
  uint64_t size, mtime, inode, blocks;
};

struct tp_agent_request {
  uint16_t op, flags;
  uint32_t serial;
  struct tp_bytes path, other; /* other: RENAME's target, SYMLINK's contents */
  uint32_t mode;
  uint64_t offset, size, mtime;
  struct tp_bytes data; /* WRITE */
};

struct tp_agent_reply {
  uint16_t op, status; /* status: 0, or an errno and then only `message` counts */
  uint32_t serial;
  struct tp_bytes message;
  struct tp_bytes path, target; /* ENTRY; STAT has the target */
  struct tp_agent_stat stat;    /* OPEN, COMMIT, ENTRY, STAT */
};

int tp_agent_decode_request(const uint8_t *bytes, size_t length, struct tp_agent_request *request,
                            struct tp_error *err);
int tp_agent_decode_reply(const uint8_t *bytes, size_t length, struct tp_agent_reply *reply,
                          struct tp_error *err);
void tp_agent_encode_request(struct tp_writer *writer, const struct tp_agent_request *request);
void tp_agent_encode_reply(struct tp_writer *writer, const struct tp_agent_reply *reply);

#endif
