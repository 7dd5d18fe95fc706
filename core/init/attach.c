/* Attachments: clients that read a process's output and write its input, each on a socket of its
 * own.
 *
 * Output frames are sent straight out of the ring. A reader that is slow loses what the ring
 * overwrites and is told how much, in a LOST frame; a lossless one holds the ring back instead.
 * A client may send anything and go at any time: that ends its attachment, nothing else. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "attach_input.h"
#include "init.h"

#define SENDS 32 /* frames to one client before others have their turn */

struct attachment {
  struct source source; /* first member */
  struct attachment *next;
  struct process *process;
  uint32_t flags;     /* enum tp_attach_flags */
  uint64_t at, stop;  /* next offset to send; nothing is sent from `stop` on */
  uint8_t head[32];   /* of the frame on its way */
  unsigned head_length, head_sent;
  uint32_t left;      /* of its payload, still in the ring at `at` */
  uint8_t *saved;     /* ... or here, because the ring needed the room */
  uint32_t saved_at, saved_length;
  bool last;          /* the frame on its way is the last */
  bool tell_closed;   /* a STDIN_CLOSED frame is due */
  bool blocked;       /* the socket is full */
  bool gone;          /* nobody reads; only input that was sent before is still taken */
  bool said_eof;      /* needs no STDIN_CLOSED */
  bool input_done;
  struct tp_attach_parser parser;
};

static void attach_ready(struct source *source, uint32_t events);

static void attach_close(struct attachment *attachment) {
  struct process *process = attachment->process;
  for (struct attachment **at = &process->attachments; *at; at = &(*at)->next)
    if (*at == attachment) {
      *at = attachment->next;
      process->attachment_count--;
      break;
    }
  source_close(&attachment->source);
  free(attachment->saved);
  attachment->saved = NULL;
  free_later(attachment);
}

void attach_close_all(struct process *process) {
  while (process->attachments)
    attach_close(process->attachments);
}

bool attach_possible(int fd) {
  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM)
    return false;
  /* One that listens, or never was connected, would have us wait for a peer that can't come. */
  struct sockaddr_storage peer;
  size = sizeof peer;
  return getpeername(fd, (struct sockaddr *)&peer, &size) == 0;
}

int attach_open(struct process *process, int fd, uint32_t flags, uint64_t offset) {
  if (process->attachment_count >= MAX_ATTACHMENTS)
    return EUSERS;
  if (!attach_possible(fd))
    return ENOTSOCK;
  struct attachment *attachment = calloc(1, sizeof *attachment);
  if (!attachment)
    return ENOMEM;
  /* No O_NONBLOCK here: the flag would be the other holders' too. Each call says MSG_DONTWAIT. */
  source_init(&attachment->source, fd, attach_ready);
  attachment->process = process;
  attachment->flags = flags;
  attachment->at = offset < process->ring.end ? offset : process->ring.end;
  bool endless = flags & TP_ATTACH_FOLLOW && !process->ended;
  attachment->stop = endless ? UINT64_MAX : process->ring.end;
  attachment->tell_closed = flags & TP_ATTACH_INPUT && process->input_closed && !process->reaped;
  attachment->next = process->attachments;
  process->attachments = attachment;
  process->attachment_count++;
  if (flags & TP_ATTACH_LOSSLESS && process->held_readers && offset >= process->held &&
      --process->held_readers == 0)
    process->held = TP_RING_FREE;
  return 0;
}

uint64_t attach_keep(const struct process *process) {
  uint64_t keep = process->held;
  for (struct attachment *at = process->attachments; at; at = at->next)
    if (at->flags & TP_ATTACH_LOSSLESS && !at->gone && at->at < keep && at->at < at->stop)
      keep = at->at;
  return keep;
}

void attach_save(struct process *process, uint64_t offset) {
  struct attachment *next;
  for (struct attachment *at = process->attachments; at; at = next) {
    next = at->next;
    if (at->left == 0 || at->at >= offset || at->flags & TP_ATTACH_LOSSLESS)
      continue;
    struct iovec bytes[2];
    unsigned stream;
    uint8_t *saved = malloc(at->left);
    if (!saved || tp_ring_peek(&process->ring, at->at, at->left, &stream, bytes) != at->left) {
      free(saved);
      attach_close(at);
      continue;
    }
    memcpy(saved, bytes[0].iov_base, bytes[0].iov_len);
    memcpy(saved + bytes[0].iov_len, bytes[1].iov_base, bytes[1].iov_len);
    at->saved = saved;
    at->saved_at = 0;
    at->saved_length = at->left;
    at->at += at->left;
    at->left = 0;
  }
}

void attach_input_closed(struct process *process) {
  for (struct attachment *at = process->attachments; at; at = at->next)
    if (at->flags & TP_ATTACH_INPUT && !at->said_eof)
      at->tell_closed = true;
}

