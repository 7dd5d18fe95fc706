/* Plan steps on overlayfs: a tree of layers, mapped to a sandbox's ids.
 *
 * An overlay mount can't be idmapped, its layers can (Linux 5.19): so the directory of the layers is
 * cloned, mapped and mounted for a moment, and the overlay takes its layers from there. It clones each
 * for itself, so that nothing of ours stays. Layers are named relative to that directory: what names
 * them must fit into a page, and tells nobody where on the host it is. Runs in the spawner, as root. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"
#include "userns.h"

/* Mounts the layers' directory at `point`, its ids mapped by `userns` unless that is -1. */
static int mount_layers(const char *layers, const char *point, int userns, struct tp_error *err) {
  TP_CLOSE int tree = open_tree(AT_FDCWD, layers, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (tree < 0)
    return tp_fail(err, errno, "clone mount %s", layers);
  struct mount_attr attr = {.attr_clr = MOUNT_ATTR_RDONLY, .propagation = MS_PRIVATE};
  if (userns >= 0) {
    attr.attr_set = MOUNT_ATTR_IDMAP;
    attr.userns_fd = (uint64_t)userns;
  }
  if (mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return tp_fail(err, errno, "map the ids of %s (does its file system know idmapped mounts?)", layers);
  if (move_mount(tree, "", AT_FDCWD, point, MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "mount %s on %s", layers, point);
  return 0;
}

/* In the layers' directory, at `point`, on which the overlay is mounted as well: its detached clone.
 * Who mounts it makes its work directories, and needs an id that the layers' mount maps; the spawner's
 * securebits keep its capabilities meanwhile. */
static int mount_overlay(const char *point, const char *data, uint32_t owner, struct tp_error *err) {
  if (chdir(point) < 0)
    return tp_fail(err, errno, "enter %s", point);
  setfsgid(owner);
  setfsuid(owner);
  int mounted = mount("tidepool", point, "overlay", MS_NODEV | MS_NOATIME, data);
  int code = errno;
  setfsuid(0);
  setfsgid(0);
  if (chdir("/") < 0 || mounted < 0)
    return tp_fail(err, code, "mount an overlay of %.200s", data);
  TP_CLOSE int tree = open_tree(AT_FDCWD, point, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (tree < 0)
    tp_fail(err, errno, "clone the overlay's mount");
  else if (mount_setattr(tree, "", AT_EMPTY_PATH, &(struct mount_attr){.propagation = MS_PRIVATE},
                         sizeof(struct mount_attr)) < 0)
    close(tp_take_fd(&tree)), tp_fail(err, errno, "make the overlay's mount private");
  umount2(point, MNT_DETACH);
  return tp_take_fd(&tree);
}

/* overlay SLOT LAYERS POINT DATA BASE: an overlay by the mount options DATA, which name layers
 * relative to the directory LAYERS, as a detached tree. BASE: ids 0..65535 on the disk are those from
 * there on; 0: as they are. Below POINT, a directory that is ours, it is mounted on the way. Before a
 * `clone`, for the child has the slots of that moment. */
int tp_step_overlay(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  const struct tp_arg *args = step->args;
  struct tp_range range = {.base = (uint32_t)args[4].number, .count = 65536};
  TP_CLOSE int userns = range.base ? tp_userns_open(&range, err) : -1;
  if (range.base && userns < 0)
    return -1;
  char point[4096]; /* of this spawner alone */
  int length = snprintf(point, sizeof point, "%s/%d", args[2].bytes, (int)getpid());
  if (length >= (int)sizeof point || (mkdir(point, 0700) < 0 && errno != EEXIST))
    return tp_fail(err, errno, "mkdir %s", point);
  int tree = -1;
  if (mount_layers(args[1].bytes, point, userns, err) == 0) {
    tree = mount_overlay(point, args[3].bytes, range.base, err);
    umount2(point, MNT_DETACH);
  }
  rmdir(point);
  if (tree < 0)
    return -1;
  tp_run_fill(run, &args[0], tree);
  return 0;
}

/* attach SLOT PATH: mounts a detached tree. Undone. */
int tp_step_attach(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  int tree = tp_run_slot(run, &step->args[0], err);
  if (tree < 0)
    return -1;
  const char *path = step->args[1].bytes;
  if (move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
    return tp_fail(err, errno, "mount on %s", path);
  return 0;
}
