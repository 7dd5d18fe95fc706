/* Users and groups of the sandbox, from its own /etc/passwd and /etc/group.
 *
 * Runs in a child that may still share init's memory: raw system calls, no allocation. The files
 * are the sandbox's, so they may be anything: only regular files are read, without blocking, line
 * by line through a small buffer, and a line that does not fit is skipped. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"
#include "raw.h"

#define LINE 4096
#define FILE_LIMIT (8u << 20) /* bytes read of one file */

struct lines {
  int fd;
  size_t start, end, total;
  char bytes[LINE];
};

static int lines_open(struct lines *lines, const char *path) {
  struct stat st;
  *lines = (struct lines){.fd = -1};
  long fd = tp_raw(SYS_openat, AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0)
    return (int)fd;
  /* newfstatat's layout is struct stat's on both architectures. */
  long code = tp_raw(SYS_newfstatat, fd, "", &st, 0x1000 /* AT_EMPTY_PATH */);
  if (code < 0 || !S_ISREG(st.st_mode)) {
    tp_raw(SYS_close, fd);
    return code < 0 ? (int)code : -EINVAL;
  }
  lines->fd = (int)fd;
  return 0;
}

static void lines_close(struct lines *lines) {
  tp_raw(SYS_close, lines->fd);
}

/* The next line without its newline, NUL-terminated; NULL at the end. */
static char *lines_next(struct lines *lines) {
  bool skip = false;
  for (;;) {
    char *line = lines->bytes + lines->start;
    char *newline = memchr(line, '\n', lines->end - lines->start);
    if (newline) {
      *newline = 0;
      lines->start = (size_t)(newline + 1 - lines->bytes);
      if (!skip)
        return line;
      skip = false;
      continue;
    }
    if (lines->start > 0) {
      memmove(lines->bytes, line, lines->end - lines->start);
      lines->end -= lines->start;
      lines->start = 0;
    }
    if (lines->end == LINE - 1) {
      skip = true;
      lines->end = 0;
    }
    long got = lines->total < FILE_LIMIT
                   ? tp_raw(SYS_read, lines->fd, lines->bytes + lines->end, LINE - 1 - lines->end)
                   : 0;
    if (got <= 0) {
      if (lines->end == 0 || skip)
        return NULL;
      lines->bytes[lines->end] = 0; /* the last line lacks its newline */
      lines->end = 0;
      return lines->bytes;
    }
    lines->end += (size_t)got;
    lines->total += (size_t)got;
  }
}

/* Cut the line at its colons. Returns how many fields there are, at most `max`. */
static unsigned split(char *line, char **fields, unsigned max) {
  unsigned count = 0;
  while (count < max) {
    fields[count++] = line;
    line = strchr(line, ':');
    if (!line)
      break;
    *line++ = 0;
  }
  return count;
}

static bool number(const char *text, uint32_t *value) {
  uint64_t sum = 0;
  if (!*text)
    return false;
  for (; *text; text++) {
    if (*text < '0' || *text > '9')
      return false;
    sum = sum * 10 + (uint64_t)(*text - '0');
    if (sum >= UINT32_MAX) /* (uid_t)-1 means "leave it" to the kernel */
      return false;
  }
  *value = (uint32_t)sum;
  return true;
}

static void copy(char *to, size_t size, const char *from) {
  size_t length = strlen(from);
  if (length >= size)
    length = size - 1;
  memcpy(to, from, length);
  to[length] = 0;
}

/* 1 found, 0 not there, or -errno. A name wins over a number of the same spelling. */
static int find_user(const char *user, bool by_number, uint32_t wanted, struct identity *identity) {
  struct lines lines;
  int code = lines_open(&lines, "/etc/passwd");
  if (code < 0)
    return code == -ENOENT ? 0 : code;

  int found = 0;
  char *line;
  while (!found && (line = lines_next(&lines))) {
    char *field[7];
    uint32_t uid, gid;
    if (split(line, field, 7) < 7 || !number(field[2], &uid) || !number(field[3], &gid))
      continue;
    if (by_number ? uid != wanted : strcmp(field[0], user) != 0)
      continue;
    identity->uid = uid;
    identity->gid = gid;
    copy(identity->name, sizeof identity->name, field[0]);
    copy(identity->home, sizeof identity->home, field[5][0] == '/' ? field[5] : "/");
    copy(identity->shell, sizeof identity->shell, field[6][0] ? field[6] : "/bin/sh");
    found = 1;
  }
  lines_close(&lines);
  return found;
}

static bool is_member(char *members, const char *name) {
  size_t length = strlen(name);
  while (*members) {
    size_t item = strcspn(members, ",");
    if (item == length && memcmp(members, name, length) == 0)
      return true;
    members += item;
    members += *members == ',';
  }
  return false;
}

static void find_groups(struct identity *identity) {
  const unsigned most = sizeof identity->groups / sizeof *identity->groups;
  struct lines lines;
  identity->groups[identity->group_count++] = identity->gid;
  if (lines_open(&lines, "/etc/group") < 0)
    return;
  char *line;
  while (identity->group_count < most && (line = lines_next(&lines))) {
    char *field[4];
    uint32_t gid;
    if (split(line, field, 4) == 4 && number(field[2], &gid) && gid != identity->gid &&
        is_member(field[3], identity->name))
      identity->groups[identity->group_count++] = gid;
  }
  lines_close(&lines);
}

int identity_find(const char *user, struct identity *identity) {
  *identity = (struct identity){.home = "/", .shell = "/bin/sh"};
  if (!*user)
    user = "root";
  int found = find_user(user, false, 0, identity);
  uint32_t uid;
  bool numeric = number(user, &uid), root = strcmp(user, "root") == 0;
  /* A FIFO or worse in its place must not lock out those who could put it right. */
  if (found < 0 && (numeric || root))
    found = 0;
  if (found == 0 && numeric) {
    found = find_user(user, true, uid, identity);
    if (found <= 0) { /* an id of nobody's is fine, as in docker */
      identity->uid = identity->gid = uid;
      copy(identity->name, sizeof identity->name, user);
      found = 1;
    }
  }
  if (found == 0 && root) { /* an image without /etc/passwd */
    copy(identity->name, sizeof identity->name, user);
    copy(identity->home, sizeof identity->home, "/root");
    found = 1;
  }
  if (found <= 0)
    return found == 0 ? -ENOENT : found;
  find_groups(identity);
  return 0;
}
