/* The protocol of init, pid 1 of a sandbox: message numbers and layouts, one version.
 *
 * Control socket (server -> init): frames of core/frame.h. A payload is
 *   [u16 type][u16 zero][u32 serial] body
 * Integers are little endian. A string is [u32 length] bytes, a list [u32 count] strings.
 * init answers each request with exactly one reply of the same serial, but for LIST, which is
 * answered by PROCESS messages and then OK. Events have serial 0 and go to every control connection
 * that has said HELLO.
 *
 * Attach socket (client <-> init): a unix stream socket that the client made and the server passed
 * on; see TP_ATTACH_*. Data does not pass the server.
 *
 * Agent socket (client <-> a child of init with a user's identity): frames of core/frame.h, see
 * TP_AGENT_*. */
#ifndef TP_INIT_PROTOCOL_H
#define TP_INIT_PROTOCOL_H

#define TP_INIT_VERSION 1
#define TP_INIT_NONCE 16

/* Where things are inside a sandbox; a read-only tmpfs that init's children can't replace. */
#define TP_INIT_DIRECTORY "/.tidepool"
#define TP_INIT_PROGRAM TP_INIT_DIRECTORY "/init"
#define TP_INIT_SOCKET TP_INIT_DIRECTORY "/init.sock"
#define TP_INIT_FILTER TP_INIT_DIRECTORY "/filter" /* struct sock_filter[], installed in children */
#define TP_INIT_NONCE_FILE TP_INIT_DIRECTORY "/nonce" /* TP_INIT_NONCE bytes, 0400 root */

enum tp_init_message {
  /* requests */
  TP_INIT_HELLO = 1,    /* u32 version -> WELCOME | FAILED */
  TP_INIT_START = 2,    /* struct below; fds: cgroup (may be left out: init's own), then attach if
                           TP_START_ATTACH -> STARTED | FAILED */
  TP_INIT_ATTACH = 3,   /* u32 id, u32 attach flags, u64 offset; fd: attach socket -> OK | FAILED */
  TP_INIT_SIGNAL = 4,   /* u32 id, i32 signal; to the main process -> OK | FAILED */
  TP_INIT_LIST = 5,     /* -> PROCESS * n, OK */
  TP_INIT_FORGET = 6,   /* u32 id of an ended process; who still reads it may finish -> OK | FAILED */
  TP_INIT_AGENT = 7,    /* string user; fds: cgroup (may be left out), agent socket -> STARTED (id 0) |
                           FAILED */
  TP_INIT_CONNECT = 8,  /* u32 family (4 or 6), u32 port on loopback -> CONNECTED + fd | FAILED */
  TP_INIT_SHUTDOWN = 9, /* u32 grace, milliseconds: TERM to all, then exit -> OK; then the end */
  TP_INIT_QUIESCE = 10, /* before a memory dump: -> OK; then every attach socket and every control
                           connection is closed. Who read an output attaches again by its offset.
                           FAILED (EBUSY) while something is being started */

  /* replies */
  TP_INIT_WELCOME = 64,   /* u32 version, 16 bytes nonce, u32 processes */
  TP_INIT_OK = 65,        /* */
  TP_INIT_FAILED = 66,    /* u32 step, i32 errno, string message */
  TP_INIT_STARTED = 67,   /* u32 id, u32 pid inside */
  TP_INIT_PROCESS = 68,   /* u32 id, u32 pid, u32 flags, u32 kind, i32 code, u64 realtime ns of the start,
                             u64 wall ns, u64 first offset in the ring, u64 end offset, u64 dropped,
                             strings key, name, user, cwd, list argv (cut to about 2 KiB). dropped:
                             bytes that left the ring before any client had taken them */
  TP_INIT_CONNECTED = 69, /* fd: the connected socket */

  /* events */
  TP_INIT_EXIT = 128, /* u32 id, u32 kind, i32 code, u64 wall ns, u64 end offset, u64 dropped, u64 CPU ns
                         and u64 peak bytes of the main process and those it waited for. Sent when it
                         is reaped: attached clients get theirs when they have read to the end */
};

/* START body: u32 flags, u32 attach flags, u32 ring bytes, u16 cols, u16 rows,
 * string key, string name, string user, string cwd, list argv, list env ("K=V").
 * `key` identifies a request over a lost connection, "" for none: a START with the key of a process
 * that is there starts nothing and answers STARTED with that process's id. */
enum tp_start_flags {
  TP_START_TTY = 1,    /* a terminal of its own instead of pipes */
  TP_START_STDIN = 2,  /* keep stdin open for attached writers, else /dev/null (no tty) */
  TP_START_ATTACH = 4, /* the second descriptor is an attach socket, from offset 0 */
};

