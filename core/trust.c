/* Plan step `trust`: makes a sandbox's programs believe in the certificate that the egress process
 * signs with. Runs in the cloned child, as root inside, its root directory the sandbox's.
 *
 * Whoever lived there may have left anything: a path is followed through links, as the sandbox's
 * own programs follow it, but never into another mount or through /proc's descriptors, among which
 * are the spawner's; a FIFO is not waited for; what is no plain file is left alone. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

/* Where update-ca-certificates finds it and adds it to the bundle that it writes anew. */
#define OWN_FILE "/usr/local/share/ca-certificates/tidepool.crt"
/* The bundle of Debian, Alpine, Arch and SUSE, and that of Fedora and its kin. */
#define BUNDLE "/etc/ssl/certs/ca-certificates.crt"
#define OTHER_BUNDLE "/etc/pki/tls/certs/ca-bundle.crt"
/* What Debian's OpenSSL reads when no variable tells it better: under sudo, for instance. */
#define OPENSSL_DIRECTORY "/usr/lib/ssl"

#define BUNDLE_LIMIT (16u << 20)
#define OWN_LIMIT 16384

struct text {
  const char *bytes;
  size_t length;
};

static int open_inside(int directory, const char *path, int flags) {
  struct open_how how = {.flags = (uint64_t)(flags | O_NOCTTY | O_NONBLOCK | O_CLOEXEC),
                         .resolve = RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
  return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}

/* The directory of an absolute path, made where it is missing, and the name in it. */
static int make_parent(const char *path, const char **name) {
  TP_CLOSE int at = open_inside(AT_FDCWD, "/", O_RDONLY | O_DIRECTORY);
  for (const char *slash; at >= 0 && (slash = strchr(++path, '/')); path = slash) {
    char part[256];
    snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
    int next = open_inside(at, part, O_RDONLY | O_DIRECTORY);
    if (next < 0 && errno == ENOENT && mkdirat(at, part, 0755) == 0)
      next = open_inside(at, part, O_RDONLY | O_DIRECTORY);
    int code = errno;
    close(at);
    at = next;
    errno = code;
  }
  *name = path;
  return tp_take_fd(&at);
}

static int write_all(int fd, struct text text) {
  while (text.length) {
    ssize_t wrote = write(fd, text.bytes, text.length);
    if (wrote < 0)
      return -1;
    text.bytes += wrote;
    text.length -= (size_t)wrote;
  }
  return 0;
}

/* The file, one rename from whole to whole, with these parts for its content. The first one is
 * all of `whole`, if that is a descriptor: a file system that can, shares it. */
static int replace(int parent, const char *name, const struct stat *like, int whole,
                   const struct text *parts, unsigned count) {
  static const char temporary[] = ".tidepool-new";
  unlinkat(parent, temporary, 0);
  TP_CLOSE int fd = openat(parent, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                           0600);
  if (fd < 0)
    return -1;
  bool shared = whole >= 0 && ioctl(fd, FICLONE, whole) == 0 && lseek(fd, 0, SEEK_END) > 0;
  int outcome = 0;
  for (unsigned i = shared ? 1 : 0; i < count && outcome == 0; i++)
    outcome = write_all(fd, parts[i]);
  if (outcome == 0)
    outcome = fchown(fd, like->st_uid, like->st_gid);
  if (outcome == 0)
    outcome = fchmod(fd, like->st_mode & 0777);
  if (outcome == 0)
    outcome = renameat(parent, temporary, parent, name);
  if (outcome < 0) {
    int code = errno;
    unlinkat(parent, temporary, 0);
    errno = code;
  }
  return outcome;
}

/* --- a bundle --------------------------------------------------------------------------------- */

/* Where the file is, all links followed. */
static int open_parent_of(int fd, char path[4096], const char **name) {
  char link[32];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, 4095);
  if (length <= 0 || path[0] != '/')
    return -1;
  path[length] = '\0';
  return make_parent(path, name);
}

