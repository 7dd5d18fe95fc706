/* What a child of init does between clone and exec: terminal, user, filter, directory, program.
 *
 * It runs in init's memory (CLONE_VM) on a stack of its own, beside init, which does not wait: a
 * user's process could stop a child the moment it has the user's id, and with vfork init would
 * stand still with it. Hence raw system calls alone and nothing of init's written. It is safe from
 * its own user's ptrace because the shared memory is undumpable. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "init.h"
#include "raw.h"

#define SECCOMP_SET_FILTER 1
#define PATH_DEFAULT "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int fail(struct child_failure *failure, enum tp_failed_step step, long code) {
  failure->step = step;
  failure->code = (int32_t)-code;
  return -1;
}

static const char *get_env(const struct child *child, const char *name) {
  size_t length = strlen(name);
  for (unsigned i = 0; i < child->env_count; i++)
    if (strncmp(child->envp[i], name, length) == 0 && child->envp[i][length] == '=')
      return child->envp[i] + length + 1;
  return NULL;
}

/* Add NAME=value, written into room, unless the request has the name. */
static void default_env(struct child *child, char *room, size_t size, const char *name,
                        const char *value) {
  size_t left = strlen(name), right = strlen(value);
  if (get_env(child, name) || left + right + 2 > size)
    return;
  memcpy(room, name, left);
  room[left] = '=';
  memcpy(room + left + 1, value, right + 1);
  child->envp[child->env_count++] = room;
  child->envp[child->env_count] = NULL;
}

/* Signals as a program expects them: none blocked. Handlers were cleared by the clone. */
static void reset_signals(void) {
  uint64_t none = 0;
  tp_raw(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
}

static int set_stdio(const struct child *child, struct child_failure *failure) {
  long code = 0;
  if (child->terminal >= 0) {
    code = tp_raw(SYS_ioctl, child->terminal, TIOCSCTTY, 0);
    for (int i = 0; i < 3 && code >= 0; i++)
      code = tp_raw(SYS_dup3, child->terminal, i, 0);
  } else {
    if (child->in >= 0)
      code = tp_raw(SYS_dup3, child->in, 0, 0);
    if (code >= 0)
      code = tp_raw(SYS_dup3, child->out, 1, 0);
    if (code >= 0)
      code = tp_raw(SYS_dup3, child->err, 2, 0);
  }
  return code < 0 ? fail(failure, TP_STEP_SPAWN, code) : 0;
}

/* The pipes and the terminal belong to the user, or opening /dev/stdout or /dev/pts/N fails. */
static void give_stdio(const struct child *child, uint32_t uid) {
  if (child->terminal >= 0) {
    tp_raw(SYS_fchown, 0, uid, -1);
    return;
  }
  for (int i = child->in >= 0 ? 0 : 1; i < 3; i++)
    tp_raw(SYS_fchown, i, uid, -1);
}

static int set_identity(const struct child *child, const struct identity *identity,
                        struct child_failure *failure) {
  long code;
  /* First: it takes CAP_SYS_ADMIN, unless no_new_privs, which would break sudo. */
  if (child->filter_length) {
    struct tp_sock_fprog program = {child->filter_length, child->filter};
    code = tp_raw(SYS_seccomp, SECCOMP_SET_FILTER, 0, &program);
    if (code < 0)
      return fail(failure, TP_STEP_SPAWN, code);
  }
  code = tp_raw(SYS_setgroups, identity->group_count, identity->groups);
  if (code >= 0)
    code = tp_raw(SYS_setresgid, identity->gid, identity->gid, identity->gid);
  /* Clears all capabilities unless the id is 0; those of 0 are cut by the bounding set at exec. */
  if (code >= 0)
    code = tp_raw(SYS_setresuid, identity->uid, identity->uid, identity->uid);
  return code < 0 ? fail(failure, TP_STEP_USER, code) : 0;
}

int child_become(struct child *child, struct child_failure *failure) {
  struct identity identity;
  int code = identity_find(child->user, &identity);
  if (code < 0)
    return fail(failure, TP_STEP_USER, code);
  return set_identity(child, &identity, failure);
}

/* A text without an interpreter line is the shell's, as execvp has it. Only returns on failure. */
static long exec_file(const struct child *child, const char *path) {
  long code = tp_raw(SYS_execve, path, child->argv, child->envp);
  if (code != -ENOEXEC)
    return code;
  /* argv has a free place in front (start.c): the shell's name goes there. */
  char **argv = child->argv - 1, *name = child->argv[0];
  argv[0] = (char *)"/bin/sh";
  argv[1] = (char *)path;
  code = tp_raw(SYS_execve, "/bin/sh", argv, child->envp);
  argv[1] = name;
  return code == -ENOENT ? -ENOEXEC : code;
}

static long exec_search(const struct child *child) {
  const char *name = child->argv[0];
  size_t length = strlen(name);
  if (length == 0)
    return -ENOENT;
  if (strchr(name, '/'))
    return exec_file(child, name);

  char path[4096];
  bool denied = false;
  const char *at = get_env(child, "PATH");
  if (!at)
    at = PATH_DEFAULT;
  for (;;) {
    const char *end = strchr(at, ':');
    size_t part = end ? (size_t)(end - at) : strlen(at);
    if (part + length + 2 <= sizeof path) {
      memcpy(path, at, part);
      size_t used = part;
      if (part)
        path[used++] = '/'; /* an empty part is the current directory */
      memcpy(path + used, name, length + 1);
      long code = exec_file(child, path);
      if (code == -EACCES)
        denied = true;
      else if (code != -ENOENT && code != -ENOTDIR && code != -ENAMETOOLONG)
        return code;
    }
    if (!end)
      return denied ? -EACCES : -ENOENT;
    at = end + 1;
  }
}

static int run(struct child *child, struct child_failure *failure) {
  reset_signals();
  tp_raw(SYS_setsid, 0);
  if (set_stdio(child, failure) < 0)
    return -1;
  tp_raw(SYS_close_range, 3, -1, TP_CLOSE_RANGE_CLOEXEC);
  tp_raw(SYS_umask, 022);
  tp_raw(SYS_prlimit64, 0, RLIMIT_NOFILE, &child->files, NULL);

  struct identity identity;
  int code = identity_find(child->user, &identity);
  if (code < 0)
    return fail(failure, TP_STEP_USER, code);
  if (identity.uid != 0)
    give_stdio(child, identity.uid);
  if (set_identity(child, &identity, failure) < 0)
    return -1;

  char home[264], user[80], logname[80], shell[136], path[96], term[24];
  default_env(child, path, sizeof path, "PATH", PATH_DEFAULT);
  default_env(child, home, sizeof home, "HOME", identity.home);
  default_env(child, user, sizeof user, "USER", identity.name);
  default_env(child, logname, sizeof logname, "LOGNAME", identity.name);
  default_env(child, shell, sizeof shell, "SHELL", identity.shell);
  if (child->tty)
    default_env(child, term, sizeof term, "TERM", "xterm-256color");

  long gone = tp_raw(SYS_chdir, *child->cwd ? child->cwd : identity.home);
  if (gone < 0 && !*child->cwd)
    gone = tp_raw(SYS_chdir, "/");
  if (gone < 0)
    return fail(failure, TP_STEP_CWD, gone);
  return fail(failure, TP_STEP_EXEC, exec_search(child));
}

int child_exec(void *argument) {
  struct child *child = argument;
  struct child_failure failure = {0, 0};
  run(child, &failure);
  tp_raw(SYS_write, child->status, &failure, sizeof failure);
  return 127;
}