enum tp_attach_flags {
  TP_ATTACH_INPUT = 1,    /* this client's STDIN frames are taken */
  TP_ATTACH_LOSSLESS = 2, /* the ring waits for this reader instead of dropping */
  TP_ATTACH_FOLLOW = 4,   /* stay until the process ends; else END after what is there */
};

/* FAILED steps: where starting a process stopped. */
enum tp_failed_step {
  TP_STEP_REQUEST = 0, /* malformed or refused request */
  TP_STEP_USER = 1,    /* no such user (ENOENT) or identity refused */
  TP_STEP_CWD = 2,     /* chdir */
  TP_STEP_EXEC = 3,    /* execve: ENOENT, EACCES, ENOEXEC ... */
  TP_STEP_SPAWN = 4,   /* clone, cgroup, filter, terminal */
};

enum tp_exit_kind {
  TP_EXIT_RUNNING = 0,
  TP_EXIT_CODE = 1,   /* code is the exit status */
  TP_EXIT_SIGNAL = 2, /* code is the signal */
};

/* Attach frames, init -> client: [u8 type][u8 stream][u16 zero][u32 length][u64 offset] payload.
 * length <= TP_ATTACH_LIMIT. offset counts the process's output bytes, all streams together. */
#define TP_ATTACH_HEADER 16
#define TP_ATTACH_LIMIT (64u << 10)
enum tp_attach_output {
  TP_ATTACH_DATA = 1,         /* stream 1 stdout (and a terminal's), 2 stderr */
  TP_ATTACH_LOST = 2,         /* u64: bytes from offset on that are gone */
  TP_ATTACH_EXIT = 3,         /* u32 kind, i32 code, u64 wall ns; offset: the end. Then EOF */
  TP_ATTACH_END = 4,          /* no follow: all that was there has been sent. Then EOF */
  TP_ATTACH_STDIN_CLOSED = 5, /* the process does not read stdin any more */
};

/* Attach frames, client -> init: [u8 type][u8 zero][u16 zero][u32 length] payload. */
#define TP_ATTACH_INPUT_HEADER 8
enum tp_attach_input {
  TP_ATTACH_STDIN = 1,     /* bytes */
  TP_ATTACH_STDIN_EOF = 2, /* a terminal gets its VEOF character */
  TP_ATTACH_RESIZE = 3,    /* u16 cols, u16 rows */
};

/* Agent frames: request  [u16 op][u16 flags][u32 serial] body
 *               reply    [u16 op][u16 status][u32 serial] body; status 0, or an errno with a string
 *                        message as its body. One reply a request, but LIST (ENTRY replies with
 *                        status 0, then DONE) and WRITE (none; its failure is told by COMMIT).
 * A stat is: u32 mode, u32 uid, u32 gid, u32 links, u64 size, u64 mtime ns, u64 inode, u64 512-byte blocks. */
enum tp_agent_op {
  TP_AGENT_OPEN = 1,     /* string path -> stat, fd: regular files only, read-only */
  TP_AGENT_BEGIN = 2,    /* string path, u32 mode; flags below -> ok. One at a time */
  TP_AGENT_WRITE = 3,    /* u64 offset, then the bytes (append: offset is ignored); no reply */
  TP_AGENT_COMMIT = 4,   /* u64 size (~0: as written), u64 mtime ns (0: now) -> stat */
  TP_AGENT_ABORT = 5,    /* -> ok; what BEGIN made is gone */
  TP_AGENT_LIST = 6,     /* string path; TP_AGENT_RECURSIVE -> ENTRY..., DONE */
  TP_AGENT_ENTRY = 7,    /* string relative path, string link target ("" if none), stat */
  TP_AGENT_DONE = 8,     /* */
  TP_AGENT_STAT = 9,     /* string path; TP_AGENT_FOLLOW -> string link target, stat */
  TP_AGENT_MKDIR = 10,   /* string path, u32 mode; TP_AGENT_PARENTS -> ok */
  TP_AGENT_REMOVE = 11,  /* string path; TP_AGENT_RECURSIVE -> ok */
  TP_AGENT_RENAME = 12,  /* string from, string to -> ok */
  TP_AGENT_CHMOD = 13,   /* string path, u32 mode -> ok */
  TP_AGENT_SYMLINK = 14, /* string target, string path -> ok */
  TP_AGENT_TIMES = 15,   /* string path, u64 mtime ns -> ok */
};

enum tp_agent_flags {
  TP_AGENT_RECURSIVE = 1,
  TP_AGENT_FOLLOW = 2,
  TP_AGENT_PARENTS = 4,
  TP_AGENT_APPEND = 8,     /* BEGIN: add to the end of what is there */
  TP_AGENT_EXCLUSIVE = 16, /* BEGIN: EEXIST if it is there */
};

#endif
