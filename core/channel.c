/* Channels: see channel.h.
 *
 * The kernel hands a message's descriptors over with its first byte and never joins two messages
 * that carry descriptors in one read, so that descriptors arrive in the order of the frames that
 * claim them, and no later than the frame's first byte. */
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>


#define READ_SIZE (64u << 10)

struct tp_channel_message {
  struct tp_channel_message *next;
  size_t length, sent;
  unsigned count;
  int fds[TP_FRAME_FDS];
  uint8_t bytes[]; /* header and payload */
};

static void message_free(struct tp_channel_message *message) {
  for (unsigned i = 0; i < message->count; i++)
    close(message->fds[i]);
  free(message);
}

void tp_channel_init(struct tp_channel *channel, int fd) {
  *channel = (struct tp_channel){.fd = fd};
  tp_frame_decoder_init(&channel->decoder, TP_FRAME_LIMIT);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void tp_channel_close(struct tp_channel *channel) {
  while (channel->first) {
    struct tp_channel_message *message = channel->first;
    channel->first = message->next;
    message_free(message);
  }
  channel->last = NULL;
  channel->queued = 0;
  for (unsigned i = 0; i < channel->received_count; i++)
    close(channel->received[i]);
  channel->received_count = 0;
  tp_frame_decoder_free(&channel->decoder);
  if (channel->fd >= 0)
    close(channel->fd);
  channel->fd = -1;
}

/* One sendmsg of an iovec with descriptors; >= 0 bytes sent (0: the socket is full), -1. */
static ssize_t send_some(int fd, struct iovec *iov, int parts, const int *fds, unsigned count,
                         struct tp_error *err) {
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * TP_FRAME_FDS)];
  } control;
  struct msghdr message = {.msg_iov = iov, .msg_iovlen = parts};
  if (count) {
    memset(&control, 0, sizeof control);
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
  }

  ssize_t sent;
  do
    sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
    return tp_fail(err, errno, "send");
  return sent < 0 ? 0 : sent;
}

int tp_channel_flush(struct tp_channel *channel, struct tp_error *err) {
  while (channel->first) {
    struct tp_channel_message *message = channel->first;
    struct iovec part = {message->bytes + message->sent, message->length - message->sent};
    ssize_t sent = send_some(channel->fd, &part, 1, message->fds,
                             message->sent == 0 ? message->count : 0, err);
    if (sent < 0)
      return -1;
    if (sent == 0)
      return 0;

    message->sent += (size_t)sent;
    channel->queued -= (size_t)sent;
    if (message->sent < message->length)
      continue;
    channel->first = message->next;
    if (!channel->first)
      channel->last = NULL;
    message_free(message);
  }
  return 1;
}

int tp_channel_send(struct tp_channel *channel, const void *payload, size_t length, const int *fds,
                    unsigned count, struct tp_error *err) {
  if (length > TP_FRAME_LIMIT)
    return tp_fail(err, EMSGSIZE, "message of %zu bytes, the limit is %u", length, TP_FRAME_LIMIT);
  if (count > TP_FRAME_FDS)
    return tp_fail(err, EMSGSIZE, "message with %u descriptors", count);
  if (channel->fd < 0)
    return tp_fail(err, EPIPE, "channel is closed");

  uint8_t header[TP_FRAME_HEADER];
  tp_frame_header(header, length, count);
  size_t total = sizeof header + length, sent = 0;

  /* The usual case: nothing waits and the socket has room, so nothing is copied. */
  if (!channel->first) {
    struct iovec parts[2] = {{header, sizeof header}, {(void *)payload, length}};
    ssize_t took = send_some(channel->fd, parts, length ? 2 : 1, fds, count, err);
    if (took < 0)
      return -1;
    sent = (size_t)took;
    if (sent == total)
      return 0;
  }

  if (channel->queued + total - sent > TP_CHANNEL_QUEUE)
    return tp_fail(err, ENOBUFS, "peer does not read, %zu bytes wait", channel->queued);
  struct tp_channel_message *message = malloc(sizeof *message + total);
  if (!message)
    return tp_fail(err, ENOMEM, "queue message of %zu bytes", length);
  *message = (struct tp_channel_message){.length = total, .sent = sent};
  memcpy(message->bytes, header, sizeof header);
  if (length)
    memcpy(message->bytes + sizeof header, payload, length);
  for (unsigned i = 0; i < count && sent == 0; i++) {
    message->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
    if (message->fds[i] < 0) {
      int code = errno;
      message_free(message);
      return tp_fail(err, code, "duplicate descriptor %d", fds[i]);
    }
    message->count++;
  }

  if (channel->last)
    channel->last->next = message;
  else
    channel->first = message;
  channel->last = message;
  channel->queued += total - sent;
  return 0;
}

static int keep_descriptors(struct tp_channel *channel, struct msghdr *message,
                            struct tp_error *err) {
  bool full = false;
  for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at; at = CMSG_NXTHDR(message, at)) {
    if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
      continue;
    size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(at) + i * sizeof fd, sizeof fd);
      if (channel->received_count < sizeof channel->received / sizeof *channel->received)
        channel->received[channel->received_count++] = fd;
      else
        full = true, close(fd);
    }
  }
  if (full || message->msg_flags & MSG_CTRUNC)
    return tp_fail(err, EBADMSG, "more descriptors than frames claim");
  return 0;
}

/* Read once: 1 got bytes, 0 nothing there, -1 failed. */
static int read_some(struct tp_channel *channel, struct tp_error *err) {
  uint8_t *room;
  size_t size;
  if (tp_buffer_reserve(&channel->decoder.input, READ_SIZE, &room, &size, err) < 0)
    return -1;

  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * TP_FRAME_FDS)];
  } control;
  struct iovec part = {room, size};
  struct msghdr message = {
      .msg_iov = &part,
      .msg_iovlen = 1,
      .msg_control = control.bytes,
      .msg_controllen = sizeof control.bytes,
  };
  ssize_t got;
  do
    got = recvmsg(channel->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got < 0)
    return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : tp_fail(err, errno, "receive");
  if (got == 0) {
    channel->ended = true;
    return 0;
  }
  tp_buffer_commit(&channel->decoder.input, (size_t)got);
  if (keep_descriptors(channel, &message, err) < 0)
    return -1;
  return 1;
}

int tp_channel_receive(struct tp_channel *channel, struct tp_frame *frame, int fds[TP_FRAME_FDS],
                       struct tp_error *err) {
  if (channel->fd < 0)
    return tp_fail(err, EPIPE, "channel is closed");
  for (;;) {
    int found = tp_frame_next(&channel->decoder, frame, err);
    if (found < 0)
      return -1;
    if (found > 0)
      break;
    if (channel->ended)
      return tp_fail(err, EPIPE, "peer has closed the channel");
    int got = read_some(channel, err);
    if (got < 0)
      return -1;
    if (got == 0 && !channel->ended) {
      /* Thousands of idle peers must not cost a read buffer each. */
      if (channel->decoder.input.start == channel->decoder.input.end)
        tp_frame_decoder_free(&channel->decoder);
      return 0;
    }
  }

  if (frame->fds > channel->received_count)
    return tp_fail(err, EBADMSG, "frame claims %u descriptors, %u came", frame->fds,
                   channel->received_count);
  memcpy(fds, channel->received, sizeof(int) * frame->fds);
  channel->received_count -= frame->fds;
  memmove(channel->received, channel->received + frame->fds,
          sizeof(int) * channel->received_count);
  return 1;
}
