/* System calls that touch no errno, and clone3 on a stack of its own: for code that shares its
 * memory, and so libc's errno, with a process that runs at the same time. */
#ifndef TP_RAW_H
#define TP_RAW_H

#include <linux/sched.h>
#include <stdint.h>
#include <sys/syscall.h>

/* The result, or -errno. */
static inline long tp_raw(long number, long a, long b, long c, long d) {
#if defined(__x86_64__)
  long result;
  register long r10 __asm__("r10") = d;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                   : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
  return x0;
#else
#error "system calls of this architecture"
#endif
}

/* clone3 whose child calls fn(arg), which must not return, on args->stack. The pid, or -errno.
 * libc's clone can't place a child in a cgroup and its syscall() can't return on another stack. */
static inline long tp_raw_clone3(struct clone_args *args, void (*fn)(void *), void *arg) {
#if defined(__x86_64__)
  long result;
  register void (*r12)(void *) __asm__("r12") = fn;
  register void *r13 __asm__("r13") = arg;
  __asm__ volatile("syscall\n\t"
                   "test %%rax, %%rax\n\t"
                   "jnz 1f\n\t"
                   "xor %%ebp, %%ebp\n\t"
                   "mov %%r13, %%rdi\n\t"
                   "call *%%r12\n\t"
                   "hlt\n"
                   "1:"
                   : "=a"(result)
                   : "0"((long)SYS_clone3), "D"(args), "S"(sizeof *args), "r"(r12), "r"(r13)
                   : "rcx", "r11", "memory", "cc");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = SYS_clone3;
  register long x0 __asm__("x0") = (long)args;
  register long x1 __asm__("x1") = sizeof *args;
  register void (*x9)(void *) __asm__("x9") = fn;
  register void *x10 __asm__("x10") = arg;
  __asm__ volatile("svc 0\n\t"
                   "cbnz x0, 1f\n\t"
                   "mov x29, xzr\n\t"
                   "mov x0, x10\n\t"
                   "blr x9\n\t"
                   "brk 1\n"
                   "1:"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x9), "r"(x10)
                   : "memory", "cc", "x30");
  return x0;
#endif
}

#endif
