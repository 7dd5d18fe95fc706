/* Executing a plan: step by step, and what it made is unmade in reverse when a step fails.
 *
 * Runs in tidepool-spawner, as root, single-threaded; several snapshots at once have a thread each while
 * they are taken (snapshot.c). Steps between `child` and `exec` run in the cloned child, which shares the
 * spawner's memory (CLONE_VM: copying page tables is dear) on a stack of its own until it execs. The two
 * never use libc at the same time, for they share errno: while the child works the parent sleeps, or
 * joins cgroups by raw system calls. */
#ifndef TP_SPAWN_H
#define TP_SPAWN_H

#include <sys/types.h>

#include "plan.h"

#define TP_RUN_VALUES 8
#define TP_RUN_GIVEN 7 /* with the pidfd, what a frame carries */

struct tp_run {
  const struct tp_plan *plan;
  int slots[TP_PLAN_SLOTS]; /* descriptors, -1 where none; closed by tp_run_end */
  pid_t pid;                /* of the child, in the spawner's namespace; 0: none */
  int pidfd;
  int link, child_link;   /* a socket pair: go ahead to the child; its end tells of the exec */
  int host_dev;           /* the child's view of the host's /dev, kept over the pivot */
  const char *mask;       /* where the first masked directory is, of the plan's strings */
  struct tp_run *parent;  /* in the child's copy of this: the one to report to */
  int failed;             /* index of the step that failed, -1 */
  volatile bool child_failed;
  struct tp_error child_error;
  bool made[TP_PLAN_STEPS];
  uint64_t values[TP_RUN_VALUES]; /* what `usage` and the like found */
  unsigned value_count;
  int given[TP_RUN_GIVEN]; /* descriptors for whoever asked, still their slots' */
  unsigned given_count;
  uint64_t froze; /* when `freeze` began, nanoseconds */
};

/* Takes the descriptors over. */
void tp_run_begin(struct tp_run *run, const struct tp_plan *plan, const int *fds, unsigned count);
/* 0, or -1 with run->failed and "plan step 7: mount proc on /proc: ..." and nothing left behind. */
int tp_run_execute(struct tp_run *run, struct tp_error *err);
/* Closes what is still held; the pidfd too, unless taken (set to -1). */
void tp_run_end(struct tp_run *run);

/* The functions behind the table of plan.h, one an operation. */
#define X(name, kinds)                                                                             \
  int tp_step_##name(struct tp_run *run, const struct tp_step *step, struct tp_error *err);
TP_PLAN_OPS(X)
#undef X

/* Kill the child and wait until it is gone. */
void tp_run_kill(struct tp_run *run);
/* In the child: sleep until the parent says go. */
int tp_run_await(struct tp_run *run, struct tp_error *err);

/* The descriptor in a slot; EBADF when it is empty. */
int tp_run_slot(struct tp_run *run, const struct tp_arg *arg, struct tp_error *err);
void tp_run_fill(struct tp_run *run, const struct tp_arg *arg, int fd);
void tp_run_value(struct tp_run *run, uint64_t value);
/* The answer carries what this slot holds. */
void tp_run_give(struct tp_run *run, const struct tp_arg *arg);

#endif
