/* tidepool-diff FROM TO: which paths differ between two snapshots: read-only subvolumes, or any two trees,
 * which are walked instead (walk.h).
 *
 * Started by the server, as root, in its mount namespace. A child of it asks the kernel for the stream
 * (BTRFS_IOC_SEND, without file data: the time it takes depends on what has changed). What reads the
 * stream and looks at the files has given up root by then: user nobody, who may read and no more, a
 * short list of system calls. On standard output, for each path that differs, and at the end:
 *   [u8 'A' added | 'C' changed | 'D' deleted][u8 kind: f d l c b p s][u16 length][u64 old size]
 *   [u64 new size] path          ...          ['E'][0][u16 length][u64 errno][u64 0] message
 * Integers are little endian. Paths come in no order. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/securebits.h>
#include <poll.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../scope.h"
#include "changes.h"
#include "walk.h"

#define NOBODY 65534
#define DEPTH 4096         /* of directories that moved */
#define MEMORY (2ull << 30) /* bytes; how much there is to remember is a sandbox's to say */

static int from_root, to_root;

/* --- the sender, root ------------------------------------------------------------------------- */

static int root_id(int fd, uint64_t *id, struct tp_error *err) {
  struct btrfs_ioctl_ino_lookup_args args = {.objectid = BTRFS_FIRST_FREE_OBJECTID};
  if (ioctl(fd, BTRFS_IOC_INO_LOOKUP, &args) < 0)
    return tp_fail(err, errno, "find subvolume");
  *id = args.treeid;
  return 0;
}

/* Ends the process; its status is the errno. */
static void send_stream(int out) {
  struct tp_error err;
  uint64_t parent = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (root_id(from_root, &parent, &err) < 0)
    _exit(err.code & 0xff);
  struct btrfs_ioctl_send_args args = {
      .send_fd = out, .parent_root = parent, .flags = BTRFS_SEND_FLAG_NO_FILE_DATA};
  _exit(ioctl(to_root, BTRFS_IOC_SEND, &args) < 0 ? errno & 0xff : 0);
}

/* --- the reader, nobody ----------------------------------------------------------------------- */

static int drop_powers(struct tp_error *err) {
  struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {0};
  data[0].permitted = data[0].effective = 1u << CAP_DAC_READ_SEARCH;
  if (prctl(PR_SET_KEEPCAPS, 1) < 0 || setgroups(0, NULL) < 0 ||
      setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0 ||
      syscall(SYS_capset, &head, data) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    return tp_fail(err, errno, "drop privileges");
  static const int calls[] = {
      SCMP_SYS(read),   SCMP_SYS(write),    SCMP_SYS(close),      SCMP_SYS(openat2),
      SCMP_SYS(fstat),  SCMP_SYS(newfstatat), SCMP_SYS(getdents64), SCMP_SYS(fcntl),
      SCMP_SYS(lseek),  SCMP_SYS(brk),      SCMP_SYS(mmap),       SCMP_SYS(munmap),
      SCMP_SYS(mremap), SCMP_SYS(wait4),    SCMP_SYS(exit_group), SCMP_SYS(rt_sigreturn),
      SCMP_SYS(madvise), SCMP_SYS(mprotect), SCMP_SYS(futex),    SCMP_SYS(poll),
      SCMP_SYS(ppoll),  SCMP_SYS(readlinkat),
      SCMP_SYS(sysinfo)}; /* of qsort: how much memory it may use */
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
  int failed = filter ? 0 : -ENOMEM;
  for (size_t i = 0; !failed && i < sizeof calls / sizeof *calls; i++)
    failed = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls[i], 0);
  if (!failed)
    failed = seccomp_load(filter);
  seccomp_release(filter);
  return failed ? tp_fail(err, -failed, "load the system call filter") : 0;
}

static int limit_memory(struct tp_error *err) {
  struct rlimit limit = {MEMORY, MEMORY};
  return setrlimit(RLIMIT_AS, &limit) < 0 ? tp_fail(err, errno, "limit memory") : 0;
}

struct found {
  char *path;
  unsigned change;
};

static struct list {
  struct found *items;
  size_t count, size;
} list;

static int remember(const char *path, unsigned change, struct tp_error *err) {
  if (list.count == list.size) {
    size_t size = list.size ? list.size * 2 : 1024;
    struct found *grown = realloc(list.items, size * sizeof *grown);
    if (!grown)
      return tp_fail(err, ENOMEM, "remember paths");
    list.items = grown;
    list.size = size;
  }
  char *copy = strdup(path);
  if (!copy)
    return tp_fail(err, ENOMEM, "remember paths");
  list.items[list.count++] = (struct found){copy, change};
  return 0;
}

static int open_below(int root, const char *path, int flags) {
  struct open_how how = {.flags = (uint64_t)(flags | O_NOFOLLOW | O_CLOEXEC),
                         .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
  return (int)syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof how);
}