void attach_ended(struct process *process) {
  for (struct attachment *at = process->attachments; at; at = at->next)
    if (at->stop > process->ring.end)
      at->stop = process->ring.end;
}

static void put(uint8_t *at, uint64_t value, unsigned size) {
  for (unsigned i = 0; i < size; i++)
    at[i] = (uint8_t)(value >> 8 * i);
}

static void set_head(struct attachment *attachment, unsigned type, unsigned stream,
                     uint64_t length, uint64_t offset) {
  uint8_t *head = attachment->head;
  head[0] = (uint8_t)type;
  head[1] = (uint8_t)stream;
  head[2] = head[3] = 0;
  put(head + 4, length, 4);
  put(head + 8, offset, 8);
  attachment->head_length = TP_ATTACH_HEADER;
  attachment->head_sent = 0;
}

/* Begin the next frame, if one is due. */
static bool next_frame(struct attachment *attachment) {
  struct process *process = attachment->process;
  struct tp_ring *ring = &process->ring;
  if (attachment->tell_closed) {
    attachment->tell_closed = false;
    set_head(attachment, TP_ATTACH_STDIN_CLOSED, 0, 0, ring->end);
    return true;
  }
  if (attachment->at < ring->start && attachment->at < attachment->stop) {
    uint64_t to = ring->start < attachment->stop ? ring->start : attachment->stop;
    set_head(attachment, TP_ATTACH_LOST, 0, 8, attachment->at);
    put(attachment->head + TP_ATTACH_HEADER, to - attachment->at, 8);
    attachment->head_length += 8;
    attachment->at = to;
    return true;
  }
  if (attachment->at < attachment->stop) {
    struct iovec bytes[2];
    unsigned stream;
    uint64_t most = attachment->stop - attachment->at;
    size_t length = tp_ring_peek(ring, attachment->at,
                                 most < TP_ATTACH_LIMIT ? (size_t)most : TP_ATTACH_LIMIT, &stream,
                                 bytes);
    if (length) {
      set_head(attachment, TP_ATTACH_DATA, stream, length, attachment->at);
      attachment->left = (uint32_t)length;
      return true;
    }
    if (attachment->stop == UINT64_MAX)
      return false;
  }
  if (process->ended) {
    set_head(attachment, TP_ATTACH_EXIT, 0, 16, attachment->stop);
    put(attachment->head + TP_ATTACH_HEADER, process->kind, 4);
    put(attachment->head + TP_ATTACH_HEADER + 4, (uint32_t)process->code, 4);
    put(attachment->head + TP_ATTACH_HEADER + 8, process->wall, 8);
    attachment->head_length += 16;
  } else if (!(attachment->flags & TP_ATTACH_FOLLOW)) {
    set_head(attachment, TP_ATTACH_END, 0, 0, attachment->stop);
  } else {
    return false;
  }
  attachment->last = true;
  return true;
}

static void account(struct attachment *attachment, size_t sent) {
  size_t head = attachment->head_length - attachment->head_sent;
  if (head > sent)
    head = sent;
  attachment->head_sent += (unsigned)head;
  sent -= head;
  if (attachment->saved) {
    attachment->saved_at += (uint32_t)sent;
    if (attachment->saved_at == attachment->saved_length) {
      free(attachment->saved);
      attachment->saved = NULL;
    }
    return;
  }
  attachment->left -= (uint32_t)sent;
  attachment->at += sent;
  if (attachment->at > attachment->process->delivered)
    attachment->process->delivered = attachment->at;
}

/* Send the frame on its way, or more of it: 1 done, 0 the socket is full, -1 nobody is there. */
static int send_frame(struct attachment *attachment) {
  struct iovec parts[3] = {
      {attachment->head + attachment->head_sent, attachment->head_length - attachment->head_sent}};
  int count = 1;
  if (attachment->saved) {
    parts[count++] = (struct iovec){attachment->saved + attachment->saved_at,
                                    attachment->saved_length - attachment->saved_at};
  } else if (attachment->left) {
    unsigned stream;
    tp_ring_peek(&attachment->process->ring, attachment->at, attachment->left, &stream, parts + 1);
    count = parts[2].iov_len ? 3 : 2;
  }
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
  ssize_t sent = sendmsg(attachment->source.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0)
    return errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM ? 0 : -1;
  account(attachment, (size_t)sent);
  return attachment->head_sent == attachment->head_length && !attachment->saved &&
         attachment->left == 0;
}

static bool takes_input(const struct attachment *attachment) {
  return attachment->flags & TP_ATTACH_INPUT && !attachment->process->input_closed;
}

static bool input_waits(const struct attachment *attachment) {
  return takes_input(attachment) && input_room(attachment->process) == 0;
}

static void interest(struct attachment *attachment) {
  uint32_t events = attachment->blocked ? EPOLLOUT : 0;
  if (!attachment->input_done && !input_waits(attachment))
    events |= EPOLLIN;
  if (events)
    source_want(&attachment->source, events);
  else if (attachment->gone)
    source_want(&attachment->source, 0);
  else
    source_want_hangup(&attachment->source);
}

