/* Plan step `snapshot`, alone or several at once. Runs in the spawner, as root.
 *
 * BTRFS_IOC_SNAP_CREATE_V2 returns when the transaction that makes the snapshot is committed. Those that
 * have joined a transaction before its commit begins are made by it together, so each of several has a
 * thread for the time of its ioctl, and all begin theirs at once: 8 cost one or two commits instead of 8. */
#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "scope.h"

#define THREAD_STACK (64u << 10)

/* snapshot SOURCE DIRECTORY NAME READONLY: flushes what is dirty in the source first. Undone. */
int tp_step_snapshot(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  (void)run;
  const char *source = step->args[0].bytes, *directory = step->args[1].bytes,
             *name = step->args[2].bytes;
  TP_CLOSE int from = open(source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (from < 0)
    return tp_fail(err, errno, "open %s", source);
  TP_CLOSE int into = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (into < 0)
    return tp_fail(err, errno, "open %s", directory);
  struct btrfs_ioctl_vol_args_v2 args = {.fd = from};
  if (strchr(name, '/') || snprintf(args.name, sizeof args.name, "%s", name) >= (int)sizeof args.name)
    return tp_fail(err, EINVAL, "subvolume name %s", name);
  args.flags = step->args[3].number ? BTRFS_SUBVOL_RDONLY : 0;
  if (ioctl(into, BTRFS_IOC_SNAP_CREATE_V2, &args) < 0)
    return tp_fail(err, errno, "snapshot %s as %s/%s", source, directory, name);
  return 0;
}

struct one {
  struct tp_run *run;
  const struct tp_step *step;
  pthread_rwlock_t *gate; /* shut until all are there */
  pthread_t thread;
  int outcome;
  struct tp_error error;
};

static void *take(void *arg) {
  struct one *one = arg;
  pthread_rwlock_rdlock(one->gate);
  pthread_rwlock_unlock(one->gate);
  one->outcome = tp_step_snapshot(one->run, one->step, &one->error);
  return NULL;
}

/* A thread for each, as far as there are threads: how many have one. */
static unsigned start(struct one *list, unsigned count) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, THREAD_STACK);
  unsigned started = 0;
  while (started < count &&
         pthread_create(&list[started].thread, &attributes, take, &list[started]) == 0)
    started++;
  pthread_attr_destroy(&attributes);
  return started;
}

unsigned tp_snapshots_beside(const struct tp_plan *plan, unsigned first) {
  unsigned count = 0;
  while (count < TP_SNAPSHOTS && first + count < plan->count &&
         plan->steps[first + count].op == TP_OP_snapshot && !plan->steps[first + count].optional)
    count++;
  return count;
}

int tp_snapshots_take(struct tp_run *run, unsigned first, unsigned count, struct tp_error *err) {
  static struct one list[TP_SNAPSHOTS];
  pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER;
  for (unsigned i = 0; i < count; i++)
    list[i] = (struct one){.run = run, .step = &run->plan->steps[first + i], .gate = &gate};

  pthread_rwlock_wrlock(&gate);
  unsigned threads = start(list, count - 1); /* the last is this thread's own */
  pthread_rwlock_unlock(&gate);
  for (unsigned i = threads; i < count; i++)
    take(&list[i]);

  int failed = -1;
  for (unsigned i = 0; i < count; i++) {
    if (i < threads)
      pthread_join(list[i].thread, NULL);
    run->made[first + i] = list[i].outcome == 0;
    if (list[i].outcome < 0 && failed < 0)
      failed = (int)i;
  }
  if (failed < 0)
    return 0;
  run->failed = (int)first + failed;
  *err = list[failed].error;
  return tp_wrap(err, "plan step %d", run->failed + 1);
}
