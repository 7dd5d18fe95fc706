/* What a hostile program inside a sandbox might do, one deed a word. Compiled statically by the specs
 * that use it; each deed ends by itself within a minute. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0meet"};
static const socklen_t abstract_size = offsetof(struct sockaddr_un, sun_path) + 5;
static struct sockaddr_in port = {.sin_family = AF_INET};
static const key_t shared = 0x7169;

/* Wait to be met: by an abstract name, a port and a shared segment. */
static void offer(void) {
  int by_name = socket(AF_UNIX, SOCK_STREAM, 0), by_port = socket(AF_INET, SOCK_STREAM, 0);
  bind(by_name, (struct sockaddr *)&abstract, abstract_size);
  bind(by_port, (struct sockaddr *)&port, sizeof port);
  listen(by_name, 1);
  listen(by_port, 1);
  shmget(shared, 4096, IPC_CREAT | 0666);
  puts("offered");
  fflush(stdout);
  sleep(60);
}

/* Prints by which of them somebody can be met. */
static void meet(void) {
  int by_name = socket(AF_UNIX, SOCK_STREAM, 0), by_port = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(by_name, (struct sockaddr *)&abstract, abstract_size) == 0)
    puts("name");
  if (connect(by_port, (struct sockaddr *)&port, sizeof port) == 0)
    puts("port");
  if (shmget(shared, 4096, 0) >= 0)
    puts("segment");
}

/* Everything that might reach into pid 1; prints what succeeded. */
static void touch_init(void) {
  char byte[8];
  struct iovec here = {byte, 8}, there = {(void *)0x400000, 8};
  int init = (int)syscall(SYS_pidfd_open, 1, 0);
  if (ptrace(PTRACE_ATTACH, 1, 0, 0) == 0 || ptrace(PTRACE_SEIZE, 1, 0, 0) == 0)
    puts("ptrace");
  if (process_vm_readv(1, &here, 1, &there, 1, 0) >= 0)
    puts("memory");
  if (syscall(SYS_pidfd_getfd, init, 3, 0) >= 0)
    puts("descriptor");
  static const char *const files[] = {"/proc/1/mem", "/proc/1/maps", "/proc/1/environ",
                                      "/proc/1/root/etc/passwd", "/proc/1/fd/3", "/proc/1/exe"};
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
    if (open(files[i], O_RDONLY | O_NONBLOCK) >= 0)
      puts(files[i]);
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/.tidepool/init.sock"};
  int control = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(control, (struct sockaddr *)&address, sizeof address) == 0 &&
      recv(control, byte, sizeof byte, 0) > 0)
    puts("control");
  for (int number = 1; number <= 64; number++)
    kill(1, number);
}

static void bomb(void) {
  signal(SIGTERM, SIG_IGN);
  alarm(60);
  for (;;) {
    pid_t pid = fork();
    if (pid == 0)
      alarm(60);
    if (pid < 0)
      usleep(1000);
  }
}

static void terminals(void) {
  int count = 0;
  while (count < 4000 && open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0)
    count++;
  printf("%d\n", count);
}

/* As much as TCP takes in 100 connections that nobody reads. */
static void sockets(void) {
  static char bytes[100000];
  socklen_t size = sizeof port;
  long total = 0;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  port.sin_port = 0;
  bind(listener, (struct sockaddr *)&port, sizeof port);
  listen(listener, 128);
  getsockname(listener, (struct sockaddr *)&port, &size);
  for (int i = 0; i < 100; i++) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&port, sizeof port) < 0)
      break;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (ssize_t wrote; (wrote = write(fd, bytes, sizeof bytes)) > 0;)
      total += wrote;
  }
  printf("%ld\n", total);
}

/* Segments that stay when those who filled them are killed. */
static void segments(void) {
  for (int i = 0; i < 64; i++) {
    int id = shmget(IPC_PRIVATE, 4 << 20, IPC_CREAT | 0600);
    if (id < 0)
      return;
    if (fork() == 0) {
      char *at = shmat(id, NULL, 0);
      if (at != (char *)-1)
        memset(at, 1, 4 << 20);
      _exit(0);
    }
    wait(NULL);
  }
}

/* Directories in each other, by the thousand. */
static void deep(void) {
  int made = 0;
  for (; made < 10000; made++)
    if (mkdir("dddddddddd", 0755) < 0 || chdir("dddddddddd") < 0)
      break;
  printf("%d\n", made);
}

/* Crowd init's socket for 20 seconds. */
static void crowd(void) {
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/.tidepool/init.sock"};
  for (int i = 0; i < 3; i++)
    fork();
  alarm(20);
  puts("crowding");
  fflush(stdout);
  for (;;) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(fd, (struct sockaddr *)&address, sizeof address);
    close(fd);
  }
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*deed)(void);
  } deeds[] = {{"offer", offer},       {"meet", meet},         {"init", touch_init},
               {"bomb", bomb},         {"terminals", terminals}, {"sockets", sockets},
               {"segments", segments}, {"deep", deep},       {"crowd", crowd}};
  port.sin_port = htons(7169);
  port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (unsigned i = 0; argc > 1 && i < sizeof deeds / sizeof *deeds; i++)
    if (strcmp(argv[1], deeds[i].name) == 0) {
      deeds[i].deed();
      return 0;
    }
  return 2;
}
