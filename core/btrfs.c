/* Plan steps on a btrfs pool: see btrfs.h. Runs in the spawner, as root. */
#include "btrfs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

#ifndef BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA
#define BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA 4 /* Linux 6.7 */
#endif

static int open_directory(const char *path, struct tp_error *err) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return fd < 0 ? tp_fail(err, errno, "open %s", path) : fd;
}

static int copy_name(char *to, size_t size, const char *name, struct tp_error *err) {
  if (strchr(name, '/') || snprintf(to, size, "%s", name) >= (int)size)
    return tp_fail(err, EINVAL, "subvolume name %s", name);
  return 0;
}

int tp_btrfs_destroy(const char *directory, const char *name, struct tp_error *err) {
  TP_CLOSE int fd = open_directory(directory, err);
  struct btrfs_ioctl_vol_args args = {0};
  if (fd < 0 || copy_name(args.name, sizeof args.name, name, err) < 0)
    return -1;
  if (ioctl(fd, BTRFS_IOC_SNAP_DESTROY, &args) < 0 && errno != ENOENT)
    return tp_fail(err, errno, "delete subvolume %s/%s", directory, name);
  return 0;
}

/* destroy DIRECTORY NAME */
int tp_step_destroy(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  return tp_btrfs_destroy(step->args[0].bytes, step->args[1].bytes, err);
}

/* subvolume DIRECTORY NAME: an empty one. Undone. */
int tp_step_subvolume(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *directory = step->args[0].bytes, *name = step->args[1].bytes;
  TP_CLOSE int fd = open_directory(directory, err);
  struct btrfs_ioctl_vol_args args = {0};
  if (fd < 0 || copy_name(args.name, sizeof args.name, name, err) < 0)
    return -1;
  if (ioctl(fd, BTRFS_IOC_SUBVOL_CREATE, &args) < 0)
    return tp_fail(err, errno, "create subvolume %s/%s", directory, name);
  return 0;
}

/* readonly PATH YES: seals a subvolume, or opens it again. */
int tp_step_readonly(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd = open_directory(path, err);
  if (fd < 0)
    return -1;
  uint64_t flags = step->args[1].number ? BTRFS_SUBVOL_RDONLY : 0;
  if (ioctl(fd, BTRFS_IOC_SUBVOL_SETFLAGS, &flags) < 0)
    return tp_fail(err, errno, "set flags of subvolume %s", path);
  return 0;
}

/* quota PATH: simple quotas on, for the whole file system. Classic ones never: a snapshot would take
 * 300 ms. */
int tp_step_quota(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd = open_directory(path, err);
  if (fd < 0)
    return -1;
  struct btrfs_ioctl_quota_ctl_args args = {.cmd = BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA};
  if (ioctl(fd, BTRFS_IOC_QUOTA_CTL, &args) < 0 && errno != EEXIST)
    return tp_fail(err, errno, "enable simple quotas on %s", path);
  return 0;
}

/* limit PATH BYTES: what the subvolume may add to what it was made from; 0: no limit. */
int tp_step_limit(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd = open_directory(path, err);
  if (fd < 0)
    return -1;
  uint64_t bytes = step->args[1].number;
  struct btrfs_ioctl_qgroup_limit_args args = {
      .lim = {.flags = BTRFS_QGROUP_LIMIT_MAX_RFER, .max_rfer = bytes ? bytes : UINT64_MAX}};
  if (ioctl(fd, BTRFS_IOC_QGROUP_LIMIT, &args) < 0)
    return tp_fail(err, errno, "limit subvolume %s", path);
  return 0;
}

/* usage PATH -> bytes that the subvolume has added. From sysfs, which is current: the quota tree is
 * only as new as the last transaction. */
int tp_step_usage(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd = open_directory(path, err);
  if (fd < 0)
    return -1;
  struct btrfs_ioctl_ino_lookup_args lookup = {.objectid = BTRFS_FIRST_FREE_OBJECTID};
  struct btrfs_ioctl_fs_info_args info = {0};
  if (ioctl(fd, BTRFS_IOC_INO_LOOKUP, &lookup) < 0 || ioctl(fd, BTRFS_IOC_FS_INFO, &info) < 0)
    return tp_fail(err, errno, "find subvolume %s", path);

  char file[160], text[32];
  char *at = file + sprintf(file, "/sys/fs/btrfs/");
  for (unsigned i = 0; i < BTRFS_FSID_SIZE; i++)
    at += sprintf(at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", info.fsid[i]);
  sprintf(at, "/qgroups/0_%" PRIu64 "/referenced", (uint64_t)lookup.treeid);
  TP_CLOSE int counter = open(file, O_RDONLY | O_CLOEXEC);
  ssize_t got = counter < 0 ? -1 : read(counter, text, sizeof text - 1);
  if (got < 0)
    return tp_fail(err, errno == ENOENT ? ENOTSUP : errno, "read the quota group of %s", path);
  text[got] = '\0';
  tp_run_value(run, strtoull(text, NULL, 10));
  return 0;
}

/* sync PATH: writes the file system's dirty data out. */
int tp_step_sync(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd = open_directory(path, err);
  if (fd < 0)
    return -1;
  return syncfs(fd) < 0 ? tp_fail(err, errno, "sync %s", path) : 0;
}

/* reclaim PATH: begins to give back the space of deleted subvolumes, which else takes up to a minute: commits,
 * and wakes the kernel's cleaner. What that has freed is there after another one. */
int tp_step_reclaim(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd = open_directory(path, err);
  if (fd < 0)
    return -1;
  return ioctl(fd, BTRFS_IOC_SYNC) < 0 ? tp_fail(err, errno, "reclaim space of %s", path) : 0;
}
