/* What the files of init share: its event sources, processes, attachments and control connections.
 *
 * init is pid 1 of a sandbox: one thread, one epoll loop, nothing that may block. Everything that a
 * user can influence (paths, programs, users) is touched by children, never by init itself. Objects
 * that go while events are pending are freed by the loop at the end of its round. */
#ifndef TP_INIT_H
#define TP_INIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "../channel.h"
#include "codec.h"
#include "ring.h"

#define MAX_CONTROLS 8u
#define MAX_PROCESSES 1024u
#define MAX_ATTACHMENTS 64u /* of one process */
#define KEEP_UNNAMED 64u    /* ended processes kept for `logs` */
#define KEEP_NAMED 256u
#define KEEP_HELD 128u         /* ended unnamed ones whose pipes a descendant still holds */
#define KEEP_MEMORY (16u << 20) /* rings of ended processes, together */
#define KEEP_ARGV (2u << 10) /* a LIST of all fits a channel's queue */
#define RING_DEFAULT (256u << 10)
#define RING_LEAST (4u << 10)
#define RING_MOST (64u << 20)
#define STDIN_LIMIT (64u << 10)
#define START_TIMEOUT 10000 /* ms */
#define CONNECT_TIMEOUT 1000
#define HOLD_TIMEOUT 10000 /* until a lossless reader is back after a memory dump */
#define ENV_EXTRA 8 /* variables that a child adds to what it was given */

/* Loop: loop.c */

struct source {
  int fd; /* -1: none; closed by source_close */
  uint32_t events;
  void (*ready)(struct source *source, uint32_t events);
};

void source_init(struct source *source, int fd, void (*ready)(struct source *, uint32_t));
/* Wait for these events. With none the source leaves epoll, which would report a hangup for ever. */
void source_want(struct source *source, uint32_t events);
/* Wait for a hangup or an error alone. */
void source_want_hangup(struct source *source);
void source_close(struct source *source);
/* free() once no event of this round can name it. */
void free_later(void *object);

uint64_t now_ms(void);
uint64_t clock_ns(int clock);

/* Control connections: control.c */

struct control;
/* Whom to answer; forgotten when the connection goes. */
struct origin {
  struct control *control;
  uint32_t serial;
};

int control_open(int listener);
void control_reply(const struct origin *origin, const struct tp_init_reply *reply, const int *fds,
                   unsigned count);
void control_ok(const struct origin *origin);
void control_fail(const struct origin *origin, unsigned step, int code, const char *message);
/* An event to every connection that has said HELLO. */
void control_event(const struct tp_init_reply *event);
void control_flush_all(void);

/* Children: start.c makes them, child.c runs in them. */

struct child {
  /* Filled by init before the clone; the child reads it in init's memory. */
  int status; /* write end: struct child_failure if something fails, end of file on exec */
  int in, out, err, terminal; /* terminal: the slave, or -1 */
  const char *user, *cwd;     /* cwd "": the user's home */
  char **argv, **envp;        /* envp has ENV_EXTRA free places */
  unsigned env_count;
  bool tty;
  const void *filter;
  unsigned short filter_length; /* instructions */
  struct rlimit files;
};

struct child_failure {
  uint32_t step;
  int32_t code;
};

int child_exec(void *child); /* entry, on a stack of its own */
/* Take on the user's identity, filter and capabilities without exec; for the agent. 0 or -1. */
int child_become(struct child *child, struct child_failure *failure);

struct identity {
  uint32_t uid, gid;
  uint32_t groups[64];
  unsigned group_count;
  char name[64], home[256], shell[128];
};
int identity_find(const char *user, struct identity *identity); /* 0 or -errno; raw calls only */

int start_init(void);
void start_process(const struct origin *origin, const struct tp_init_start *request, int cgroup,
                   int attach);
void start_agent(const struct origin *origin, struct tp_bytes user, int cgroup, int socket);
void start_forget_control(const struct control *control);
/* The child has ended: settle its start now, if that has not happened yet. */
void start_settle(pid_t pid);
bool start_pending(void); /* something is between its clone and its exec */
int start_timeout(void); /* ms until the next deadline, -1: none; enforces those that passed */

/* Processes: process.c */

struct attachment;

