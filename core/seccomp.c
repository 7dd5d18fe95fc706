/* The filter: see seccomp.h. Made once by the server, loaded inside by init for its children.
 *
 * Root inside has every capability of its user namespace, so the kernel itself lets it mount, nest
 * namespaces and more. The filter takes away what a build never needs and what would break a
 * promise of ours: a nested user namespace (new powers over old kernel code), mounts, a nested
 * subvolume (it would be missing from snapshots), sockets that reach past the network namespace,
 * and for memory snapshots io_uring. What it does not name is allowed: it is a second wall, and a new
 * system call must not break a new libc. The first wall is the user namespace. */
#include "seccomp.h"

#include <errno.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scope.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const struct {
  int code;
  const char *name;
} refused[] = {
    /* mounts */
    {EPERM, "mount"}, {EPERM, "umount"}, {EPERM, "umount2"}, {EPERM, "pivot_root"},
    {EPERM, "fsopen"}, {EPERM, "fsmount"}, {EPERM, "fsconfig"}, {EPERM, "fspick"},
    {EPERM, "open_tree"}, {EPERM, "move_mount"}, {EPERM, "mount_setattr"},
    /* namespaces; clone3 hides its flags in memory, and libc falls back to clone on ENOSYS */
    {EPERM, "setns"}, {ENOSYS, "clone3"},
    /* the kernel itself */
    {EPERM, "bpf"}, {EPERM, "perf_event_open"}, {EPERM, "userfaultfd"}, {EPERM, "syslog"},
    {EPERM, "kexec_load"}, {EPERM, "kexec_file_load"}, {EPERM, "init_module"},
    {EPERM, "finit_module"}, {EPERM, "delete_module"}, {EPERM, "create_module"},
    {EPERM, "reboot"}, {EPERM, "swapon"}, {EPERM, "swapoff"}, {EPERM, "acct"},
    {EPERM, "quotactl"}, {EPERM, "quotactl_fd"}, {EPERM, "lookup_dcookie"}, {EPERM, "iopl"},
    {EPERM, "ioperm"}, {EPERM, "settimeofday"}, {EPERM, "stime"}, {EPERM, "clock_settime"},
    {EPERM, "clock_settime64"}, {EPERM, "open_by_handle_at"}, {EPERM, "vhangup"},
    {EPERM, "_sysctl"}, {EPERM, "nfsservctl"}, {EPERM, "uselib"}, {EPERM, "vm86"},
    {EPERM, "vm86old"},
    /* keyrings are not namespaced by our boundaries */
    {EPERM, "add_key"}, {EPERM, "request_key"}, {EPERM, "keyctl"},
    /* its contexts count against one small table of the whole host, fs.aio-max-nr */
    {ENOSYS, "io_setup"},
    {ENOSYS, "io_uring_setup"}, {ENOSYS, "io_uring_enter"}, {ENOSYS, "io_uring_register"},
};

/* Newer than the libseccomp at hand may be; numbers are common to all architectures from 424 on. */
static const struct {
  int code, number;
} refused_numbers[] = {
    {EPERM, 428},  /* open_tree */
    {EPERM, 429},  /* move_mount */
    {EPERM, 430},  /* fsopen */
    {EPERM, 431},  /* fsconfig */
    {EPERM, 432},  /* fsmount */
    {EPERM, 433},  /* fspick */
    {EPERM, 442},  /* mount_setattr */
    {EPERM, 443},  /* quotactl_fd */
    {ENOSYS, 457}, /* statmount */
    {ENOSYS, 458}, /* listmount */
    {EPERM, 467},  /* open_tree_attr */
    {ENOSYS, 470}, /* listns */
};

/* time, mount, cgroup, uts, ipc, user, pid, net. The first is no flag of clone, where these bits
 * are the exit signal. */
static const uint64_t namespaces[] = {0x80,       0x20000,    0x2000000,  0x4000000,
                                      0x8000000,  0x10000000, 0x20000000, 0x40000000};

/* By the bits in which they are looked at: 8 of the number, 8 of the type, then size and direction.
 *
 * Of btrfs (type 0x94) the reflinks alone are left: FICLONE (9), FICLONERANGE (13) and FIDEDUPERANGE
 * (54), which cp and package managers use. The rest makes nested subvolumes, seals the root read-only
 * for good, forces commits that all sandboxes wait for, or tells of the pool. */
