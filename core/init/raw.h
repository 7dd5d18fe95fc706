/* System calls that return -errno and touch nothing else, and the kernel's numbers that musl lacks.
 *
 * Between clone and exec a child of init shares init's memory (CLONE_VM), its thread pointer
 * included: a libc wrapper there would write init's errno. So child.c uses these alone. */
#ifndef TP_INIT_RAW_H
#define TP_INIT_RAW_H

#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define TP_CLONE_CLEAR_SIGHAND 0x100000000ULL
#define TP_CLONE_INTO_CGROUP 0x200000000ULL
#define TP_CLOSE_RANGE_CLOEXEC 4u

struct tp_clone_args {
  uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
      set_tid_size, cgroup;
};

struct tp_sock_fprog {
  unsigned short length;
  const void *filter;
};

#if defined __x86_64__
static inline long tp_raw6(long n, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

/* clone3; the child runs function(argument) on the new stack and exits with what it returns. */
static inline long tp_raw_clone3(struct tp_clone_args *args, int (*function)(void *),
                                 void *argument) {
  long result;
  register int (*r8)(void *) __asm__("r8") = function;
  register void *r9 __asm__("r9") = argument;
  __asm__ volatile("syscall\n\t"
                   "test %%rax, %%rax\n\t"
                   "jnz 1f\n\t"
                   "xor %%ebp, %%ebp\n\t"
                   "mov %%r9, %%rdi\n\t"
                   "call *%%r8\n\t"
                   "mov %%eax, %%edi\n\t"
                   "mov $60, %%eax\n\t"
                   "syscall\n\t"
                   "hlt\n"
                   "1:"
                   : "=a"(result)
                   : "a"((long)SYS_clone3), "D"(args), "S"(sizeof *args), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
#elif defined __aarch64__
static inline long tp_raw6(long n, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = n;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
}

static inline long tp_raw_clone3(struct tp_clone_args *args, int (*function)(void *),
                                 void *argument) {
  register long x8 __asm__("x8") = SYS_clone3;
  register long x0 __asm__("x0") = (long)args;
  register long x1 __asm__("x1") = sizeof *args;
  register void *x2 __asm__("x2") = argument;
  register int (*x3)(void *) __asm__("x3") = function;
  __asm__ volatile("svc 0\n\t"
                   "cbnz x0, 1f\n\t"
                   "mov x29, #0\n\t"
                   "mov x0, x2\n\t"
                   "blr x3\n\t"
                   "mov x8, #93\n\t"
                   "svc 0\n"
                   "1:"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3)
                   : "memory");
  return x0;
}
#else
#error "init knows x86_64 and aarch64"
#endif

#define tp_raw(n, ...) TP_RAW_PICK(n, __VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define TP_RAW_PICK(n, a, b, c, d, e, f, ...)                                                      \
  tp_raw6((long)(n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#endif
