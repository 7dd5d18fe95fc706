/* tidepool-pack: writes a tree, or what it has that another lacks, as one layer of an image.
 *
 *   tidepool-pack --tree DIR [--parent DIR [--taken NANOSECONDS]] --uid-base N [--count 65536]
 *                 --output FILE [--offset N] [--compression zstd|gzip|none] [--level N]
 *   tidepool-pack --identify DIR
 *
 * --taken is when the parent was snapshotted, if it is a snapshot: see compare.h. Both trees are read-only subvolumes; on disk their ids are 0..count-1 already, which a worker in
 * the jail of confine.h sees, with the tree as its root. The layer is written into FILE, which is
 * there, from the offset on: the caller knows what surrounds it. Standard output tells "progress
 * BYTES ENTRIES DONE TOTAL" about five times a second and at the end "done BYTES ENTRIES SKIPPED
 * STORED sha256:DIGEST sha256:DIFF_ID"; standard error tells "CODE: message". Exit status 0, 1, or 2
 * for a wrong command line. What failed leaves rubbish in FILE.
 * --identify prints the UUID of a subvolume, 32 hexadecimal digits, and when it was taken, 0 when it
 * is no snapshot of another. */
#include <errno.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <locale.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../scope.h"
#include "confine.h"
#include "entry.h"
#include "source.h"
#include "supervise.h"

struct job {
  const char *tree, *parent, *output, *compression;
  struct tp_range range;
  uint64_t offset, level;
  int tree_mount, parent_mount, userns, output_fd;
  struct tp_compare compare;
  struct tp_pack pack;
};

static int usage(const char *what) {
  fprintf(stderr, "EINVAL: tidepool-pack: wrong or missing %s\n", what);
  return 2;
}

static bool number(const char *text, uint64_t max, uint64_t *value) {
  char *end;
  errno = 0;
  *value = strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && !*end && !errno && *value <= max;
}

static int parse(int argc, char **argv, struct job *job) {
  uint64_t value;
  for (int i = 1; i < argc; i += 2) {
    const char *name = argv[i], *argument = i + 1 < argc ? argv[i + 1] : NULL;
    if (!argument)
      return usage(name);
    if (strcmp(name, "--tree") == 0)
      job->tree = argument;
    else if (strcmp(name, "--parent") == 0)
      job->parent = argument;
    else if (strcmp(name, "--output") == 0)
      job->output = argument;
    else if (strcmp(name, "--compression") == 0)
      job->compression = argument;
    else if (strcmp(name, "--offset") == 0 && number(argument, INT64_MAX, &value))
      job->offset = value;
    else if (strcmp(name, "--level") == 0 && number(argument, 19, &value))
      job->level = value;
    else if (strcmp(name, "--taken") == 0 && number(argument, INT64_MAX, &value))
      job->compare.taken = (int64_t)value;
    else if (strcmp(name, "--uid-base") == 0 && number(argument, UINT32_MAX, &value))
      job->range.base = (uint32_t)value;
    else if (strcmp(name, "--count") == 0 && number(argument, 1u << 24, &value))
      job->range.count = (uint32_t)value;
    else
      return usage(name);
  }
  if (!job->tree || !job->output || !job->range.base || !job->range.count)
    return usage("--tree, --output or --uid-base");
  if (strcmp(job->compression, "zstd") != 0 && strcmp(job->compression, "gzip") != 0 &&
      strcmp(job->compression, "none") != 0)
    return usage("--compression");
  return 0;
}

