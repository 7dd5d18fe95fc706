/* Removing what a layer hides: see remove.h. */
#include "remove.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../scope.h"

static uint64_t hash(const char *bytes, size_t length) {
  uint64_t value = 14695981039346656037u; /* FNV-1a */
  for (size_t i = 0; i < length; i++)
    value = (value ^ (uint8_t)bytes[i]) * 1099511628211u;
  return value ? value : 1;
}

static bool find(const struct tp_paths *paths, uint64_t value, size_t *slot) {
  for (*slot = value & (paths->size - 1); paths->slots[*slot]; *slot = (*slot + 1) & (paths->size - 1))
    if (paths->slots[*slot] == value)
      return true;
  return false;
}

static int grow(struct tp_paths *paths, struct tp_error *err) {
  struct tp_paths larger = {.size = paths->size ? paths->size * 2 : 1024};
  larger.slots = calloc(larger.size, sizeof *larger.slots);
  if (!larger.slots)
    return tp_fail(err, ENOMEM, "remember %zu paths", larger.size);
  for (size_t i = 0, slot; i < paths->size; i++)
    if (paths->slots[i] && !find(&larger, paths->slots[i], &slot))
      larger.slots[slot] = paths->slots[i];
  larger.used = paths->used;
  free(paths->slots);
  *paths = larger;
  return 0;
}

int tp_paths_add(struct tp_paths *paths, const char *path, struct tp_error *err) {
  for (size_t length = strlen(path); length;) {
    size_t slot;
    if (paths->used * 2 >= paths->size && grow(paths, err) < 0)
      return -1;
    if (find(paths, hash(path, length), &slot))
      return 0; /* then its parents are there too */
    paths->slots[slot] = hash(path, length);
    paths->used++;
    while (length && path[--length] != '/')
      ;
  }
  return 0;
}

bool tp_paths_has(const struct tp_paths *paths, const char *path) {
  size_t slot;
  return paths && paths->size && find(paths, hash(path, strlen(path)), &slot);
}

void tp_paths_free(struct tp_paths *paths) {
  free(paths->slots);
  *paths = (struct tp_paths){0};
}

struct walk {
  const struct tp_paths *kept;
  char path[PATH_MAX + NAME_MAX + 2]; /* of what is being removed, for the set and for messages */
};

static int remove_at(struct walk *walk, int parent, const char *name, struct tp_error *err);

/* Empty an open directory; owns `fd`. The depth is bounded by PATH_MAX / 2 descriptors. */
static int empty(struct walk *walk, int fd, struct tp_error *err) {
  DIR *dir = fdopendir(fd);
  if (!dir) {
    close(fd);
    return tp_fail(err, errno, "read %s", walk->path);
  }
  size_t length = strlen(walk->path);
  int result = 0;
  struct dirent *entry;
  while (result == 0 && (errno = 0, entry = readdir(dir))) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
      continue;
    if (length + strlen(entry->d_name) + 2 > sizeof walk->path) {
      result = tp_fail(err, ENAMETOOLONG, "remove below %.100s", walk->path);
      break;
    }
    sprintf(walk->path + length, "%s%s", length ? "/" : "", entry->d_name);
    result = remove_at(walk, dirfd(dir), entry->d_name, err);
    walk->path[length] = '\0';
  }
  if (result == 0 && errno)
    result = tp_fail(err, errno, "read %s", walk->path);
  closedir(dir);
  return result;
}

static int remove_at(struct walk *walk, int parent, const char *name, struct tp_error *err) {
  bool keep = tp_paths_has(walk->kept, walk->path);
  int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    if (errno == ENOENT)
      return 0;
    if (errno != ENOTDIR && errno != ELOOP)
      return tp_fail(err, errno, "open %s", walk->path);
    if (!keep && unlinkat(parent, name, 0) < 0)
      return tp_fail(err, errno, "remove %s", walk->path);
    return 0;
  }
  if (empty(walk, fd, err) < 0)
    return -1;
  if (!keep && unlinkat(parent, name, AT_REMOVEDIR) < 0)
    return tp_fail(err, errno, "remove %s", walk->path);
  return 0;
}

int tp_remove(const char *path, const struct tp_paths *kept, struct tp_error *err) {
  struct walk walk = {.kept = kept};
  if (snprintf(walk.path, sizeof walk.path, "%s", path) >= PATH_MAX)
    return tp_fail(err, ENAMETOOLONG, "remove %.100s...", path);
  return remove_at(&walk, AT_FDCWD, path, err);
}

int tp_remove_inside(const char *path, const struct tp_paths *kept, struct tp_error *err) {
  struct walk walk = {.kept = kept};
  if (snprintf(walk.path, sizeof walk.path, "%s", path) >= PATH_MAX)
    return tp_fail(err, ENAMETOOLONG, "remove inside %.100s...", path);
  int fd = openat(AT_FDCWD, *path ? path : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return errno == ENOENT || errno == ENOTDIR || errno == ELOOP
               ? 0
               : tp_fail(err, errno, "open %s", path);
  return empty(&walk, fd, err);
}
