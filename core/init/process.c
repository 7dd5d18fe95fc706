/* The table of processes: their output, their end, and how long they are remembered. */
#include "init.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define READ_MOST (256u << 10)
#define PIPE_DEFAULT (64u << 10)
#define PIPE_LARGE (256u << 10)
#define TERMINAL_TAIL (1u << 20) /* what a terminal may still hold when its process ends */
#define ROUNDS 16

static struct process *processes, **last = &processes;
static uint32_t last_id;
static unsigned count;

static void append(struct process *process) {
  *last = process;
  last = &process->next;
}

static struct tp_bytes keep_text(uint8_t **room, struct tp_bytes text) {
  struct tp_bytes kept = {*room, text.length};
  if (text.length)
    memcpy(*room, text.data, text.length);
  *room += text.length;
  return kept;
}

/* The first strings of argv, up to KEEP_ARGV bytes: for people who look, not for restarting. */
static struct tp_list cut_list(struct tp_list list) {
  struct tp_list rest = list, cut = {.bytes = list.bytes};
  struct tp_bytes item;
  while (tp_list_next(&rest, &item) && (size_t)(rest.bytes - list.bytes) <= KEEP_ARGV) {
    cut.count++;
    cut.length = (size_t)(rest.bytes - list.bytes);
  }
  return cut;
}

struct process *process_new(const struct tp_init_start *request) {
  struct tp_list argv = cut_list(request->argv);
  struct process *process = calloc(1, sizeof *process);
  uint8_t *room = malloc(request->key.length + request->name.length + request->user.length +
                         request->cwd.length + argv.length + 1);
  if (!process || !room) {
    free(process);
    free(room);
    return NULL;
  }

  process->id = ++last_id;
  process->flags = request->flags;
  process->texts = room;
  process->key = keep_text(&room, request->key);
  process->name = keep_text(&room, request->name);
  process->user = keep_text(&room, request->user);
  process->cwd = keep_text(&room, request->cwd);
  process->argv = (struct tp_list){argv.count, room, argv.length};
  memcpy(room, argv.bytes, argv.length);

  uint32_t ring = request->ring ? request->ring : RING_DEFAULT;
  tp_ring_init(&process->ring, ring < RING_LEAST ? RING_LEAST : ring > RING_MOST ? RING_MOST : ring);
  for (unsigned i = 0; i < 2; i++) {
    process->output[i].source.fd = -1;
    process->output[i].process = process;
    process->output[i].stream = i + 1;
  }
  process->input.fd = -1;
  process->slave = -1;
  process->held = TP_RING_FREE;
  process->input_closed = !(request->flags & (TP_START_STDIN | TP_START_TTY));
  process->started = clock_ns(CLOCK_REALTIME);
  process->began = clock_ns(CLOCK_MONOTONIC);
  append(process);
  count++;
  return process;
}

static void unlink_process(struct process *process) {
  struct process **at = &processes;
  while (*at != process)
    at = &(*at)->next;
  *at = process->next;
  if (last == &process->next)
    last = at;
  process->next = NULL;
}

void process_free(struct process *process) {
  unlink_process(process);
  count--;

  attach_close_all(process);
  source_close(&process->output[0].source);
  source_close(&process->output[1].source);
  source_close(&process->input);
  if (process->slave >= 0)
    close(process->slave);
  tp_ring_free(&process->ring);
  free(process->waiting);
  free(process->texts);
  process->texts = NULL;
  free_later(process);
}

struct process *process_find(uint32_t id) {
  for (struct process *process = processes; process; process = process->next)
    if (process->id == id && process->live)
      return process;
  return NULL;
}

struct process *process_by_key(struct tp_bytes key) {
  for (struct process *process = processes; key.length && process; process = process->next)
    if (process->live && process->key.length == key.length &&
        memcmp(process->key.data, key.data, key.length) == 0)
      return process;
  return NULL;
}

unsigned process_count(void) {
  return count;
}

void process_list(const struct origin *origin) {
  uint64_t now = clock_ns(CLOCK_MONOTONIC);
  for (struct process *process = processes; process; process = process->next) {
    if (!process->live)
      continue;
    struct tp_init_reply reply = {.type = TP_INIT_PROCESS};
    reply.process = (struct tp_init_process){
        .id = process->id,
        .pid = (uint32_t)process->pid,
        .flags = process->flags & (TP_START_TTY | TP_START_STDIN),
        .kind = process->kind,
        .code = process->code,
        .started = process->started,
        .wall = process->reaped ? process->wall : now - process->began,
        .start = process->ring.start,
        .end = process->ring.end,
        .dropped = process->dropped,
        .key = process->key,
        .name = process->name,
        .user = process->user,
        .cwd = process->cwd,
        .argv = process->argv,
    };
    control_reply(origin, &reply, NULL, 0);
  }
}