static const struct {
  uint64_t mask, value;
} refused_ioctls[] = {
    {0xffffffff, 0x5412},                     /* TIOCSTI: types into another's terminal */
    {0xffffffff, 0x541c},                     /* TIOCLINUX */
    {0xffffffff, 0x5423},                     /* TIOCSETD: line disciplines, old kernel code */
    {0xff80, 0x9480}, {0xff40, 0x9440},       /* 64 and above */
    {0xfff0, 0x9410}, {0xfff0, 0x9420},       /* 16 to 47 */
    {0xfff8, 0x9400}, {0xfff9, 0x9408},       /* 0 to 7; 8, 10, 12, 14 */
    {0xfffb, 0x940b},                         /* 11, 15 */
    {0xfff8, 0x9438}, {0xfffc, 0x9430},       /* 56 to 63; 48 to 51 */
    {0xfffe, 0x9434}, {0xffff, 0x9437},       /* 52, 53; 55 */
};

/* Families that lead out of the network namespace (vsock, to the hypervisor) or into kernel code
 * that no build needs. */
static const uint64_t refused_families[] = {
    3 /* AX25 */,       4 /* IPX */,    5 /* APPLETALK */, 6 /* NETROM */, 9 /* X25 */,
    11 /* ROSE */,      12 /* DECnet */, 19 /* ECONET */,  20 /* ATMSVC */, 21 /* RDS */,
    22 /* SNA */,       23 /* IRDA */,  26 /* LLC */,      27 /* IB */,    28 /* MPLS */,
    29 /* CAN */,       30 /* TIPC */,  31 /* BLUETOOTH */, 32 /* IUCV */, 33 /* RXRPC */,
    34 /* ISDN */,      35 /* PHONET */, 36 /* IEEE802154 */, 37 /* CAIF */, 38 /* ALG */,
    39 /* NFC */,       40 /* VSOCK */, 41 /* KCM */,      42 /* QIPCRTR */, 43 /* SMC */,
    44 /* XDP */,       45 /* MCTP */,
};

static int add(scmp_filter_ctx context, int code, int number, unsigned count,
               struct scmp_arg_cmp compare) {
  int outcome = seccomp_rule_add_array(context, SCMP_ACT_ERRNO((uint32_t)code), number, count,
                                       count ? &compare : NULL);
  return outcome == -EEXIST ? 0 : outcome;
}

/* Rules are given by the native number, whatever the architecture that they are for. */
static int add_name(scmp_filter_ctx context, int code, const char *name) {
  int number = seccomp_syscall_resolve_name(name);
  if (number == __NR_SCMP_ERROR)
    return 0; /* not of this architecture, or newer than the library: see refused_numbers */
  return add(context, code, number, 0, (struct scmp_arg_cmp){0});
}

/* Both halves of personality's odd flags: READ_IMPLIES_EXEC, ADDR_COMPAT_LAYOUT, MMAP_PAGE_ZERO,
 * SHORT_INODE, WHOLE_SECONDS, STICKY_TIMEOUTS. Asking (all bits set) stays allowed, and so does
 * ADDR_NO_RANDOMIZE, which debuggers set. */
static int refuse_personality(scmp_filter_ctx context, int number) {
  static const uint64_t odd[] = {0x100000, 0x200000, 0x400000, 0x1000000, 0x2000000, 0x4000000};
  int outcome = 0;
  for (unsigned i = 0; i < COUNT(odd) && outcome == 0; i++)
    outcome = add(context, EPERM, number, 1,
                  SCMP_A0_64(SCMP_CMP_MASKED_EQ, odd[i] | 0x80, odd[i]));
  return outcome;
}

