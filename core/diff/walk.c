/* Walking two trees side by side: see walk.h. Runs as nobody, who may read and no more. */
#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../scope.h"
#include "changes.h"

struct walk {
  int (*each)(void *context, const char *path, unsigned change);
  void *context;
  char path[PATH_MAX];
};

struct names {
  char **list;
  size_t count, room;
};

static void free_names(struct names *names) {
  for (size_t i = 0; i < names->count; i++)
    free(names->list[i]);
  free(names->list);
}
#define TP_NAMES __attribute__((cleanup(free_names)))

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static int open_entry(int directory, const char *name, int flags) {
  struct open_how how = {.flags = (uint64_t)(flags | O_NOFOLLOW | O_CLOEXEC),
                         .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
  return (int)syscall(SYS_openat2, directory, name, &how, sizeof how);
}

static int add_name(struct names *names, const char *name) {
  if (names->count == names->room) {
    size_t room = names->room ? names->room * 2 : 64;
    char **grown = realloc(names->list, room * sizeof *grown);
    if (!grown)
      return -1;
    names->list = grown;
    names->room = room;
  }
  char *copy = strdup(name);
  if (!copy)
    return -1;
  names->list[names->count++] = copy;
  return 0;
}

static int read_names(int directory, struct names *names, struct tp_error *err) {
  int fd = open_entry(directory, ".", O_RDONLY | O_DIRECTORY);
  DIR *stream = fd < 0 ? NULL : fdopendir(fd);
  if (!stream)
    return tp_fail(err, errno, "read a directory");
  int outcome = 0;
  for (struct dirent *entry; outcome == 0 && (entry = readdir(stream));)
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
      outcome = add_name(names, entry->d_name);
  closedir(stream);
  if (outcome < 0)
    return tp_fail(err, ENOMEM, "remember names");
  if (names->count)
    qsort(names->list, names->count, sizeof *names->list, by_name);
  return 0;
}

static bool same_time(const struct timespec *a, const struct timespec *b) {
  return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static ssize_t fill(int fd, char *bytes, size_t size) {
  size_t held = 0;
  while (held < size) {
    ssize_t got = read(fd, bytes + held, size - held);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return got < 0 ? -1 : (ssize_t)held;
    held += (size_t)got;
  }
  return (ssize_t)held;
}

/* What can't be read differs. */
static bool same_contents(int from, int to, const char *name) {
  static char ours[65536], theirs[sizeof ours];
  TP_CLOSE int a = open_entry(from, name, O_RDONLY | O_NONBLOCK);
  TP_CLOSE int b = open_entry(to, name, O_RDONLY | O_NONBLOCK);
  for (;;) {
    ssize_t got = a < 0 || b < 0 ? -1 : fill(a, ours, sizeof ours);
    if (got < 0 || fill(b, theirs, sizeof theirs) != got || memcmp(ours, theirs, (size_t)got) != 0)
      return false;
    if (got < (ssize_t)sizeof ours)
      return true;
  }
}

static bool same_link(int from, int to, const char *name) {
  char ours[PATH_MAX], theirs[PATH_MAX];
  ssize_t length = readlinkat(from, name, ours, sizeof ours);
  return length >= 0 && readlinkat(to, name, theirs, sizeof theirs) == length &&
         memcmp(ours, theirs, (size_t)length) == 0;
}

static bool same_owner(const struct stat *a, const struct stat *b) {
  return a->st_mode == b->st_mode && a->st_uid == b->st_uid && a->st_gid == b->st_gid;
}

/* Of two that are no directories. */
static bool same(int from, int to, const char *name, const struct stat *a, const struct stat *b) {
  if (a->st_ino == b->st_ino && same_time(&a->st_ctim, &b->st_ctim))
    return true;
  if (!same_owner(a, b) || a->st_size != b->st_size || a->st_rdev != b->st_rdev ||
      !same_time(&a->st_mtim, &b->st_mtim))
    return false;
  if (S_ISLNK(a->st_mode))
    return same_link(from, to, name);
  return !S_ISREG(a->st_mode) || same_contents(from, to, name);
}

static int walk_directory(struct walk *walk, int from, int to, struct tp_error *err);

static int walk_both(struct walk *walk, int from, int to, const char *name, struct tp_error *err) {
  struct stat a, b;
  if (fstatat(from, name, &a, AT_SYMLINK_NOFOLLOW) < 0 ||
      fstatat(to, name, &b, AT_SYMLINK_NOFOLLOW) < 0)
    return tp_fail(err, errno, "look at %.200s", walk->path);
  if (!S_ISDIR(a.st_mode) && !S_ISDIR(b.st_mode))
    return same(from, to, name, &a, &b) ? 0 : walk->each(walk->context, walk->path, TP_CHANGE_DATA);
  if (!S_ISDIR(a.st_mode) || !S_ISDIR(b.st_mode))
    return walk->each(walk->context, walk->path, TP_CHANGE_WAS | TP_CHANGE_IS);
  if (!same_owner(&a, &b) && walk->each(walk->context, walk->path, TP_CHANGE_META) < 0)
    return -1;
  TP_CLOSE int ours = open_entry(from, name, O_RDONLY | O_DIRECTORY);
  TP_CLOSE int theirs = open_entry(to, name, O_RDONLY | O_DIRECTORY);
  if (ours < 0 || theirs < 0)
    return tp_fail(err, errno, "open %.200s", walk->path);
  return walk_directory(walk, ours, theirs, err);
}

static int walk_directory(struct walk *walk, int from, int to, struct tp_error *err) {
  TP_NAMES struct names ours = {0}, theirs = {0};
  if (read_names(from, &ours, err) < 0 || read_names(to, &theirs, err) < 0)
    return -1;
  size_t length = strlen(walk->path);
  int outcome = 0;
  for (size_t i = 0, j = 0; outcome == 0 && (i < ours.count || j < theirs.count);) {
    int order = i == ours.count     ? 1
                : j == theirs.count ? -1
                                    : strcmp(ours.list[i], theirs.list[j]);
    const char *name = order > 0 ? theirs.list[j] : ours.list[i];
    if (length + strlen(name) + 2 > sizeof walk->path)
      return tp_fail(err, ENAMETOOLONG, "below %.100s...", walk->path);
    if (length)
      walk->path[length] = '/';
    strcpy(walk->path + length + (length > 0), name);
    outcome = order == 0 ? walk_both(walk, from, to, name, err)
                         : walk->each(walk->context, walk->path,
                                      order < 0 ? TP_CHANGE_WAS : TP_CHANGE_IS);
    walk->path[length] = '\0';
    i += order <= 0;
    j += order >= 0;
  }
  return outcome;
}

int tp_walk_each(int from, int to,
                 int (*each)(void *context, const char *path, unsigned change), void *context,
                 struct tp_error *err) {
  struct walk walk = {.each = each, .context = context};
  return walk_directory(&walk, from, to, err);
}
