/* A plan: a flat list of steps that Lua composes and C executes, as bytes.
 *
 *   [u16 version][u16 count] { [u8 op][u8 optional][u16 zero] arguments... }
 *
 * Integers are little endian. The table below names each operation and the kinds of its arguments:
 *   p path: [u32 length] bytes NUL, no NUL inside, 1..PATH_MAX-1     s bytes: the same, any bytes
 *   n number: u64     m mount flags: u64     c namespaces: u64     d slot of a descriptor: u64
 * Slots 0..n-1 hold the descriptors that came with the plan; steps that open something fill others.
 *
 * This file is the sans-I/O half: encoding, and a decoder that trusts nothing. spawn.h executes. */
#ifndef TP_PLAN_H
#define TP_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define TP_PLAN_VERSION 1
#define TP_PLAN_STEPS 256
#define TP_PLAN_ARGS 5
#define TP_PLAN_SLOTS 16

/* X(operation, argument kinds). What each does is said at its function, tp_step_<operation>. */
#define TP_PLAN_OPS(X)                                                                             \
  /* files: file.c, trust.c */                                                                     \
  X(mkdir, "pn") X(ensure, "pn") X(dir, "pn") X(write, "ps") X(file, "pns") X(replace, "pns")      \
  X(symlink, "sp") X(rename, "pp") X(unlink, "p") X(rmdir, "p") X(chown, "pnn") X(chmod, "pn")     \
  X(open, "dp") X(copy, "dpn") X(prefetch, "pp") X(trust, "s")                                     \
  /* mounts: mount.c, overlay.c */                                                                        \
  X(private, "") X(tree, "dpm") X(idmap, "d") X(root, "d") X(detach, "") X(mount, "spsms")         \
  X(bind, "pp") X(protect, "p") X(mask, "p") X(device, "pp") X(umount, "p")                        \
  X(attach, "dp") X(overlay, "dppsn")                                                              \
  /* namespaces and the process: namespace.c, spawn.c, steer.c */                                  \
  X(clone, "cnd") X(idmaps, "nn") X(child, "") X(join, "p") X(identity, "") X(joined, "")           \
  X(unshare, "c") X(hostname, "s") X(steer, "ddn") X(listen, "dp")                                   \
  X(rlimit, "nnn") X(exec, "pd")                                                                   \
  /* control groups: cgroup.c */                                                                   \
  X(group, "pn") X(dynmods, "") X(killgroup, "p") X(ungroup, "p")                                                \
  /* storage: btrfs.c, snapshot.c, loop.c */                                                       \
  X(pool, "pp") X(grow, "ppn") X(subvolume, "pp") X(snapshot, "pppn") X(destroy, "pp") X(readonly, "pn")          \
  X(quota, "p") X(limit, "pn") X(usage, "p") X(sync, "p") X(reclaim, "p")                                          \
  /* a moment in which nothing runs: freeze.c */                                                   \
  X(freeze, "pn") X(thaw, "p")

enum tp_op {
#define X(name, kinds) TP_OP_##name,
  TP_PLAN_OPS(X)
#undef X
      TP_OPS
};

struct tp_arg {
  uint64_t number;
  const char *bytes; /* points into the plan; a NUL follows the last byte */
  size_t length;
};

struct tp_step {
  enum tp_op op;
  bool optional; /* its failure is ignored */
  struct tp_arg args[TP_PLAN_ARGS];
};

struct tp_plan {
  unsigned count;
  struct tp_step steps[TP_PLAN_STEPS];
  int clone, child, exec; /* indices of these steps, or -1 */
};

const char *tp_op_name(enum tp_op op);
const char *tp_op_kinds(enum tp_op op);
int tp_op_find(const char *name, size_t length); /* -1: no such operation */

/* Fill *plan, whose strings point into bytes. EBADMSG says which step is not one. */
int tp_plan_decode(const void *bytes, size_t length, struct tp_plan *plan, struct tp_error *err);

/* Append to a buffer that grows by itself. Out of memory sets `failed`. */
struct tp_plan_writer {
  uint8_t *bytes;
  size_t length, size;
  unsigned count;
  bool failed;
};
void tp_plan_begin(struct tp_plan_writer *writer);
void tp_plan_step(struct tp_plan_writer *writer, enum tp_op op, bool optional);
void tp_plan_number(struct tp_plan_writer *writer, uint64_t number);
void tp_plan_bytes(struct tp_plan_writer *writer, const char *bytes, size_t length);
/* Writes the count; the bytes are the caller's to free. */
int tp_plan_end(struct tp_plan_writer *writer, struct tp_error *err);

#endif