static int pack_tree(struct job *job, struct tp_error *err) {
  struct tp_compare *compare = &job->compare;
  struct tp_pack *pack = &job->pack;
  /* pivot_root leaves "/" and "." the tree; its descriptor was closed on the way. */
  compare->tree = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (compare->tree < 0)
    return tp_fail(err, errno, "open the tree");
  if (compare->base >= 0) { /* a detached mount: its descriptor only leads there */
    compare->base = openat(job->parent_mount, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (compare->base < 0)
      return tp_fail(err, errno, "open the parent");
  }
  if (tp_compare_scan(compare, &pack->report.total, err) < 0)
    return -1;
  if (tp_sink_open(&pack->sink, job->output_fd, job->compression, (int)job->level, err) < 0)
    return -1;
  if (tp_compare_run(compare, err) < 0)
    return -1;
  return tp_sink_finish(&pack->sink, err);
}

/* The worker: never returns, reports its end. */
static void work(void *data, int report_fd) {
  struct job *job = data;
  struct tp_pack *pack = &job->pack;
  struct tp_error err = {.code = 0};
  char digest[TP_DIGEST_HEX + 1], diff_id[TP_DIGEST_HEX + 1];
  pack->report_fd = report_fd;
  int result = tp_confine_enter(TP_CONFINE_READ, job->tree_mount, job->userns, INT64_MAX, &err);
  tp_report_progress(&pack->report, report_fd, &pack->reported);
  if (result == 0)
    result = pack_tree(job, &err);
  tp_sink_close(&pack->sink);
  if (result == 0) {
    tp_digest_hex(&pack->sink.digest, digest);
    tp_digest_hex(&pack->sink.diff_id, diff_id);
    snprintf(pack->report.text, sizeof pack->report.text, "sha256:%s sha256:%s", digest, diff_id);
    pack->report.stored = pack->sink.stored;
  }
  tp_report_end(&pack->report, report_fd, result, &err);
}

static int mount_of(const char *path, int userns, int *fd, struct tp_error *err) {
  *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (*fd < 0)
    return tp_fail(err, errno, "open %s", path);
  return tp_confine_mount(*fd, userns, err);
}

static int pack(struct job *job, struct tp_error *err) {
  TP_CLOSE int output = open(job->output, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
  if (output < 0 || lseek(output, (off_t)job->offset, SEEK_SET) < 0)
    return tp_fail(err, errno, "open %s", job->output);
  TP_CLOSE int userns = tp_userns_open(&job->range, err);
  if (userns < 0)
    return -1;
  TP_CLOSE int tree_fd = -1, parent_fd = -1, parent_mount = -1;
  TP_CLOSE int tree_mount = mount_of(job->tree, userns, &tree_fd, err);
  if (tree_mount < 0)
    return -1;
  if (job->parent) {
    parent_mount = mount_of(job->parent, userns, &parent_fd, err);
    if (parent_mount < 0)
      return -1;
  }
  /* The worker must hold nothing of the host's but the file that it writes. */
  close(tp_take_fd(&tree_fd));
  if (parent_fd >= 0)
    close(tp_take_fd(&parent_fd));

  job->tree_mount = tree_mount;
  job->parent_mount = parent_mount;
  job->userns = userns;
  job->output_fd = output;
  job->compare.base = parent_mount;
  job->pack.against_base = parent_mount >= 0;
  struct tp_report last;
  if (tp_supervise(work, job, false, &last, err) < 0)
    return -1;
  if (fdatasync(output) < 0)
    return tp_fail(err, errno, "sync %s", job->output);
  printf("done %llu %llu %llu %llu %s\n", (unsigned long long)last.bytes,
         (unsigned long long)last.entries, (unsigned long long)last.skipped,
         (unsigned long long)last.stored, last.text);
  return 0;
}

static int identify(const char *path, struct tp_error *err) {
  TP_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct btrfs_ioctl_get_subvol_info_args info = {0};
  if (fd < 0 || ioctl(fd, BTRFS_IOC_GET_SUBVOL_INFO, &info) < 0)
    return tp_fail(err, errno, "identify %s", path);
  for (unsigned i = 0; i < sizeof info.uuid; i++)
    printf("%02x", info.uuid[i]);
  static const uint8_t none[BTRFS_UUID_SIZE];
  bool snapshot = memcmp(info.parent_uuid, none, sizeof none) != 0;
  printf(" %llu\n", snapshot ? info.otime.sec * 1000000000ull + info.otime.nsec : 0);
  return 0;
}

int main(int argc, char **argv) {
  static struct job job = {.range = {.count = 65536}, .compression = "zstd"};
  struct tp_error err;

  close_range(3, ~0u, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* nothing is half-made by a server that is gone */
  setlocale(LC_CTYPE, "C.UTF-8");            /* names in PAX headers are UTF-8 */
  signal(SIGPIPE, SIG_IGN);
  mallopt(M_ARENA_MAX, 2); /* a thread's own would reserve 64 MB of address space */

  bool identifies = argc == 3 && strcmp(argv[1], "--identify") == 0;
  int status = identifies ? 0 : parse(argc, argv, &job);
  if (status)
    return status;
  job.compare.found = tp_entry_found;
  job.compare.gone = tp_entry_gone;
  job.compare.data = &job.pack;
  if ((identifies ? identify(argv[2], &err) : pack(&job, &err)) == 0)
    return 0;
  fprintf(stderr, "%s: %s\n", tp_error_name(err.code), err.message);
  return 1;
}