int process_forget(uint32_t id) {
  struct process *process = process_find(id);
  if (!process)
    return ESRCH;
  if (!process->reaped)
    return EBUSY;
  process->live = false;
  process->forgotten = true;
  if (!process->attachments) /* else when the last client has read to the end or left */
    process_free(process);
  return 0;
}

static bool held(const struct process *process) {
  return process->output[0].source.fd >= 0 || process->output[1].source.fd >= 0;
}

/* Forget the oldest ended processes beyond the limits. Closing a pipe that a descendant still holds
 * would kill it by SIGPIPE at its next word, so those are kept longer. */
static void prune(void) {
  unsigned unnamed = 0, named = 0, holding = 0;
  size_t memory = 0;
  for (struct process *process = processes; process; process = process->next) {
    if (!process->ended)
      continue;
    memory += tp_ring_memory(&process->ring);
    *(process->name.length ? &named : held(process) ? &holding : &unnamed) += 1;
  }
  struct process *next;
  for (struct process *process = processes; process; process = next) {
    next = process->next;
    if (!process->ended || process->attachments)
      continue;
    bool is_held = held(process), is_named = process->name.length > 0;
    unsigned *kind = is_named ? &named : is_held ? &holding : &unnamed;
    unsigned most = is_named ? KEEP_NAMED : is_held ? KEEP_HELD : KEEP_UNNAMED;
    size_t size = tp_ring_memory(&process->ring);
    if (*kind > most) {
      --*kind;
      memory -= size;
      process_free(process);
    } else if (memory > KEEP_MEMORY) {
      memory -= size;
      tp_ring_trim(&process->ring);
    }
  }
}

static void count_dropped(struct process *process, uint64_t before) {
  uint64_t from = before > process->delivered ? before : process->delivered;
  if (process->ring.start > from)
    process->dropped += process->ring.start - from;
}

/* No memory for the ring: the output is lost, the process is not. */
static bool discard(struct output *output) {
  static uint8_t nowhere[4096];
  struct process *process = output->process;
  ssize_t got = read(output->source.fd, nowhere, sizeof nowhere);
  if (got <= 0)
    return false;
  uint64_t before = process->ring.start;
  process->ring.end += (uint64_t)got;
  process->ring.start = process->ring.end;
  count_dropped(process, before);
  return true;
}

/* Read one stream once. True when bytes came. */
static bool read_output(struct output *output) {
  struct process *process = output->process;
  struct tp_ring *ring = &process->ring;
  struct iovec room[2];
  output->paused = false;
  if (output->source.fd < 0)
    return false;
  bool tail = process->reaped && !process->ended;
  size_t want = READ_MOST;
  if (tail && output->tail < want)
    want = output->tail;
  if (want == 0)
    return false;
  int parts = tp_ring_room(ring, output->stream, attach_keep(process), want, room);
  if (parts < 0)
    return discard(output);
  if (parts == 0) {
    output->paused = true;
    return false;
  }
  size_t size = room[0].iov_len + room[1].iov_len;
  if (ring->end + size - ring->start > ring->limit)
    attach_save(process, ring->end + size - ring->limit);

  ssize_t got = readv(output->source.fd, room, parts);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    output->tail = 0;
    return false;
  }
  if (got <= 0) { /* EIO is a terminal's end of file */
    output->tail = 0;
    source_close(&output->source);
    return false;
  }
  uint64_t before = ring->start;
  tp_ring_commit(ring, output->stream, (size_t)got);
  count_dropped(process, before);
  if (tail)
    output->tail -= (uint32_t)got;
  if ((size_t)got >= PIPE_DEFAULT && !output->enlarged && !(process->flags & TP_START_TTY)) {
    output->enlarged = true; /* it fills its pipe: fewer switches between the two of us */
    fcntl(output->source.fd, F_SETPIPE_SZ, PIPE_LARGE);
  }
  return true;
}