struct output {
  struct source source; /* first member */
  struct process *process;
  unsigned stream;
  bool paused;   /* the ring waits for a lossless reader */
  bool enlarged; /* the pipe has got its larger size */
  uint32_t tail; /* bytes that were in the pipe when the process ended and belong before EXIT */
};

struct process {
  struct process *next; /* those that run by id, then those that have ended in that order */
  uint32_t id;
  pid_t pid;
  uint32_t flags; /* enum tp_start_flags */
  bool live;      /* exec succeeded; before that nobody sees it */
  bool forgotten; /* ... any more; here for the clients that still read */
  bool reaped;    /* the main process is gone */
  bool ended;     /* ... and its output has been drained: EXIT may be sent */
  uint32_t kind;
  int32_t code;
  uint64_t started, began, wall;
  uint64_t delivered; /* highest offset that any client has taken */
  uint64_t dropped;
  struct output output[2]; /* stdout or the terminal's master; stderr */
  struct source input;     /* stdin's write end; a terminal's input goes through output[0] */
  int slave;               /* held open while the main process lives, so that the master has no EIO */
  uint8_t *waiting;        /* stdin bytes that the process has not taken */
  uint32_t waiting_start, waiting_length, waiting_size;
  bool input_eof, input_closed;
  struct tp_ring ring;
  struct attachment *attachments;
  unsigned attachment_count;
  uint64_t held;         /* from here on the ring waits for lossless readers to come back, or TP_RING_FREE */
  unsigned held_readers; /* ... so many */
  struct tp_bytes key, name, user, cwd;
  struct tp_list argv;
  uint8_t *texts; /* what those point to */
};

struct process *process_new(const struct tp_init_start *request);
void process_free(struct process *process); /* never was live, or forgotten */
struct process *process_find(uint32_t id);
struct process *process_by_key(struct tp_bytes key);
unsigned process_count(void);
void process_list(const struct origin *origin);
int process_forget(uint32_t id); /* 0 or an errno */
/* Every attach socket is closed; lossless readers have until process_hold runs out to come back. */
void process_detach_all(void);
void process_hold(void);        /* the time begins in which they may */
int process_hold_timeout(void); /* ms to the next call, -1: none is needed */
void process_reaped(pid_t pid, int status, const struct rusage *usage);
/* Move output along: pipes to ring to clients, as far as it goes without waiting. */
void process_pump(struct process *process);
void process_interest(struct process *process); /* what to wait for, after a change */
void process_output_ready(struct source *source, uint32_t events);

/* Stdin and terminals: input.c */

uint32_t input_room(const struct process *process);
void input_interest(struct process *process); /* what to wait for */
void input_write(struct process *process, const uint8_t *bytes, uint32_t length);
void input_end(struct process *process);
void input_flush(struct process *process);
void input_close(struct process *process); /* the process will read no more */
void input_ready(struct source *source, uint32_t events);
int terminal_open(int *master, int *slave, uint16_t cols, uint16_t rows); /* 0 or an errno */
void terminal_resize(struct process *process, uint16_t cols, uint16_t rows);

/* Attachments: attach.c */

bool attach_possible(int fd); /* it is a stream socket with a peer */
int attach_open(struct process *process, int fd, uint32_t flags, uint64_t offset); /* 0 or errno */
void attach_send(struct process *process);     /* as much as each socket takes */
void attach_read(struct process *process);     /* after stdin has got room again */
uint64_t attach_keep(const struct process *process); /* where the slowest lossless reader is */
/* Bytes before `offset` are about to be overwritten: save those in the middle of a frame. */
void attach_save(struct process *process, uint64_t offset);
void attach_input_closed(struct process *process);
void attach_ended(struct process *process);
void attach_close_all(struct process *process);
/* The same before a memory dump: what clients have sent is taken first, and nothing more is. */
void attach_suspend_all(struct process *process);

/* Others */

void connect_start(const struct origin *origin, uint32_t family, uint32_t port);
void connect_forget_control(const struct control *control);
int connect_timeout(void);
bool connect_pending(void);

void reap(void);
void shutdown_start(uint32_t grace);
bool shutting_down(void);

int agent_cut_capabilities(void);
_Noreturn void agent_run(int socket); /* agent.c, in the child */

extern uint8_t init_nonce[TP_INIT_NONCE];

#endif
