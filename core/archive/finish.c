/* What every image must have: see finish.h. */
#include "finish.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../scope.h"
#include "remove.h"

#define AGENT 1000
#define FILE_LIMIT (1 << 20) /* bytes of an account file that we take */

/* sudo keeps what tells programs of the sandbox's own certificate authority, those with a bundle
 * of their own above all: trust_environment in lua/tidepool/server/container.lua. */
static const char sudoers[] =
    "Defaults env_keep += \"AWS_CA_BUNDLE CARGO_HTTP_CAINFO CURL_CA_BUNDLE DENO_CERT "
    "GIT_SSL_CAINFO NODE_EXTRA_CA_CERTS PIP_CERT REQUESTS_CA_BUNDLE SSL_CERT_FILE\"\n"
    "agent ALL=(ALL:ALL) NOPASSWD:ALL\n";

/* A real directory at `path`: a link or file that is in its place goes. */
static int make_directory(const char *path, mode_t mode, struct tp_error *err) {
  struct stat st;
  if (lstat(path, &st) == 0 && !S_ISDIR(st.st_mode) && tp_remove(path, NULL, err) < 0)
    return -1;
  if (mkdir(path, mode) < 0 && errno != EEXIST)
    return tp_fail(err, errno, "make %s", path);
  return 0;
}

/* The text of a regular file; NULL without an error when there is none. */
static char *read_text(const char *path) {
  TP_CLOSE int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  struct stat st;
  if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > FILE_LIMIT)
    return NULL;
  char *text = calloc(1, (size_t)st.st_size + 1);
  if (text && read(fd, text, (size_t)st.st_size) < 0) {
    free(text);
    return NULL;
  }
  return text;
}

/* Put a regular file at `path`, whatever was there; whole or not at all. */
static int put_file(const char *path, const char *text, mode_t mode, unsigned gid,
                    struct tp_error *err) {
  char temporary[256];
  struct stat st;
  size_t length = strlen(text);
  snprintf(temporary, sizeof temporary, "%s.tidepool", path);
  if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && tp_remove(path, NULL, err) < 0)
    return -1;
  if (tp_remove(temporary, NULL, err) < 0)
    return -1;
  TP_CLOSE int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0)
    return tp_fail(err, errno, "make %s", path);
  if (write(fd, text, length) != (ssize_t)length || fchown(fd, 0, gid) < 0 || fchmod(fd, mode) < 0 ||
      rename(temporary, path) < 0) {
    int code = errno;
    unlink(temporary);
    return tp_fail(err, code, "write %s", path);
  }
  return 0;
}

/* The third field of an account line as a number, -1 when it is none. */
static long third_field(const char *line) {
  for (int i = 0; i < 2; i++) {
    line += strcspn(line, ":\n");
    if (*line != ':')
      return -1;
    line++;
  }
  char *end;
  long value = strtol(line, &end, 10);
  return end == line ? -1 : value;
}

/* `text` without any line of agent's, with `added` before the first line of the same id (the name
 * for an id is that of its first line), else at the end. */
static char *account_text(const char *text, const char *added, bool has_id) {
  char *result = malloc(strlen(text) + strlen(added) + 3), *out = result;
  bool done = false;
  if (!result)
    return NULL;
  for (const char *line = text; *line;) {
    size_t length = strcspn(line, "\n");
    if (has_id && !done && third_field(line) == AGENT) {
      out += sprintf(out, "%s\n", added);
      done = true;
    }
    if (length && strncmp(line, "agent:", 6) != 0)
      out += sprintf(out, "%.*s\n", (int)length, line);
    line += length + (line[length] == '\n');
  }
  sprintf(out, done ? "" : "%s\n", added);
  return result;
}

