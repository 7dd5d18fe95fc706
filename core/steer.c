/* Plan step `steer`, and programs made ahead for it: see steer.h. Runs in the spawner, as root. */
#include "steer.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "scope.h"
#include "spawn.h"

/* Loading the program is most of what steering costs, so it is done while nobody waits. */
#define STOCK 4

struct stock {
  int map, program;
};

static struct stock stock[STOCK];
static unsigned stocked;

static int make_stock(struct stock *made, struct tp_error *err) {
  TP_CLOSE int map = tp_steer_map(err);
  if (map < 0)
    return -1;
  made->program = tp_steer_program(map, err);
  if (made->program < 0)
    return -1;
  made->map = tp_take_fd(&map);
  return 0;
}

bool tp_steer_stock(void) {
  static bool refused;
  struct tp_error ignored;
  if (!refused && stocked < STOCK) {
    refused = make_stock(&stock[stocked], &ignored) < 0;
    stocked += !refused;
  }
  return refused || stocked == STOCK;
}

static int take_stock(struct stock *taken, struct tp_error *err) {
  if (stocked == 0)
    return make_stock(taken, err);
  *taken = stock[--stocked];
  return 0;
}

/* The descriptors of what the step makes: the sockets, the map, the link. -1 where there is
 * none. */
enum { MAP = TP_STEER_SOCKETS, LINK, MADE };

static void drop(int made[MADE]) {
  for (int i = 0; i < MADE; i++)
    tp_scope_close(&made[i]);
}

static int attach(int made[MADE], struct tp_error *err) {
  TP_CLOSE int namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  if (namespace < 0)
    return tp_fail(err, errno, "open the network namespace");
  struct stock taken;
  if (take_stock(&taken, err) < 0)
    return -1;
  TP_CLOSE int program = taken.program; /* the link keeps it */
  made[MAP] = taken.map;
  made[LINK] = tp_steer_link(program, namespace, err);
  return made[LINK] < 0 ? -1 : 0;
}

/* With the calling thread in the sandbox's namespace. */
static int make(enum tp_steer_mode mode, int made[MADE], struct tp_error *err) {
  bool ipv6;
  if (tp_steer_network(&ipv6, err) < 0 || tp_steer_sockets(ipv6, made, err) < 0)
    return -1;
  return mode == TP_STEER_BPF ? attach(made, err) : 0;
}

/* The way back, opened before the first time that we leave. */
static int own_namespace(struct tp_error *err) {
  static int own = -1;
  if (own < 0)
    own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  return own < 0 ? tp_fail(err, errno, "open the spawner's network namespace") : own;
}

/* steer FIRST NAMESPACE MODE: steers the network namespace of the plan's child or, when slot
 * NAMESPACE holds one, that of a pidfd. Gives the four sockets, the map and the link, those
 * that there are, in slots from FIRST on; which they are is in the value, a bit each. */
int tp_step_steer(struct tp_run *run, const struct tp_step *step, struct tp_error *err) {
  const struct tp_arg *args = step->args;
  int given = run->slots[args[1].number], made[MADE] = {-1, -1, -1, -1, -1, -1};
  int pidfd = given >= 0 ? given : run->pidfd, own = own_namespace(err);
  if (own < 0)
    return -1;
  if (args[0].number + MADE > TP_PLAN_SLOTS || args[2].number > TP_STEER_TPROXY || pidfd < 0)
    return tp_fail(err, EINVAL, "steer");
  if (setns(pidfd, CLONE_NEWNET) < 0)
    return tp_fail(err, errno, "enter the network namespace");
  int outcome = make((enum tp_steer_mode)args[2].number, made, err);
  if (setns(own, CLONE_NEWNET) < 0)
    _exit(1); /* can't be; and no plan may run in a sandbox's namespace */
  if (outcome < 0) {
    drop(made);
    return -1;
  }

  uint64_t bits = 0;
  for (unsigned i = 0; i < MADE; i++) {
    if (made[i] < 0)
      continue;
    struct tp_arg slot = {.number = args[0].number + i};
    tp_run_fill(run, &slot, made[i]);
    tp_run_give(run, &slot);
    bits |= 1u << i;
  }
  tp_run_value(run, bits);
  return 0;
}
