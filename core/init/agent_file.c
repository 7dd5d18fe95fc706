/* Writing files, whole or not at all: a temporary file beside the target, renamed on COMMIT. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

#define LINKS 40 /* the kernel's own limit */
#define NO_REPLACE 1u

/* The file that the path means: symlinks followed, so that the rename does not replace a link. */
static int resolve(char path[AGENT_PATH]) {
  char link[AGENT_PATH];
  for (int i = 0; i < LINKS; i++) {
    ssize_t length = readlink(path, link, sizeof link - 1);
    if (length < 0)
      return errno == EINVAL || errno == ENOENT ? 0 : errno;
    link[length] = 0;
    char *name = strrchr(path, '/') + 1;
    size_t before = link[0] == '/' ? 0 : (size_t)(name - path);
    if (before + (size_t)length >= AGENT_PATH)
      return ENAMETOOLONG;
    memcpy(path + before, link, (size_t)length + 1);
  }
  return ELOOP;
}

static int open_temporary(struct agent *agent) {
  static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  const char *name = strrchr(agent->target, '/') + 1;
  size_t directory = (size_t)(name - agent->target);
  if (!*name)
    return EISDIR;
  for (int i = 0; i < 100; i++) {
    uint8_t random[6];
    if (getrandom(random, sizeof random, 0) < 0)
      return errno;
    char end[7] = {0};
    for (int j = 0; j < 6; j++)
      end[j] = letters[random[j] % (sizeof letters - 1)];
    int used = snprintf(agent->temporary, sizeof agent->temporary, "%.*s.%.200s.tp%s",
                        (int)directory, agent->target, name, end);
    if (used < 0 || (size_t)used >= sizeof agent->temporary)
      return ENAMETOOLONG;
    agent->file = open(agent->temporary,
                       O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (agent->file >= 0 || errno != EEXIST)
      return agent->file < 0 ? errno : 0;
  }
  return EEXIST;
}

static int open_append(struct agent *agent, uint32_t mode) {
  struct stat st;
  const int flags = O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  agent->file = agent->exclusive ? -1 : open(agent->target, flags);
  if (agent->file < 0 && (agent->exclusive || errno == ENOENT)) {
    agent->file = open(agent->target, flags | O_CREAT | O_EXCL,
                       mode == AGENT_DEFAULT_MODE ? 0644 : mode & 07777);
    agent->created = agent->file >= 0;
  }
  if (agent->file < 0)
    return errno;
  if (fstat(agent->file, &st) < 0)
    return errno;
  if (!S_ISREG(st.st_mode))
    return EINVAL;
  agent->begin_size = (uint64_t)st.st_size;
  return 0;
}

static int begin(struct agent *agent, const struct tp_agent_request *request) {
  agent_path(request->path, agent->target);
  int code = resolve(agent->target);
  if (code)
    return code;
  if (agent->append)
    return open_append(agent, request->mode);

  struct stat st;
  bool there = lstat(agent->target, &st) == 0;
  if (there && agent->exclusive)
    return EEXIST;
  if (there && !S_ISREG(st.st_mode))
    return S_ISDIR(st.st_mode) ? EISDIR : EINVAL;
  /* A rename would also replace what its user may not write. */
  if (there && faccessat(AT_FDCWD, agent->target, W_OK, AT_EACCESS) < 0)
    return errno;
  agent->mode = request->mode != AGENT_DEFAULT_MODE ? request->mode & 07777
                : there                             ? st.st_mode & 07777
                                                    : 0644;
  code = open_temporary(agent);
  if (!code && there && geteuid() == 0 && fchown(agent->file, st.st_uid, st.st_gid) < 0)
    return errno;
  return code;
}

int agent_begin(struct agent *agent, const struct tp_agent_request *request) {
  if (agent->file >= 0)
    return EBUSY;
  agent->append = request->flags & TP_AGENT_APPEND;
  agent->exclusive = request->flags & TP_AGENT_EXCLUSIVE;
  agent->created = false;
  agent->failed = 0;
  agent->written = agent->begin_size = 0;
  agent->temporary[0] = 0;
  int code = begin(agent, request);
  if (code)
    agent_abort(agent);
  return code;
}

void agent_write(struct agent *agent, const struct tp_agent_request *request) {
  const uint8_t *at = request->data.data;
  size_t left = request->data.length;
  uint64_t offset = request->offset;
  if (agent->file < 0)
    return; /* COMMIT will say so */
  while (left && !agent->failed) {
    ssize_t wrote = agent->append ? write(agent->file, at, left)
                                  : pwrite(agent->file, at, left, (off_t)offset);
    if (wrote < 0 && errno != EINTR)
      agent->failed = errno;
    if (wrote <= 0)
      continue;
    at += wrote;
    left -= (size_t)wrote;
    offset += (uint64_t)wrote;
    agent->written += (uint64_t)wrote;
  }
}

static int commit(struct agent *agent, const struct tp_agent_request *request,
                  struct tp_agent_stat *stat) {
  struct stat st;
  if (agent->failed)
    return agent->failed;
  if (!agent->append) {
    if (request->size != UINT64_MAX && ftruncate(agent->file, (off_t)request->size) < 0)
      return errno;
    if (fchmod(agent->file, agent->mode) < 0)
      return errno;
  }
  if (request->mtime) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                {(time_t)(request->mtime / 1000000000u),
                                 (long)(request->mtime % 1000000000u)}};
    if (futimens(agent->file, times) < 0)
      return errno;
  }
  if (fstat(agent->file, &st) < 0)
    return errno;
  agent_stat(&st, stat);
  if (agent->append)
    return 0;
  if (agent->exclusive)
    return syscall(SYS_renameat2, AT_FDCWD, agent->temporary, AT_FDCWD, agent->target,
                   NO_REPLACE) < 0
               ? errno
               : 0;
  return rename(agent->temporary, agent->target) < 0 ? errno : 0;
}

int agent_commit(struct agent *agent, const struct tp_agent_request *request,
                 struct tp_agent_stat *stat) {
  if (agent->file < 0)
    return EBADF;
  int code = commit(agent, request, stat);
  if (code) {
    agent_abort(agent);
    return code;
  }
  close(agent->file);
  agent->file = -1;
  return 0;
}

void agent_abort(struct agent *agent) {
  struct stat st;
  if (agent->temporary[0])
    unlink(agent->temporary);
  else if (agent->file >= 0 && agent->created)
    unlink(agent->target);
  else if (agent->file >= 0 && agent->append && agent->written && fstat(agent->file, &st) == 0 &&
           (uint64_t)st.st_size == agent->begin_size + agent->written &&
           ftruncate(agent->file, (off_t)agent->begin_size) < 0) {
    /* Others' words in between, or no way back: what was added stays. */
  }
  if (agent->file >= 0)
    close(agent->file);
  agent->file = -1;
  agent->temporary[0] = 0;
}