/* The content, without an earlier certificate of ours, and this one. */
static int rewrite(int fd, const struct stat *st, struct text content, struct text old,
                   struct text own) {
  const char *cut = NULL;
  if (old.length)
    cut = memmem(content.bytes, content.length, old.bytes, old.length);
  const char *end = content.bytes + content.length, *rest = cut ? cut + old.length : end;
  bool ended = content.length == 0 || end[-1] == '\n';
  struct text parts[] = {{content.bytes, (size_t)((cut ? cut : end) - content.bytes)},
                         {rest, (size_t)(end - rest)},
                         {"\n", ended ? 0 : 1},
                         own};
  char path[4096];
  const char *name;
  TP_CLOSE int parent = open_parent_of(fd, path, &name);
  return parent < 0 ? -1 : replace(parent, name, st, cut ? -1 : fd, parts, 4);
}

/* 0, also when it is in there already. */
static int extend(const char *path, struct text old, struct text own) {
  struct stat st;
  TP_CLOSE int fd = open_inside(AT_FDCWD, path, O_RDONLY);
  if (fd < 0 || fstat(fd, &st) < 0)
    return -1;
  if (!S_ISREG(st.st_mode) || st.st_size > BUNDLE_LIMIT)
    return errno = EINVAL, -1;
  if (st.st_size == 0)
    return rewrite(fd, &st, (struct text){"", 0}, old, own);

  struct text content = {.length = (size_t)st.st_size};
  void *mapped = mmap(NULL, content.length, PROT_READ, MAP_PRIVATE, fd, 0);
  if (mapped == MAP_FAILED)
    return -1;
  content.bytes = mapped;
  int outcome = memmem(content.bytes, content.length, own.bytes, own.length)
                    ? 0
                    : rewrite(fd, &st, content, old, own);
  munmap(mapped, content.length);
  return outcome;
}

/* There is none: the variables that we set name it all the same, so it is made. */
static int begin(struct text own) {
  const char *name;
  TP_CLOSE int parent = make_parent(BUNDLE, &name);
  if (parent < 0)
    return -1;
  TP_CLOSE int other = open_inside(AT_FDCWD, OTHER_BUNDLE, O_RDONLY);
  if (other >= 0)
    return symlinkat(OTHER_BUNDLE, parent, name);
  struct stat plain = {.st_mode = 0644};
  return replace(parent, name, &plain, -1, &own, 1);
}

/* --- our own file ----------------------------------------------------------------------------- */

static struct text read_own(char bytes[OWN_LIMIT]) {
  struct stat st;
  TP_CLOSE int fd = open_inside(AT_FDCWD, OWN_FILE, O_RDONLY);
  bool plain = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
  ssize_t got = plain ? read(fd, bytes, OWN_LIMIT) : 0;
  return (struct text){bytes, got > 0 && got < OWN_LIMIT ? (size_t)got : 0};
}

static int write_own(struct text own) {
  const char *name;
  struct stat plain = {.st_mode = 0644};
  TP_CLOSE int parent = make_parent(OWN_FILE, &name);
  return parent < 0 ? -1 : replace(parent, name, &plain, -1, &own, 1);
}

static void link_openssl(void) {
  TP_CLOSE int directory = open_inside(AT_FDCWD, OPENSSL_DIRECTORY, O_RDONLY | O_DIRECTORY);
  if (directory >= 0 && symlinkat(BUNDLE, directory, "cert.pem") < 0)
    return; /* there is one, then */
}

/* trust PEM: the certificate, ending in a newline, into the bundles that there are and into a
 * file of its own. One that an earlier trust step put there is taken out. All of it is tried;
 * the first failure is told. */
int tp_step_trust(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  static char bytes[OWN_LIMIT];
  struct text own = {step->args[0].bytes, step->args[0].length}, old = read_own(bytes);
  bool same = old.length == own.length && memcmp(old.bytes, own.bytes, own.length) == 0;
  if (same)
    old.length = 0;

  int code = 0;
  if (extend(OTHER_BUNDLE, old, own) < 0 && errno != ENOENT)
    code = errno;
  if (extend(BUNDLE, old, own) < 0 && (errno != ENOENT || begin(own) < 0) && !code)
    code = errno;
  /* Last, since it tells the next one what to take out. */
  if (!same && write_own(own) < 0 && !code)
    code = errno;
  link_openssl();
  return code ? tp_fail(err, code, "add a certificate") : 0;
}