/* What every reader is owed ends here; descendants may go on writing into the ring. */
static void finish(struct process *process) {
  process->ended = true;
  unlink_process(process); /* remembered in the order of their ends */
  append(process);
  process->output[0].tail = process->output[1].tail = 0;
  attach_ended(process);
}

void process_pump(struct process *process) {
  bool moved = true, finished = false;
  for (int round = 0; moved && round < ROUNDS; round++) {
    moved = read_output(&process->output[0]);
    moved |= read_output(&process->output[1]);
    if (process->reaped && !process->ended && process->output[0].tail == 0 &&
        process->output[1].tail == 0) {
      finish(process);
      finished = true;
    }
    uint64_t keep = attach_keep(process);
    attach_send(process);
    moved |= attach_keep(process) > keep; /* a lossless reader has made room */
  }
  if (moved) /* others' turn; what is level-triggered comes back by itself */
    process->output[0].paused = process->output[1].paused = false;
  process_interest(process);
  if (finished)
    prune();
  if (process->forgotten && !process->attachments && process->texts)
    process_free(process);
}

void process_interest(struct process *process) {
  for (unsigned i = 0; i < 2; i++) {
    struct output *output = &process->output[i];
    bool waits = i == 0 && process->flags & TP_START_TTY && process->waiting_length;
    source_want(&output->source, (output->paused ? 0 : EPOLLIN) | (waits ? EPOLLOUT : 0));
  }
}

void process_output_ready(struct source *source, uint32_t events) {
  struct process *process = ((struct output *)source)->process;
  if (events & EPOLLOUT)
    input_flush(process);
  process_pump(process);
}

static uint32_t pipe_holds(const struct output *output) {
  int bytes = 0;
  if (output->source.fd < 0 || ioctl(output->source.fd, FIONREAD, &bytes) < 0 || bytes < 0)
    return 0;
  return (uint32_t)bytes;
}

void process_reaped(pid_t pid, int status, const struct rusage *usage) {
  struct process *process = processes;
  while (process && (process->pid != pid || process->reaped || !process->live))
    process = process->next;
  if (!process)
    return;

  process->reaped = true;
  process->kind = WIFSIGNALED(status) ? TP_EXIT_SIGNAL : TP_EXIT_CODE;
  process->code = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
  process->wall = clock_ns(CLOCK_MONOTONIC) - process->began;
  if (process->slave >= 0)
    close(process->slave);
  process->slave = -1;
  uint64_t end = process->ring.end;
  for (unsigned i = 0; i < 2; i++) {
    struct output *output = &process->output[i];
    output->tail = pipe_holds(output);
    end += output->tail;
    if (output->source.fd >= 0 && process->flags & TP_START_TTY)
      output->tail = TERMINAL_TAIL;
  }
  input_close(process);

  /* The end is known now; a slow lossless client delays its own EXIT, not the server's. */
  struct tp_init_reply event = {.type = TP_INIT_EXIT};
  event.exit = (struct tp_init_exit){
      .id = process->id,
      .kind = process->kind,
      .code = process->code,
      .wall = process->wall,
      .end = end,
      .cpu = ((uint64_t)usage->ru_utime.tv_sec + (uint64_t)usage->ru_stime.tv_sec) * 1000000000u +
             ((uint64_t)usage->ru_utime.tv_usec + (uint64_t)usage->ru_stime.tv_usec) * 1000u,
      .memory = (uint64_t)usage->ru_maxrss * 1024u,
  };
  process_pump(process);
  event.exit.dropped = process->dropped;
  control_event(&event);
}

void process_detach_all(void) {
  struct process *next;
  for (struct process *process = processes; process; process = next) {
    next = process->next;
    attach_suspend_all(process);
    process_interest(process);
    if (process->forgotten && process->texts)
      process_free(process);
  }
}

static uint64_t hold_ends; /* ms; 0: nobody is waited for */

void process_hold(void) {
  hold_ends = now_ms() + HOLD_TIMEOUT;
}

int process_hold_timeout(void) {
  uint64_t now = hold_ends ? now_ms() : 0;
  if (!hold_ends || now < hold_ends)
    return hold_ends ? (int)(hold_ends - now) : -1;
  hold_ends = 0;
  struct process *next;
  for (struct process *process = processes; process; process = next) {
    next = process->next;
    if (!process->held_readers)
      continue;
    process->held = TP_RING_FREE;
    process->held_readers = 0;
    process_pump(process);
  }
  return -1;
}
