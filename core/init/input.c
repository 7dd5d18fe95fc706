/* What processes read: stdin with a bounded buffer, and terminals.
 *
 * When the buffer is full the attached clients' sockets are not read, so that back pressure reaches
 * the writer. A terminal's input passes the same buffer, to its master. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <unistd.h>

#include "init.h"

#define VEOF_ROOM 1u /* for the end-of-file character of a terminal */

static int input_fd(const struct process *process) {
  return process->flags & TP_START_TTY ? process->output[0].source.fd : process->input.fd;
}

uint32_t input_room(const struct process *process) {
  uint32_t used = process->waiting_length + VEOF_ROOM;
  return used < STDIN_LIMIT ? STDIN_LIMIT - used : 0;
}

void input_interest(struct process *process) {
  if (process->flags & TP_START_TTY)
    process_interest(process);
  else if (process->waiting_length)
    source_want(&process->input, EPOLLOUT);
  else
    source_want_hangup(&process->input); /* tells when nobody reads any more */
}

void input_close(struct process *process) {
  if (process->input_closed)
    return;
  process->input_closed = true;
  source_close(&process->input);
  free(process->waiting);
  process->waiting = NULL;
  process->waiting_start = process->waiting_length = process->waiting_size = 0;
  if (!process->reaped)
    attach_input_closed(process);
}

/* How much of it the process took; closes stdin when nobody reads it. */
static uint32_t offer(struct process *process, const uint8_t *bytes, uint32_t length) {
  uint32_t done = 0;
  while (done < length) {
    ssize_t took = write(input_fd(process), bytes + done, length - done);
    if (took < 0 && errno == EINTR)
      continue;
    if (took < 0 && errno != EAGAIN)
      input_close(process);
    if (took <= 0)
      break;
    done += (uint32_t)took;
  }
  return done;
}

/* More than STDIN_LIMIT only before a memory dump, when readers don't ask input_room first. */
static bool make_room(struct process *process, uint32_t length) {
  uint32_t size = process->waiting_length + length;
  if (process->waiting && process->waiting_start + size <= process->waiting_size)
    return true;
  if (process->waiting) {
    memmove(process->waiting, process->waiting + process->waiting_start, process->waiting_length);
    process->waiting_start = 0;
  }
  if (process->waiting && size <= process->waiting_size)
    return true;
  if (size < STDIN_LIMIT)
    size = STDIN_LIMIT;
  uint8_t *bytes = realloc(process->waiting, size);
  if (!bytes)
    return false;
  process->waiting = bytes;
  process->waiting_size = size;
  return true;
}

static void keep(struct process *process, const uint8_t *bytes, uint32_t length) {
  if (!make_room(process, length)) {
    input_close(process);
    return;
  }
  memcpy(process->waiting + process->waiting_start + process->waiting_length, bytes, length);
  process->waiting_length += length;
}

void input_write(struct process *process, const uint8_t *bytes, uint32_t length) {
  if (process->input_closed || process->input_eof || input_fd(process) < 0)
    return;
  uint32_t took = process->waiting_length ? 0 : offer(process, bytes, length);
  if (process->input_closed || took == length)
    return;
  keep(process, bytes + took, length - took);
  if (!process->input_closed)
    input_interest(process);
}

void input_end(struct process *process) {
  if (process->input_closed || process->input_eof)
    return;
  if (process->flags & TP_START_TTY) {
    struct termios settings;
    if (tcgetattr(input_fd(process), &settings) == 0 && settings.c_cc[VEOF])
      input_write(process, &settings.c_cc[VEOF], 1);
    return;
  }
  process->input_eof = true;
  if (process->waiting_length == 0)
    input_close(process);
}

void input_flush(struct process *process) {
  if (process->input_closed || process->waiting_length == 0)
    return;
  uint32_t took = offer(process, process->waiting + process->waiting_start,
                        process->waiting_length);
  if (process->input_closed)
    return;
  process->waiting_start += took;
  process->waiting_length -= took;
  if (process->waiting_length == 0) {
    free(process->waiting);
    process->waiting = NULL;
    process->waiting_start = process->waiting_size = 0;
    if (process->input_eof) {
      input_close(process);
      return;
    }
  }
  if (took)
    attach_read(process);
  input_interest(process);
}

void input_ready(struct source *source, uint32_t events) {
  struct process *process =
      (struct process *)((char *)source - offsetof(struct process, input));
  if (events & EPOLLERR)
    input_close(process);
  else
    input_flush(process);
  process_pump(process);
}

int terminal_open(int *master, int *slave, uint16_t cols, uint16_t rows) {
  /* Root inside may have put anything there. Non-blocking, and only the real device will do. */
  int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  struct stat st;
  int code = 0, locked = 0, peer = -1;
  if (fd < 0)
    return errno;
  if (fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode) || major(st.st_rdev) != 5 ||
      minor(st.st_rdev) != 2)
    code = ENODEV;
  else if (ioctl(fd, TIOCSPTLCK, &locked) < 0 ||
           (peer = ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
    code = errno;
  if (code) {
    close(fd);
    return code;
  }
  struct termios settings;
  if (tcgetattr(peer, &settings) == 0) {
    settings.c_iflag |= 040000; /* IUTF8: erasing a character erases all of its bytes */
    tcsetattr(peer, TCSANOW, &settings);
  }
  struct winsize size = {.ws_col = cols ? cols : 80, .ws_row = rows ? rows : 24};
  ioctl(fd, TIOCSWINSZ, &size);
  *master = fd;
  *slave = peer;
  return 0;
}

void terminal_resize(struct process *process, uint16_t cols, uint16_t rows) {
  struct winsize size = {.ws_col = cols, .ws_row = rows};
  if (process->flags & TP_START_TTY && process->output[0].source.fd >= 0 && cols && rows)
    ioctl(process->output[0].source.fd, TIOCSWINSZ, &size);
}
