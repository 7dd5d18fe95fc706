/* The event loop's registry: sources, deferred frees, clocks. main.c turns the wheel. */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "init.h"
#include "loop.h"

int loop_fd = -1;

#define HANGUP_ONLY 0x80000000u

static void **garbage;
static size_t garbage_count, garbage_size;

void source_init(struct source *source, int fd, void (*ready)(struct source *, uint32_t)) {
  *source = (struct source){.fd = fd, .ready = ready};
}

static void change(struct source *source, uint32_t events) {
  if (source->fd < 0 || events == source->events)
    return;
  struct epoll_event event = {.events = events & ~HANGUP_ONLY, .data.ptr = source};
  int op = !events ? EPOLL_CTL_DEL : source->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (epoll_ctl(loop_fd, op, source->fd, &event) == 0)
    source->events = events;
}

void source_want(struct source *source, uint32_t events) {
  change(source, events);
}

void source_want_hangup(struct source *source) {
  change(source, HANGUP_ONLY);
}

void source_close(struct source *source) {
  if (source->fd < 0)
    return;
  /* Explicitly: a child between clone and exec may hold the same file, which keeps it in epoll. */
  source_want(source, 0);
  close(source->fd);
  source->fd = -1;
}

void free_later(void *object) {
  if (garbage_count == garbage_size) {
    size_t size = garbage_size ? garbage_size * 2 : 16;
    void **grown = realloc(garbage, size * sizeof *grown);
    if (!grown)
      return; /* leaked, which is better than freed too early */
    garbage = grown;
    garbage_size = size;
  }
  garbage[garbage_count++] = object;
}

void loop_collect(void) {
  while (garbage_count)
    free(garbage[--garbage_count]);
}

uint64_t clock_ns(int clock) {
  struct timespec at;
  clock_gettime(clock, &at);
  return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

uint64_t now_ms(void) {
  return clock_ns(CLOCK_MONOTONIC) / 1000000u;
}