static int add_account(const char *path, const char *added, bool has_id, const char *absent,
                       struct tp_error *err) {
  TP_FREE char *text = read_text(path);
  struct stat st;
  if (!text && !absent)
    return 0;
  bool there = text && stat(path, &st) == 0;
  TP_FREE char *changed = account_text(text ? text : absent, added, has_id);
  if (!changed)
    return tp_fail(err, ENOMEM, "%s", path);
  /* /etc/shadow keeps its group, which differs between distributions. */
  return put_file(path, changed, there ? st.st_mode & 0777 : 0644, there ? st.st_gid : 0, err);
}

/* access() says no to everything here, since our own mount is noexec. */
static bool is_program(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0111);
}

static int add_agent(struct tp_error *err) {
  char line[128];
  snprintf(line, sizeof line, "agent:x:%d:%d:agent:/workspace:%s", AGENT, AGENT,
           is_program("/bin/bash") ? "/bin/bash" : "/bin/sh");
  if (add_account("/etc/passwd", line, true,
                  "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", err) < 0)
    return -1;
  if (add_account("/etc/group", "agent:x:1000:", true, "root:x:0:\nnogroup:x:65534:\n", err) < 0)
    return -1;
  /* "*" is no password, as for system users; "!" would lock the account for some programs. */
  if (add_account("/etc/shadow", "agent:*:19000:0:99999:7:::", false, NULL, err) < 0)
    return -1;
  if (add_account("/etc/gshadow", "agent:*::", false, NULL, err) < 0)
    return -1;

  if (!is_program("/usr/bin/sudo"))
    return 0;
  if (make_directory("/etc/sudoers.d", 0755, err) < 0)
    return -1;
  return put_file("/etc/sudoers.d/agent", sudoers, 0440, 0, err);
}

static int make_home(struct tp_error *err) {
  static const char *const skeleton[] = {".bashrc", ".profile", ".bash_logout"};
  if (make_directory("/workspace", 0755, err) < 0)
    return -1;
  for (unsigned i = 0; i < sizeof skeleton / sizeof *skeleton; i++) {
    char from[64], to[64];
    struct stat st;
    snprintf(from, sizeof from, "/etc/skel/%s", skeleton[i]);
    snprintf(to, sizeof to, "/workspace/%s", skeleton[i]);
    TP_FREE char *text = read_text(from);
    if (!text || lstat(to, &st) == 0)
      continue;
    if (put_file(to, text, 0644, AGENT, err) < 0)
      return -1;
    if (lchown(to, AGENT, AGENT) < 0)
      return tp_fail(err, errno, "give %s to agent", to);
  }
  if (chown("/workspace", AGENT, AGENT) < 0 || chmod("/workspace", 0755) < 0)
    return tp_fail(err, errno, "give /workspace to agent");
  return 0;
}

int tp_finish(struct tp_error *err) {
  static const struct {
    const char *path;
    mode_t mode;
  } directories[] = {{"/proc", 0555},    {"/sys", 0555},  {"/dev", 0755},  {"/dev/pts", 0755},
                     {"/dev/shm", 0755}, {"/tmp", 01777}, {"/run", 0755},  {"/.tidepool", 0755},
                     {"/root", 0700},    {"/etc", 0755}};
  umask(0);
  for (unsigned i = 0; i < sizeof directories / sizeof *directories; i++)
    if (make_directory(directories[i].path, directories[i].mode, err) < 0)
      return -1;
  if (chmod("/tmp", 01777) < 0 || chmod("/", 0755) < 0 || chown("/", 0, 0) < 0)
    return tp_fail(err, errno, "set modes");

  if (put_file("/etc/hostname", "sandbox\n", 0644, 0, err) < 0)
    return -1;
  if (put_file("/etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n", 0644, 0, err) < 0)
    return -1;
  if (put_file("/etc/resolv.conf", "", 0644, 0, err) < 0)
    return -1;
  /* An id of its own for each sandbox; an empty file is systemd's word for "not yet". */
  struct stat st;
  if (lstat("/etc/machine-id", &st) == 0 && put_file("/etc/machine-id", "", 0444, 0, err) < 0)
    return -1;
  if (add_agent(err) < 0)
    return -1;
  return make_home(err);
}
