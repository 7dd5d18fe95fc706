/* A unix stream socket that carries frames and, with them, descriptors (SCM_RIGHTS).
 *
 * Non-blocking and bounded: what the peer doesn't take waits in a queue of at most
 * TP_CHANNEL_QUEUE bytes, beyond which a send is refused. The channel owns its socket and every
 * descriptor that it received and has not handed out. Used by the server, clients, spawner, init. */
#ifndef TP_CHANNEL_H
#define TP_CHANNEL_H

#include <stdbool.h>

#include "frame.h"

#define TP_CHANNEL_QUEUE (16u << 20)

struct tp_channel_message;

struct tp_channel {
  int fd;
  bool ended; /* the peer has closed its side */
  struct tp_frame_decoder decoder;
  struct tp_channel_message *first, *last; /* to send */
  size_t queued;
  int received[TP_FRAME_FDS * 4]; /* descriptors that no frame has claimed yet */
  unsigned received_count;
};

/* Takes fd, which must be a unix stream socket, and makes it non-blocking. */
void tp_channel_init(struct tp_channel *channel, int fd);
void tp_channel_close(struct tp_channel *channel);

/* Queue one frame and write what the socket takes. The descriptors stay the caller's (duplicates
 * are queued). 0, or -1: EMSGSIZE, ENOBUFS when the queue is full, EPIPE when the peer is gone. */
int tp_channel_send(struct tp_channel *channel, const void *payload, size_t length, const int *fds,
                    unsigned count, struct tp_error *err);

/* Write more of the queue: 1 when it is empty, 0 when the socket is full, -1 on failure. */
int tp_channel_flush(struct tp_channel *channel, struct tp_error *err);

/* The next frame: 1 with *frame and its descriptors, which are the caller's from then on (count =
 * frame->fds); 0 when nothing is there yet; -1: EPIPE at the orderly end, else what broke. */
int tp_channel_receive(struct tp_channel *channel, struct tp_frame *frame, int fds[TP_FRAME_FDS],
                       struct tp_error *err);

#endif
