/* Plan steps on mounts: a sandbox's root, its /dev, /proc and /sys.
 *
 * The order that must hold: `tree` and `idmap` in the spawner, which may read the pool; `root` in the
 * child enters the tree while the old root still hangs below it, since the kernel lets a user
 * namespace mount proc and sysfs only while an unmasked one is in sight, and since the devices come
 * from there; `detach` drops the old root. Executed by the spawner, on either side of a clone. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

/* private: no mount event leaves or enters from here on. */
int tp_step_private(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run, (void)step;
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
    return tp_fail(err, errno, "make mounts private");
  return 0;
}

/* tree SLOT PATH FLAGS: a detached copy of the mount at PATH, rooted at PATH, without setuid's being
 * refused as it is on the host; FLAGS nodev is what is asked for today. */
int tp_step_tree(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  const char *path = step->args[1].bytes;
  uint64_t flags = step->args[2].number;
  TP_CLOSE int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (fd < 0)
    return tp_fail(err, errno, "clone mount %s", path);
  struct mount_attr attr = {.attr_clr = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
                                        MOUNT_ATTR_RDONLY};
  attr.attr_set = (flags & MS_NODEV ? MOUNT_ATTR_NODEV : 0) |
                  (flags & MS_NOSUID ? MOUNT_ATTR_NOSUID : 0) |
                  (flags & MS_NOEXEC ? MOUNT_ATTR_NOEXEC : 0) |
                  (flags & MS_RDONLY ? MOUNT_ATTR_RDONLY : 0);
  if (mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return tp_fail(err, errno, "set flags of %s", path);
  tp_run_fill(run, &step->args[0], tp_take_fd(&fd));
  return 0;
}

/* idmap SLOT: ids 0..65535 on the disk are the child's; after `idmaps`. */
int tp_step_idmap(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  int tree = tp_run_slot(run, &step->args[0], err);
  if (tree < 0)
    return -1;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/user", (int)run->pid);
  TP_CLOSE int userns = open(path, O_RDONLY | O_CLOEXEC);
  if (userns < 0)
    return tp_fail(err, errno, "open %s", path);
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)userns};
  if (mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return tp_fail(err, errno, "map the ids of the root's mount");
  return 0;
}

/* root SLOT: the tree becomes the root; the old one stays mounted below until `detach`. */
int tp_step_root(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  int tree = tp_run_slot(run, &step->args[0], err);
  if (tree < 0)
    return -1;
  run->host_dev = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (run->host_dev < 0)
    return tp_fail(err, errno, "open /dev");
  if (move_mount(tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "attach the root");
  if (fchdir(tree) < 0)
    return tp_fail(err, errno, "enter the root");
  if (syscall(SYS_pivot_root, ".", ".") < 0)
    return tp_fail(err, errno, "pivot root");
  return 0;
}

/* detach: the old root goes. pivot_root has put it on top of ours, so "." names it. */
int tp_step_detach(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run, (void)step;
  if (umount2(".", MNT_DETACH) < 0)
    return tp_fail(err, errno, "detach the old root");
  if (chdir("/") < 0)
    return tp_fail(err, errno, "chdir /");
  return 0;
}

/* mount SOURCE TARGET TYPE FLAGS DATA */
int tp_step_mount(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const struct tp_arg *args = step->args;
  if (mount(args[0].bytes, args[1].bytes, args[2].bytes, args[3].number, args[4].bytes) < 0)
    return tp_fail(err, errno, "mount %s on %s", args[2].bytes, args[1].bytes);
  return 0;
}

/* bind SOURCE TARGET. Undone. */
int tp_step_bind(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *source = step->args[0].bytes, *target = step->args[1].bytes;
  if (mount(source, target, NULL, MS_BIND, NULL) < 0)
    return tp_fail(err, errno, "bind %s on %s", source, target);
  return 0;
}

/* protect PATH: the same tree, read-only, over itself. */
int tp_step_protect(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  TP_CLOSE int fd =
      open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
  if (fd < 0 || mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr) < 0 ||
      move_mount(fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "protect %s", path);
  return 0;
}

/* One empty directory covers all that are masked: a file system each costs a create its memory, and a
 * dump of the sandbox's memory 4 ms. */
static int mask_directory(struct tp_run *run, const char *path) {
  if (run->mask)
    return mount(run->mask, path, NULL, MS_BIND, NULL);
  int masked = mount("tmpfs", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
                     "size=0,nr_inodes=2,mode=0555");
  if (masked == 0)
    run->mask = path;
  return masked;
}

/* mask PATH: /dev/null over a file, an empty read-only directory over a directory. Looks first, since
 * a bind that fails costs the kernel a grace period. */
int tp_step_mask(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  const char *path = step->args[0].bytes;
  struct stat st;
  if (stat(path, &st) < 0)
    return tp_fail(err, errno, "mask %s", path);
  int masked = S_ISDIR(st.st_mode) ? mask_directory(run, path)
                                   : mount("/dev/null", path, NULL, MS_BIND, NULL);
  return masked < 0 ? tp_fail(err, errno, "mask %s", path) : 0;
}

/* device NAME PATH: the host's /dev/NAME at PATH; between `root` and `detach`. */
int tp_step_device(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  const char *name = step->args[0].bytes, *path = step->args[1].bytes;
  TP_CLOSE int device = open_tree(run->host_dev, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (device < 0)
    return tp_fail(err, errno, "open the host's /dev/%s", name);
  TP_CLOSE int target = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (target < 0)
    return tp_fail(err, errno, "create %s", path);
  if (move_mount(device, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "bind %s", path);
  return 0;
}

/* umount PATH: now for new lookups, for real when its last user goes. */
int tp_step_umount(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *path = step->args[0].bytes;
  return umount2(path, MNT_DETACH) < 0 ? tp_fail(err, errno, "umount %s", path) : 0;
}