static bool look(int root, const char *path, struct stat *st) {
  TP_CLOSE int fd = open_below(root, path, O_PATH);
  return fd >= 0 && fstat(fd, st) == 0;
}

/* Everything below a directory that appeared or went away as a whole, by a rename. */
static int remember_below(int root, const char *path, unsigned change, int depth,
                          struct tp_error *err) {
  struct stat st;
  if (depth > DEPTH || !look(root, path, &st) || !S_ISDIR(st.st_mode))
    return 0;
  int fd = open_below(root, path, O_RDONLY | O_DIRECTORY);
  DIR *directory = fd < 0 ? NULL : fdopendir(fd);
  if (!directory)
    return fd < 0 ? 0 : tp_fail(err, errno, "read a directory");
  int outcome = 0;
  for (struct dirent *entry; outcome == 0 && (entry = readdir(directory));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
      continue;
    size_t length = strlen(path) + strlen(entry->d_name) + 2;
    TP_FREE char *child = malloc(length);
    if (!child) {
      outcome = tp_fail(err, ENOMEM, "remember paths");
      break;
    }
    snprintf(child, length, "%s%s%s", path, *path ? "/" : "", entry->d_name);
    outcome = remember(child, change, err);
    if (outcome == 0 && entry->d_type == DT_DIR)
      outcome = remember_below(root, child, change, depth + 1, err);
  }
  closedir(directory);
  return outcome;
}

static int on_candidate(void *context, const char *path, unsigned change) {
  return remember(path, change, context);
}

/* A directory before what is in it, and all that before anything else. */
static int by_place(const void *a, const void *b) {
  const uint8_t *one = (const uint8_t *)((const struct found *)a)->path;
  const uint8_t *two = (const uint8_t *)((const struct found *)b)->path;
  for (; *one && *one == *two; one++)
    two++;
  int first = *one == '/' ? 1 : *one ? *one + 1 : 0, second = *two == '/' ? 1 : *two ? *two + 1 : 0;
  return first - second;
}

static bool is_below(const char *path, const char *above) {
  size_t length = above ? strlen(above) : 0;
  return above && strncmp(path, above, length) == 0 && (path[length] == '/' || !path[length]);
}

/* Adds what is below the candidates that came or went, each directory once: one that came is named
 * with all that came in it, and a walk from each would be the square of their depth. */
static int remember_all_below(struct tp_error *err) {
  const char *was = NULL, *is = NULL; /* the last ones that were walked */
  qsort(list.items, list.count, sizeof *list.items, by_place);
  for (size_t i = 0, count = list.count; i < count; i++) {
    const struct found found = list.items[i]; /* the list grows */
    if (found.change & TP_CHANGE_WAS && !is_below(found.path, was)) {
      was = found.path;
      if (remember_below(from_root, was, TP_CHANGE_WAS, 0, err) < 0)
        return -1;
    }
    if (found.change & TP_CHANGE_IS && !is_below(found.path, is)) {
      is = found.path;
      if (remember_below(to_root, is, TP_CHANGE_IS, 0, err) < 0)
        return -1;
    }
  }
  return 0;
}

static int by_path(const void *a, const void *b) {
  return strcmp(((const struct found *)a)->path, ((const struct found *)b)->path);
}

static char kind_of(mode_t mode) {
  switch (mode & S_IFMT) {
  case S_IFREG: return 'f';
  case S_IFDIR: return 'd';
  case S_IFLNK: return 'l';
  case S_IFCHR: return 'c';
  case S_IFBLK: return 'b';
  case S_IFIFO: return 'p';
  default: return 's';
  }
}

static void put_record(char what, char kind, uint64_t old_size, uint64_t new_size,
                       const char *text) {
  uint8_t head[20] = {(uint8_t)what, (uint8_t)kind};
  size_t length = strlen(text);
  head[2] = (uint8_t)length;
  head[3] = (uint8_t)(length >> 8);
  for (int i = 0; i < 8; i++) {
    head[4 + i] = (uint8_t)(old_size >> (8 * i));
    head[12 + i] = (uint8_t)(new_size >> (8 * i));
  }
  fwrite(head, 1, sizeof head, stdout);
  fwrite(text, 1, length, stdout);
}

static void report(const char *path, unsigned change) {
  struct stat old = {0}, new = {0};
  bool was = look(from_root, path, &old), is = look(to_root, path, &new);
  bool directories = was && is && S_ISDIR(old.st_mode) && S_ISDIR(new.st_mode);
  if (!*path || strlen(path) > UINT16_MAX)
    return;
  if (was && is && (!directories || change & TP_CHANGE_META)) {
    bool same = old.st_ino == new.st_ino && !(change & (TP_CHANGE_DATA | TP_CHANGE_META)) &&
                old.st_size == new.st_size && old.st_mtim.tv_sec == new.st_mtim.tv_sec &&
                old.st_mtim.tv_nsec == new.st_mtim.tv_nsec;
    if (!same)
      put_record('C', kind_of(new.st_mode), (uint64_t)old.st_size, (uint64_t)new.st_size, path);
  } else if (is && !was) {
    put_record('A', kind_of(new.st_mode), 0, (uint64_t)new.st_size, path);
  } else if (was && !is) {
    put_record('D', kind_of(old.st_mode), (uint64_t)old.st_size, 0, path);
  }
}

