/* The watchdog: see watchdog.h. The handler writes memory and calls _exit, nothing else. */
#include "watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../scope.h"

#define MAGIC 0x31575054u /* "TPW1" */
#define TICKS 10          /* in the time that a run may last */

struct page {
  uint32_t magic;
  _Atomic uint32_t state;
  uint32_t length;
  char text[TP_WATCHDOG_TEXT];
};

/* One process has one watchdog: signals and their timers are the process's, too. */
static struct page *page;
static _Atomic uint32_t run; /* counts up with each run */

static void on_tick(int number) {
  static uint32_t seen;
  static int ticks;
  (void)number;
  uint32_t now = atomic_load_explicit(&run, memory_order_relaxed);
  if (atomic_load_explicit(&page->state, memory_order_relaxed) != TP_WATCHDOG_RUNNING ||
      now != seen) {
    seen = now;
    ticks = 0;
    return;
  }
  if (++ticks < TICKS)
    return;
  atomic_store(&page->state, TP_WATCHDOG_OVERDUE);
  _exit(TP_WATCHDOG_EXIT);
}

static int start_ticks(double seconds, struct tp_error *err) {
  struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
  sigfillset(&action.sa_mask);
  if (sigaction(SIGPROF, &action, NULL) < 0)
    return tp_fail(err, errno, "handle ticks");
  sigset_t unblocked;
  sigemptyset(&unblocked);
  sigaddset(&unblocked, SIGPROF);
  if (sigprocmask(SIG_UNBLOCK, &unblocked, NULL) < 0)
    return tp_fail(err, errno, "unblock ticks");

  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGPROF};
  timer_t timer;
  if (timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) < 0)
    return tp_fail(err, errno, "make timer of CPU time");
  uint64_t nanos = (uint64_t)(seconds * 1e9 / TICKS);
  struct timespec tick = {(time_t)(nanos / 1000000000), (long)(nanos % 1000000000)};
  struct itimerspec each = {.it_interval = tick, .it_value = tick};
  if (timer_settime(timer, 0, &each, NULL) < 0)
    return tp_fail(err, errno, "start timer of CPU time");
  return 0;
}

int tp_watchdog_start(int fd, double seconds, struct tp_error *err) {
  if (page)
    return tp_fail(err, EALREADY, "start watchdog");
  struct stat st;
  if (fstat(fd, &st) < 0)
    return tp_fail(err, errno, "look at the watchdog's page");
  if (st.st_size < (off_t)sizeof *page)
    return tp_fail(err, EINVAL, "the watchdog's page has %lld bytes", (long long)st.st_size);
  void *map = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED)
    return tp_fail(err, errno, "map the watchdog's page");

  page = map;
  page->magic = MAGIC;
  page->length = 0;
  atomic_store(&page->state, TP_WATCHDOG_IDLE);
  if (start_ticks(seconds, err) == 0)
    return 0;
  page = NULL;
  munmap(map, sizeof *page);
  return -1;
}

void tp_watchdog_arm(const char *text, size_t length) {
  if (!page)
    return;
  if (length > TP_WATCHDOG_TEXT)
    length = TP_WATCHDOG_TEXT;
  memcpy(page->text, text, length);
  page->length = (uint32_t)length;
  atomic_fetch_add_explicit(&run, 1, memory_order_relaxed);
  atomic_store_explicit(&page->state, TP_WATCHDOG_RUNNING, memory_order_release);
}

void tp_watchdog_disarm(void) {
  if (page)
    atomic_store_explicit(&page->state, TP_WATCHDOG_IDLE, memory_order_relaxed);
}

int tp_watchdog_read(int fd, char *text, size_t *length, struct tp_error *err) {
  struct page copy;
  ssize_t got = pread(fd, &copy, sizeof copy, 0);
  if (got < 0)
    return tp_fail(err, errno, "read the watchdog's page");
  uint32_t state = atomic_load(&copy.state);
  *length = 0;
  /* All zero: the process ended before it started its watchdog. */
  if ((size_t)got != sizeof copy || (copy.magic != MAGIC && (copy.magic || state)) ||
      state > TP_WATCHDOG_OVERDUE || copy.length > TP_WATCHDOG_TEXT)
    return tp_fail(err, EBADMSG, "the watchdog's page is not one");
  if (state == TP_WATCHDOG_IDLE)
    return TP_WATCHDOG_IDLE;
  for (uint32_t i = 0; i < copy.length; i++)
    text[i] = copy.text[i] >= ' ' && copy.text[i] <= '~' ? copy.text[i] : '?';
  *length = copy.length;
  return (int)state;
}

/* Pages mapped now, 0 when /proc isn't there. */
static size_t mapped_pages(void) {
  char text[64] = "";
  TP_CLOSE int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
    return 0;
  return strtoul(text, NULL, 10);
}

/* Not by RLIMIT_DATA: it also counts code that LuaJIT makes writable for a moment, and LuaJIT panics
 * when that is refused. With address space, what fails is the allocation. */
int tp_watchdog_limit_memory(size_t bytes, struct tp_error *err) {
  rlim_t most = mapped_pages() * (rlim_t)sysconf(_SC_PAGESIZE) + bytes;
  struct rlimit limit = {most, most};
  if (setrlimit(RLIMIT_AS, &limit) < 0)
    return tp_fail(err, errno, "limit memory to %zu bytes", bytes);
  return 0;
}
