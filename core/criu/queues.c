/* Message queues: see queues.h. Root, in tidepool-criu before it becomes CRIU. */
#include "queues.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include "../scope.h"

/* A file system of the namespace that we are in; mounted nowhere, it goes with its descriptor. */
static int open_queues(struct tp_error *err) {
  TP_CLOSE int context = fsopen("mqueue", FSOPEN_CLOEXEC);
  if (context < 0)
    return tp_fail(err, errno, "open mqueue");
  if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
    return tp_fail(err, errno, "make mqueue");
  TP_CLOSE int mounted = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
  if (mounted < 0)
    return tp_fail(err, errno, "mount mqueue");
  int directory = openat(mounted, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return directory < 0 ? tp_fail(err, errno, "open the queues' directory") : directory;
}

/* -1 and ENOTSUP when the directory names a queue. Owns the descriptor. */
static int expect_none(int directory, struct tp_error *err) {
  DIR *list = fdopendir(directory);
  if (!list) {
    close(directory);
    return tp_fail(err, errno, "list the queues");
  }
  int outcome = 0;
  for (struct dirent *entry; outcome == 0 && (entry = readdir(list));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
      continue;
    err->code = ENOTSUP;
    snprintf(err->message, sizeof err->message,
             "there is a POSIX message queue, /%.64s, which can't be captured", entry->d_name);
    outcome = -1;
  }
  closedir(list);
  return outcome;
}

int tp_criu_no_queues(pid_t pid, struct tp_error *err) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/ipc", (int)pid);
  TP_CLOSE int theirs = open(path, O_RDONLY | O_CLOEXEC);
  TP_CLOSE int ours = open("/proc/self/ns/ipc", O_RDONLY | O_CLOEXEC);
  if (theirs < 0 || ours < 0 || setns(theirs, CLONE_NEWIPC) < 0)
    return tp_fail(err, errno, "enter %s", path);
  int directory = open_queues(err);
  if (setns(ours, CLONE_NEWIPC) < 0) {
    int code = errno;
    if (directory >= 0)
      close(directory);
    return tp_fail(err, code, "leave %s", path);
  }
  if (directory < 0)
    return err->code == ENODEV ? 0 : -1; /* a kernel without them */
  return expect_none(directory, err);
}