static int refuse_by_argument(scmp_filter_ctx context) {
  int outcome = 0;
  int clone = seccomp_syscall_resolve_name("clone");
  int unshare = seccomp_syscall_resolve_name("unshare");
  for (unsigned i = 0; i < COUNT(namespaces) && outcome == 0; i++) {
    struct scmp_arg_cmp flag = SCMP_A0_64(SCMP_CMP_MASKED_EQ, namespaces[i], namespaces[i]);
    outcome = add(context, EPERM, unshare, 1, flag);
    if (outcome == 0 && i > 0)
      outcome = add(context, EPERM, clone, 1, flag);
  }
  int ioctl = seccomp_syscall_resolve_name("ioctl");
  for (unsigned i = 0; i < COUNT(refused_ioctls) && outcome == 0; i++)
    outcome = add(context, EPERM, ioctl, 1,
                  SCMP_A1_64(SCMP_CMP_MASKED_EQ, refused_ioctls[i].mask,
                             refused_ioctls[i].value));
  /* Root inside has init's user id, and with that the right to starve it of descriptors or CPU time. */
  if (outcome == 0)
    outcome = add(context, EPERM, seccomp_syscall_resolve_name("prlimit64"), 1,
                  SCMP_A0_32(SCMP_CMP_EQ, 1));
  if (outcome == 0)
    outcome = refuse_personality(context, seccomp_syscall_resolve_name("personality"));

  int calls[] = {seccomp_syscall_resolve_name("socket"),
                 seccomp_syscall_resolve_name("socketpair")};
  for (unsigned i = 0; i < COUNT(refused_families) && outcome == 0; i++)
    for (unsigned k = 0; k < COUNT(calls) && outcome == 0; k++)
      outcome = add(context, EAFNOSUPPORT, calls[k], 1,
                    SCMP_A0_64(SCMP_CMP_MASKED_EQ, 0xffffffff, refused_families[i]));
  return outcome;
}

static int fill(scmp_filter_ctx context, uint32_t arch) {
  int outcome = 0;
  for (unsigned i = 0; i < COUNT(refused) && outcome == 0; i++)
    outcome = add_name(context, refused[i].code, refused[i].name);
  for (unsigned i = 0; i < COUNT(refused_numbers) && outcome == 0; i++) {
    outcome = add(context, refused_numbers[i].code, refused_numbers[i].number, 0,
                  (struct scmp_arg_cmp){0});
    /* It can't translate a number that it doesn't know; nothing mounts without move_mount. */
    if (outcome == -EFAULT && arch != seccomp_arch_native())
      outcome = 0;
  }
  return outcome == 0 ? refuse_by_argument(context) : outcome;
}

/* A context of one architecture: rules with arguments differ, so each is filled alone. Calls of
 * architectures that are in none (x32) are answered with ENOSYS. */
static int make(uint32_t arch, scmp_filter_ctx *made) {
  scmp_filter_ctx context = seccomp_init(SCMP_ACT_ALLOW);
  int outcome = context ? 0 : -ENOMEM;
  if (outcome == 0 && arch != seccomp_arch_native()) {
    outcome = seccomp_arch_add(context, arch);
    if (outcome == 0)
      outcome = seccomp_arch_remove(context, SCMP_ARCH_NATIVE);
  }
  if (outcome == 0)
    outcome = seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS));
  if (outcome == 0)
    outcome = seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a binary tree */
  if (outcome == 0)
    outcome = fill(context, arch);
  if (outcome < 0) {
    seccomp_release(context);
    return outcome;
  }
  *made = context;
  return 0;
}

static int read_back(int fd, void **filter, size_t *length, struct tp_error *err) {
  struct stat st;
  if (fstat(fd, &st) < 0)
    return tp_fail(err, errno, "measure filter");
  TP_FREE void *bytes = malloc((size_t)st.st_size);
  if (!bytes || pread(fd, bytes, (size_t)st.st_size, 0) != (ssize_t)st.st_size)
    return tp_fail(err, bytes ? EIO : ENOMEM, "read filter");
  *filter = bytes;
  *length = (size_t)st.st_size;
  bytes = NULL;
  return 0;
}

int tp_seccomp_filter(void **filter, size_t *length, struct tp_error *err) {
  uint32_t second = seccomp_arch_native() == SCMP_ARCH_X86_64    ? SCMP_ARCH_X86
                    : seccomp_arch_native() == SCMP_ARCH_AARCH64 ? SCMP_ARCH_ARM
                                                                 : 0;
  scmp_filter_ctx context = NULL, other = NULL;
  int outcome = make(seccomp_arch_native(), &context);
  if (outcome == 0 && second) {
    outcome = make(second, &other);
    if (outcome == 0)
      outcome = seccomp_merge(context, other); /* takes `other` over */
    if (outcome < 0 && other)
      seccomp_release(other);
  }
  TP_CLOSE int fd = outcome == 0 ? memfd_create("filter", MFD_CLOEXEC) : -1;
  if (outcome == 0)
    outcome = fd < 0 ? -errno : seccomp_export_bpf(context, fd);
  if (context)
    seccomp_release(context);
  if (outcome < 0)
    return tp_fail(err, -outcome, "make the system call filter");
  return read_back(fd, filter, length, err);
}
