/* The plan steps that mount and grow the pool: a btrfs in an image file, over a loop device.
 *
 * The loop is AUTOCLEAR: it goes with its last mount, and while sandboxes live their mounts keep it.
 * So a new server must find and mount *that* loop. Two loops on one image destroy it: whoever
 * attaches holds a lock on the image, and where devices can't be examined we refuse. Runs in the
 * spawner, as root. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

#define POOL_BLOCK 4096
#define ATTEMPTS 64

static int open_loop(unsigned number, char path[32], struct tp_error *err) {
  snprintf(path, 32, "/dev/loop%u", number);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  return fd < 0 ? tp_fail(err, errno, "open %s", path) : fd;
}

/* 1 when the open loop device has this file behind it; 0: another or none; -1, also when it has the file in
 * another way than we attach it, which leaves it in doubt who uses it and how. */
static int is_behind(int loop, const char *path, const struct stat *image, struct tp_error *err) {
  struct loop_info64 info;
  if (ioctl(loop, LOOP_GET_STATUS64, &info) < 0)
    return errno == ENXIO ? 0 : tp_fail(err, errno, "examine a loop device");
  if (info.lo_device != (uint64_t)image->st_dev || info.lo_inode != image->st_ino)
    return 0;
  if (info.lo_flags & LO_FLAGS_READ_ONLY || info.lo_offset || info.lo_sizelimit)
    return tp_fail(err, EBUSY, "the pool's image is attached to %s by somebody else, read-only or in part: "
                   "unmount it there", path);
  return 1;
}

/* The loop that has the image already, held open; -2: there is none. */
static int find_loop(const struct stat *image, char path[32], struct tp_error *err) {
  DIR *blocks = opendir("/sys/block");
  if (!blocks)
    return tp_fail(err, errno, "list block devices");
  int found = -2;
  for (struct dirent *entry; found == -2 && (entry = readdir(blocks));) {
    unsigned number;
    char state[300];
    if (sscanf(entry->d_name, "loop%u", &number) != 1)
      continue;
    snprintf(state, sizeof state, "/sys/block/%s/loop/backing_file", entry->d_name);
    if (access(state, F_OK) < 0)
      continue;
    int fd = open_loop(number, path, err);
    int behind = fd < 0 ? -1 : is_behind(fd, path, image, err);
    if (behind > 0)
      found = fd;
    else if (fd >= 0)
      close(fd);
    if (behind < 0)
      found = -1;
  }
  closedir(blocks);
  return found;
}

static int attach_loop(int image, char path[32], struct tp_error *err) {
  TP_CLOSE int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0)
    return tp_fail(err, errno, "open /dev/loop-control");
  struct loop_config config = {.fd = (uint32_t)image,
                               .block_size = POOL_BLOCK,
                               .info = {.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO}};
  snprintf((char *)config.info.lo_file_name, sizeof config.info.lo_file_name, "tidepool");
  for (int tries = 0; tries < ATTEMPTS; tries++) {
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0)
      return tp_fail(err, errno, "find a free loop device");
    TP_CLOSE int loop = open_loop((unsigned)number, path, err);
    if (loop < 0)
      return -1;
    if (ioctl(loop, LOOP_CONFIGURE, &config) == 0)
      return tp_take_fd(&loop);
    if (errno != EBUSY) /* another took it meanwhile */
      return tp_fail(err, errno, "attach %s", path);
  }
  return tp_fail(err, EBUSY, "attach the pool's image");
}

/* pool IMAGE TARGET: mounts the image at TARGET, for root alone. Undone. */
int tp_step_pool(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes, *target = step->args[1].bytes;
  TP_CLOSE int image = open(path, O_RDWR | O_CLOEXEC);
  /* A descriptor of its own: the loop device keeps the open file of `image`, and with it a lock on
   * it, for as long as a sandbox lives. */
  TP_CLOSE int lock = open(path, O_RDONLY | O_CLOEXEC);
  struct stat st;
  if (image < 0 || lock < 0 || fstat(image, &st) < 0)
    return tp_fail(err, errno, "open %s", path);
  if (flock(lock, LOCK_EX) < 0)
    return tp_fail(err, errno, "lock %s", path);

  char device[32];
  TP_CLOSE int loop = find_loop(&st, device, err);
  if (loop == -2)
    loop = attach_loop(image, device, err);
  if (loop < 0)
    return -1;
  if (mount(device, target, "btrfs", MS_NODEV | MS_NOSUID | MS_NOATIME, NULL) < 0) {
    int code = errno;
    return tp_fail(err, code, "mount %s on %s", device, target);
  }
  if (chmod(target, 0700) < 0) {
    int code = errno;
    umount2(target, MNT_DETACH);
    return tp_fail(err, code, "chmod %s", target);
  }
  return 0;
}

/* grow IMAGE TARGET BYTES: the image, its loop and the file system that is mounted at TARGET, to that size or
 * what the image has already. While it is in use; cut off at any point, another `grow` ends it. */
int tp_step_grow(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes, *target = step->args[1].bytes;
  off_t bytes = (off_t)step->args[2].number;
  TP_CLOSE int image = open(path, O_RDWR | O_CLOEXEC);
  struct stat st;
  if (image < 0 || fstat(image, &st) < 0)
    return tp_fail(err, errno, "open %s", path);
  char device[32];
  TP_CLOSE int loop = find_loop(&st, device, err);
  if (loop < 0)
    return loop == -2 ? tp_fail(err, ENXIO, "no loop device has %s", path) : -1;
  TP_CLOSE int directory = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0)
    return tp_fail(err, errno, "open %s", target);
  if (bytes > st.st_size && ftruncate(image, bytes) < 0)
    return tp_fail(err, errno, "grow %s", path);
  if (ioctl(loop, LOOP_SET_CAPACITY, 0) < 0)
    return tp_fail(err, errno, "grow %s", device);
  struct btrfs_ioctl_vol_args args = {.name = "max"};
  if (ioctl(directory, BTRFS_IOC_RESIZE, &args) < 0)
    return tp_fail(err, errno, "grow the file system of %s", target);
  return 0;
}