/* Waits for more of the stream, as long as somebody waits for the answer: the kernel may need hours for
 * trees that are both deep and full, and ends when we do. */
static int await(int in, struct tp_error *err) {
  struct pollfd ends[] = {{.fd = in, .events = POLLIN}, {.fd = STDOUT_FILENO}};
  while (poll(ends, 2, -1) < 0)
    if (errno != EINTR)
      return tp_fail(err, errno, "wait for the send stream");
  return ends[1].revents & (POLLHUP | POLLERR) ? tp_fail(err, EPIPE, "nobody waits for it") : 0;
}

static int read_stream(int in, struct tp_changes *changes, struct tp_error *err) {
  static uint8_t bytes[2 * TP_SEND_COMMAND];
  size_t held = 0;
  bool begun = false;
  for (;;) {
    if (await(in, err) < 0)
      return -1;
    ssize_t got = read(in, bytes + held, sizeof bytes - held);
    if (got < 0)
      return tp_fail(err, errno, "read the send stream");
    if (got == 0)
      return tp_fail(err, ECANCELED, "the send stream is cut off");
    held += (size_t)got;
    size_t at = 0;
    for (;;) {
      struct tp_send_command command = {.kind = TP_SEND_OTHER};
      ssize_t used = begun ? tp_send_next(bytes + at, held - at, &command, err)
                           : tp_send_begin(bytes + at, held - at, err);
      if (used < 0)
        return -1;
      if (used == 0)
        break;
      begun = true;
      at += (size_t)used;
      if (command.kind == TP_SEND_END)
        return 0;
      if (tp_changes_apply(changes, &command, err) < 0)
        return -1;
    }
    memmove(bytes, bytes + at, held - at);
    held -= at;
  }
}

static void report_all(void) {
  if (list.count)
    qsort(list.items, list.count, sizeof *list.items, by_path);
  for (size_t i = 0; i < list.count;) {
    unsigned change = 0;
    size_t first = i;
    for (; i < list.count && strcmp(list.items[i].path, list.items[first].path) == 0; i++)
      change |= list.items[i].change;
    report(list.items[first].path, change);
  }
}

static int compare_stream(int in, pid_t sender, struct tp_error *err) {
  if (limit_memory(err) < 0 || drop_powers(err) < 0)
    return -1;
  struct tp_changes *changes = tp_changes_new(err);
  if (!changes)
    return -1;
  int status = 0, outcome = read_stream(in, changes, err);
  if (outcome < 0 && err->code == ECANCELED && waitpid(sender, &status, 0) == sender &&
      WIFEXITED(status) && WEXITSTATUS(status))
    return tp_fail(err, WEXITSTATUS(status), "btrfs send");
  if (outcome < 0 || tp_changes_each(changes, on_candidate, err, err) < 0 || remember_all_below(err) < 0)
    return -1;
  report_all();
  return 0;
}

static int compare_subvolumes(struct tp_error *err) {
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) < 0)
    return tp_fail(err, errno, "make a pipe");
  pid_t sender = fork();
  if (sender == 0) {
    close(pipe_ends[0]);
    send_stream(pipe_ends[1]);
  }
  close(pipe_ends[1]);
  return sender < 0 ? tp_fail(err, errno, "fork") : compare_stream(pipe_ends[0], sender, err);
}

static int compare_trees(struct tp_error *err) {
  if (limit_memory(err) < 0 || drop_powers(err) < 0 ||
      tp_walk_each(from_root, to_root, on_candidate, err, err) < 0 || remember_all_below(err) < 0)
    return -1;
  report_all();
  return 0;
}

static bool on_btrfs(int fd) {
  struct statfs fs;
  return fstatfs(fd, &fs) == 0 && fs.f_type == BTRFS_SUPER_MAGIC;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: tidepool-diff FROM TO\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  struct tp_error err = {0};
  int outcome = -1;
  from_root = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  to_root = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (from_root < 0 || to_root < 0)
    tp_fail(&err, errno, "open the snapshots");
  else
    outcome = on_btrfs(from_root) ? compare_subvolumes(&err) : compare_trees(&err);
  put_record('E', 0, outcome < 0 ? (uint64_t)err.code : 0, 0, outcome < 0 ? err.message : "");
  return fflush(stdout) == 0 && outcome == 0 ? 0 : 1;
}
