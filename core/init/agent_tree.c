/* Trees: LIST, REMOVE and MKDIR with parents. Symlinks inside a tree are never followed.
 *
 * One descriptor and one path component at a time, so that a directory that is swapped for a link
 * in between leads nowhere. What is listed is bounded by the length of a relative path. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

struct walk {
  struct agent *agent;
  const struct tp_agent_request *request;
  char path[TP_INIT_PATH]; /* relative to where the walk began */
  int failed;              /* the first directory that could not be read; the rest is listed */
  char *where;
  size_t where_size;
};

static bool is_dots(const char *name) {
  return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

static void remember(struct walk *walk, int code) {
  if (walk->failed)
    return;
  walk->failed = code;
  if (walk->path[0])
    snprintf(walk->where, walk->where_size, "%s", walk->path);
}

static void list_directory(struct walk *walk, int fd, size_t length);

static void list_entry(struct walk *walk, int directory, const char *name, size_t length) {
  char target[TP_INIT_PATH];
  size_t size = strlen(name), begin = length ? length + 1 : 0;
  struct stat st;
  if (begin + size >= sizeof walk->path) {
    remember(walk, ENAMETOOLONG);
    return;
  }
  if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return; /* gone meanwhile */
  ssize_t linked = S_ISLNK(st.st_mode) ? readlinkat(directory, name, target, sizeof target) : 0;
  if (linked < 0)
    return;
  if (length)
    walk->path[length] = '/';
  memcpy(walk->path + begin, name, size + 1);

  struct tp_agent_reply reply = {.op = TP_AGENT_ENTRY, .serial = walk->request->serial};
  reply.path = (struct tp_bytes){(const uint8_t *)walk->path, (uint32_t)(begin + size)};
  reply.target = (struct tp_bytes){(const uint8_t *)target, (uint32_t)linked};
  agent_stat(&st, &reply.stat);
  agent_reply(walk->agent, &reply, NULL);

  if (S_ISDIR(st.st_mode) && walk->request->flags & TP_AGENT_RECURSIVE) {
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0)
      list_directory(walk, fd, begin + size);
    else if (errno != ENOENT)
      remember(walk, errno);
  }
  walk->path[length] = 0;
}

/* Takes fd over. */
static void list_directory(struct walk *walk, int fd, size_t length) {
  DIR *directory = fdopendir(fd);
  if (!directory) {
    remember(walk, errno);
    close(fd);
    return;
  }
  struct dirent *entry;
  errno = 0;
  while ((entry = readdir(directory))) {
    if (!is_dots(entry->d_name))
      list_entry(walk, dirfd(directory), entry->d_name, length);
    errno = 0;
  }
  if (errno)
    remember(walk, errno);
  closedir(directory);
}

int agent_list(struct agent *agent, const struct tp_agent_request *request, char *where,
               size_t size) {
  struct walk walk = {.agent = agent, .request = request, .where = where, .where_size = size};
  char room[AGENT_PATH];
  int fd = open(agent_path(request->path, room), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return errno;
  list_directory(&walk, fd, 0);
  return walk.failed;
}

#define DEPTH 256u /* directories open at a time */
#define NO_REPLACE 1u

struct removal {
  int top;        /* the directory that goes, open */
  unsigned moved; /* how many were too deep below and are in `top` now */
};

/* A tree may be deeper than any path and than we may have descriptors: what lies too deep comes up. */
static int bring_up(struct removal *removal, int directory, const char *name) {
  for (int i = 0; i < 100; i++) {
    char to[32];
    snprintf(to, sizeof to, ".removed-%u", removal->moved++);
    if (syscall(SYS_renameat2, directory, name, removal->top, to, NO_REPLACE) == 0)
      return 0;
    if (errno != EEXIST)
      return errno;
  }
  return EEXIST;
}

static int remove_in(struct removal *removal, int directory, const char *name, unsigned depth);

static int remove_entries(struct removal *removal, DIR *entries, unsigned depth) {
  unsigned moved;
  int code = 0;
  do {
    struct dirent *entry;
    moved = removal->moved;
    while (!code && (entry = readdir(entries)))
      if (!is_dots(entry->d_name)) {
        code = remove_in(removal, dirfd(entries), entry->d_name, depth + 1);
        if (code == ENOENT)
          code = 0;
      }
    rewinddir(entries);
  } while (!code && depth == 0 && removal->moved != moved);
  return code;
}

static int remove_in(struct removal *removal, int directory, const char *name, unsigned depth) {
  if (unlinkat(directory, name, 0) == 0)
    return 0;
  /* EISDIR, or EPERM where POSIX is older; whatever else is final. */
  if (errno != EISDIR && errno != EPERM)
    return errno;
  int code = errno;
  if (depth > DEPTH)
    return bring_up(removal, directory, name);
  int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return errno == ENOTDIR || errno == ELOOP ? code : errno;
  DIR *entries = fdopendir(fd);
  if (!entries) {
    code = errno;
    close(fd);
    return code;
  }
  if (depth == 0)
    removal->top = fd;
  code = remove_entries(removal, entries, depth);
  closedir(entries);
  if (!code && unlinkat(directory, name, AT_REMOVEDIR) < 0)
    code = errno;
  return code;
}

int agent_remove(const struct tp_agent_request *request) {
  char room[AGENT_PATH];
  agent_path(request->path, room);
  size_t length = strlen(room);
  while (length > 1 && room[length - 1] == '/')
    room[--length] = 0;
  const char *name = strrchr(room, '/') + 1;
  if (!*name)
    return EBUSY; /* the root */
  if (is_dots(name))
    return EINVAL;
  if (request->flags & TP_AGENT_RECURSIVE)
    return remove_in(&(struct removal){.top = -1}, AT_FDCWD, room, 0);
  if (unlink(room) == 0)
    return 0;
  int code = errno;
  struct stat st;
  if (lstat(room, &st) == 0 && S_ISDIR(st.st_mode))
    code = rmdir(room) < 0 ? errno : 0;
  return code;
}

static int make(const char *path, mode_t mode, bool may_exist) {
  if (mkdir(path, mode) == 0)
    return 0;
  int code = errno;
  struct stat st;
  /* A parent that may not be written but is there says EACCES or EROFS, not EEXIST. */
  if (may_exist && stat(path, &st) == 0)
    return S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
  return code;
}

int agent_mkdir(const struct tp_agent_request *request) {
  char room[AGENT_PATH];
  bool parents = request->flags & TP_AGENT_PARENTS;
  mode_t mode = request->mode == AGENT_DEFAULT_MODE ? 0755 : request->mode & 07777;
  agent_path(request->path, room);
  for (char *at = room + 1; parents && *at; at++) {
    if (*at != '/' || at[-1] == '/' || !at[1])
      continue;
    *at = 0;
    int code = make(room, 0755, true);
    *at = '/';
    if (code)
      return code;
  }
  return make(room, mode, parents);
}