/* The reader has gone. What it wrote before still counts: read on to its end. */
static void lose_reader(struct attachment *attachment) {
  if (attachment->input_done || !takes_input(attachment)) {
    attach_close(attachment);
    return;
  }
  attachment->gone = true;
  attachment->blocked = false;
  free(attachment->saved);
  attachment->saved = NULL;
  attachment->left = 0;
  interest(attachment);
}

static void send_one(struct attachment *attachment) {
  attachment->blocked = false;
  for (int i = 0; i < SENDS; i++) {
    bool busy = attachment->head_sent < attachment->head_length || attachment->saved ||
                attachment->left;
    if (!busy && attachment->last) {
      attach_close(attachment);
      return;
    }
    if (!busy && !next_frame(attachment)) {
      interest(attachment);
      return;
    }
    int done = send_frame(attachment);
    if (done < 0) {
      lose_reader(attachment);
      return;
    }
    if (done == 0)
      break;
    if (attachment->last) {
      attach_close(attachment);
      return;
    }
  }
  attachment->blocked = true;
  interest(attachment);
}

void attach_send(struct process *process) {
  struct attachment *next;
  for (struct attachment *at = process->attachments; at; at = next) {
    next = at->next;
    if (!at->gone)
      send_one(at);
    else if (process->input_closed)
      attach_close(at);
  }
}

static void take_input(void *context, unsigned type, const uint8_t *bytes, size_t length) {
  struct attachment *attachment = context;
  struct process *process = attachment->process;
  if (!(attachment->flags & TP_ATTACH_INPUT))
    return;
  switch (type) {
  case TP_ATTACH_STDIN: input_write(process, bytes, (uint32_t)length); break;
  case TP_ATTACH_STDIN_EOF:
    attachment->said_eof = true;
    input_end(process);
    break;
  case TP_ATTACH_RESIZE:
    terminal_resize(process, (uint16_t)(bytes[0] | bytes[1] << 8),
                    (uint16_t)(bytes[2] | bytes[3] << 8));
    break;
  }
}

/* Read what the client sends while stdin has room. */
static void read_one(struct attachment *attachment) {
  static uint8_t bytes[STDIN_LIMIT];
  for (int i = 0; i < 4 && !attachment->input_done; i++) {
    size_t room = takes_input(attachment) ? input_room(attachment->process) : sizeof bytes;
    if (room == 0)
      break;
    ssize_t got = recv(attachment->source.fd, bytes, room, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
      break;
    if (got == 0 && !attachment->gone) {
      attachment->input_done = true;
      break;
    }
    if (got <= 0 ||
        tp_attach_parse(&attachment->parser, bytes, (size_t)got, take_input, attachment) < 0) {
      attach_close(attachment);
      return;
    }
  }
  interest(attachment);
}

/* All that the client has sent. The socket is shut: its next send fails, so that it knows what to say
 * again. */
static void drain(struct attachment *attachment) {
  uint8_t bytes[4096];
  ssize_t got;
  while ((got = recv(attachment->source.fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
    if (tp_attach_parse(&attachment->parser, bytes, (size_t)got, take_input, attachment) < 0)
      break;
}

/* Where its reader will go on: of a frame that is on its way it has nothing yet. */
static uint64_t resumes_at(const struct attachment *attachment) {
  bool busy = attachment->head_sent < attachment->head_length || attachment->saved || attachment->left;
  if (!busy || attachment->head[0] != TP_ATTACH_DATA)
    return attachment->at;
  uint64_t offset = 0;
  for (unsigned i = 0; i < 8; i++)
    offset |= (uint64_t)attachment->head[8 + i] << 8 * i;
  return offset;
}

void attach_suspend_all(struct process *process) {
  process->held = TP_RING_FREE;
  process->held_readers = 0;
  for (struct attachment *at = process->attachments; at; at = at->next) {
    shutdown(at->source.fd, SHUT_RDWR); /* others may hold it open */
    if (at->flags & TP_ATTACH_INPUT)
      drain(at);
    if (at->flags & TP_ATTACH_LOSSLESS && !at->gone && at->at < at->stop) {
      uint64_t offset = resumes_at(at);
      process->held_readers++;
      if (offset < process->held)
        process->held = offset;
    }
  }
  attach_close_all(process);
}

void attach_read(struct process *process) {
  struct attachment *next;
  for (struct attachment *at = process->attachments; at; at = next) {
    next = at->next;
    if (at->flags & TP_ATTACH_INPUT)
      read_one(at);
  }
}

static void attach_ready(struct source *source, uint32_t events) {
  struct attachment *attachment = (struct attachment *)source;
  struct process *process = attachment->process;
  if (events & EPOLLIN)
    read_one(attachment);
  else if (events & (EPOLLHUP | EPOLLERR))
    lose_reader(attachment);
  process_pump(process);
}
