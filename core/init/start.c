/* Starting processes and agents: the clone, the wait for exec, the time limit.
 *
 * A process is cloned with CLONE_VM on a stack of its own, straight into its cgroup: page tables
 * are dear to copy. init goes on at once; a close-on-exec pipe tells it of exec (end of file, when
 * the child has left init's memory) or of what failed. An agent is a real fork, since it stays. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "init.h"
#include "raw.h"

#define STACK_SIZE (64u << 10)
#define FILTER_MOST 4096u /* instructions, BPF_MAXINSNS */
#define MAX_STARTS 256u

struct start {
  struct source status; /* first member: read end */
  struct start *next;
  struct origin origin;
  struct process *process; /* NULL: an agent */
  pid_t pid;
  int attach;
  uint32_t attach_flags;
  uint64_t deadline;
  bool timed_out;
  struct child child;
  void *stack;
  char *texts;  /* strings and the arrays of argv and env */
};

static struct start *starts;
static unsigned start_count;
static void *spare_stack; /* touched pages are dear: the last stack is kept */
static void *filter;
static unsigned short filter_length;
static struct rlimit files;

int start_init(void) {
  /* Children get the limit that init was given; init itself needs what it can have. */
  getrlimit(RLIMIT_NOFILE, &files);
  struct rlimit most = {files.rlim_max, files.rlim_max};
  setrlimit(RLIMIT_NOFILE, &most);

  int fd = open(TP_INIT_FILTER, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return errno == ENOENT ? 0 : -1;
  filter = malloc(FILTER_MOST * 8);
  ssize_t got = filter ? read(fd, filter, FILTER_MOST * 8) : -1;
  close(fd);
  if (got < 8 || got % 8)
    return -1; /* a filter that can't be used must not be left out */
  filter_length = (unsigned short)(got / 8);
  filter = realloc(filter, (size_t)got);
  return 0;
}

static void *stack_take(void) {
  void *stack = spare_stack;
  spare_stack = NULL;
  if (stack)
    return stack;
  stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK,
               -1, 0);
  if (stack == MAP_FAILED)
    return NULL;
  mprotect(stack, 4096, PROT_NONE);
  return stack;
}

static void stack_give(void *stack) {
  if (!stack)
    return;
  if (spare_stack)
    munmap(stack, STACK_SIZE);
  else
    spare_stack = stack;
}

static char *put_text(char **room, struct tp_bytes text) {
  char *at = *room;
  if (text.length)
    memcpy(at, text.data, text.length);
  at[text.length] = 0;
  *room += text.length + 1;
  return at;
}

static size_t list_size(struct tp_list list, unsigned extra) {
  return list.length + list.count + (list.count + extra + 1) * sizeof(char *);
}

static char **put_list(char ***pointers, char **room, struct tp_list list, unsigned extra) {
  char **array = *pointers;
  struct tp_bytes item;
  unsigned count = 0;
  while (tp_list_next(&list, &item))
    array[count++] = put_text(room, item);
  array[count] = NULL;
  *pointers += count + 1 + extra;
  return array;
}

static int copy_texts(struct start *start, const struct tp_init_start *request) {
  size_t size = list_size(request->argv, 1) + list_size(request->env, ENV_EXTRA) +
                request->user.length + request->cwd.length + 2;
  char **pointers = malloc(size);
  if (!pointers)
    return -1;
  start->texts = (char *)pointers;
  char *room = start->texts + (request->argv.count + 2 + request->env.count + 1 + ENV_EXTRA) *
                                  sizeof(char *);
  pointers[0] = NULL; /* for the shell's name, should it be a script without one */
  pointers++;
  start->child.argv = put_list(&pointers, &room, request->argv, 0);
  start->child.envp = put_list(&pointers, &room, request->env, ENV_EXTRA);
  start->child.env_count = request->env.count;
  start->child.user = put_text(&room, request->user);
  start->child.cwd = put_text(&room, request->cwd);
  return 0;
}

static void start_free(struct start *start) {
  for (struct start **at = &starts; *at; at = &(*at)->next)
    if (*at == start) {
      *at = start->next;
      start_count--;
      break;
    }
  source_close(&start->status);
  if (start->attach >= 0)
    close(start->attach);
  stack_give(start->stack);
  free(start->texts);
  free_later(start);
}

static void report(struct start *start, const struct child_failure *failure) {
  static const char *const steps[] = {"start process", "find user", "change directory", "execute",
                                      "start process"};
  char text[64];
  unsigned step = failure->step < 5 ? failure->step : TP_STEP_SPAWN;
  if (start->timed_out)
    snprintf(text, sizeof text, "start process within %d seconds", START_TIMEOUT / 1000);
  else
    snprintf(text, sizeof text, "%s", steps[step]);
  control_fail(&start->origin, start->timed_out ? TP_STEP_SPAWN : step,
               start->timed_out ? ETIMEDOUT : failure->code, text);
}

/* Sandboxes' processes go before init when memory runs out. Written by init after exec, since
 * before it the value is that of everyone who shares the memory, and raising needs no privilege. */
static void expose_to_oom(pid_t pid) {
  char path[40];
  snprintf(path, sizeof path, "/proc/%d/oom_score_adj", (int)pid);
  int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return;
  if (write(fd, "50", 2) < 0) {
    /* Nothing to be done: it stays as likely a victim as init. */
  }
  close(fd);
}

static void answer_started(const struct origin *origin, uint32_t id, pid_t pid) {
  struct tp_init_reply reply = {.type = TP_INIT_STARTED};
  reply.started.id = id;
  reply.started.pid = (uint32_t)pid;
  control_reply(origin, &reply, NULL, 0);
}

/* The child is gone or has left our memory: only now may what it used be freed. */
static void status_ready(struct source *source, uint32_t events) {
  (void)events;
  struct start *start = (struct start *)source;
  struct child_failure failure = {TP_STEP_SPAWN, EIO};
  ssize_t got = read(source->fd, &failure, sizeof failure);
  if (got < 0 && (errno == EAGAIN || errno == EINTR))
    return;

  struct process *process = start->process;
  if (got == sizeof failure || start->timed_out) {
    report(start, &failure);
    if (process)
      process_free(process);
    start_free(start);
    return;
  }

  answer_started(&start->origin, process ? process->id : 0, start->pid);
  expose_to_oom(start->pid);
  if (process) {
    process->live = true;
    input_interest(process);
    if (start->attach >= 0) {
      int code = attach_open(process, start->attach, start->attach_flags, 0);
      start->attach = code == 0 ? -1 : start->attach;
    }
    process_pump(process);
  }
  start_free(start);
}

static struct start *start_new(const struct origin *origin, int attach) {
  struct start *start = calloc(1, sizeof *start);
  if (!start)
    return NULL;
  start->origin = *origin;
  start->status.fd = -1;
  start->attach = attach;
  start->deadline = now_ms() + START_TIMEOUT;
  start->child = (struct child){.status = -1, .in = -1, .out = -1, .err = -1, .terminal = -1};
  start->child.filter = filter;
  start->child.filter_length = filter_length;
  start->child.files = files;
  return start;
}

static int launch(struct start *start, uint64_t flags, int cgroup) {
  int status[2];
  if (pipe2(status, O_CLOEXEC | O_NONBLOCK) < 0)
    return errno;
  start->child.status = status[1];
  source_init(&start->status, status[0], status_ready);

  struct tp_clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
  if (cgroup >= 0) {
    args.flags |= TP_CLONE_INTO_CGROUP;
    args.cgroup = (uint64_t)cgroup;
  }
  if (start->stack) {
    args.stack = (uint64_t)(uintptr_t)start->stack;
    args.stack_size = STACK_SIZE;
  }
  long pid = start->stack ? tp_raw_clone3(&args, child_exec, &start->child)
                          : tp_raw(SYS_clone3, &args, sizeof args);
  if (pid == 0)
    return 0; /* the agent's side */
  close(status[1]);
  if (pid < 0)
    return (int)-pid;

  start->pid = (pid_t)pid;
  start->next = starts;
  starts = start;
  start_count++;
  source_want(&start->status, EPOLLIN);
  return 0;
}

/* Make the ends of the process's streams; ours go to the process, theirs to *child. */
static int open_streams(struct process *process, struct child *child,
                        const struct tp_init_start *request) {
  if (request->flags & TP_START_TTY) {
    int master, code = terminal_open(&master, &process->slave, request->cols, request->rows);
    if (code)
      return code;
    source_init(&process->output[0].source, master, process_output_ready);
    child->terminal = process->slave;
    child->tty = true;
    return 0;
  }

  int out[2], err[2], in[2];
  if (pipe2(out, O_CLOEXEC) < 0)
    return errno;
  child->out = out[1];
  source_init(&process->output[0].source, out[0], process_output_ready);
  if (pipe2(err, O_CLOEXEC) < 0)
    return errno;
  child->err = err[1];
  source_init(&process->output[1].source, err[0], process_output_ready);
  /* Our ends alone: the flag belongs to the open file, and a pipe has one for each end. */
  fcntl(out[0], F_SETFL, O_NONBLOCK);
  fcntl(err[0], F_SETFL, O_NONBLOCK);
  if (request->flags & TP_START_STDIN) {
    if (pipe2(in, O_CLOEXEC) < 0)
      return errno;
    child->in = in[0];
    source_init(&process->input, in[1], input_ready);
    fcntl(in[1], F_SETFL, O_NONBLOCK);
  }
  return 0;
}

/* Only the descriptors: the child may not have read the numbers yet. */
static void close_child_ends(const struct child *child) {
  const int ends[] = {child->in, child->out, child->err};
  for (unsigned i = 0; i < 3; i++)
    if (ends[i] >= 0)
      close(ends[i]);
}

/* Pending with the same key: its answer goes to whoever asked last. */
static struct start *pending_by_key(struct tp_bytes key) {
  for (struct start *start = starts; key.length && start; start = start->next)
    if (start->process && start->process->key.length == key.length &&
        memcmp(start->process->key.data, key.data, key.length) == 0)
      return start;
  return NULL;
}

static bool repeated(const struct origin *origin, const struct tp_init_start *request, int attach) {
  struct start *pending = pending_by_key(request->key);
  if (pending) {
    if (pending->origin.control)
      control_fail(&pending->origin, TP_STEP_REQUEST, ECANCELED, "start asked again elsewhere");
    pending->origin = *origin;
    if (attach >= 0) {
      if (pending->attach >= 0)
        close(pending->attach);
      pending->attach = attach;
      pending->attach_flags = request->attach;
    }
    return true;
  }
  struct process *process = process_by_key(request->key);
  if (!process)
    return false;
  answer_started(origin, process->id, process->pid);
  if (attach >= 0) {
    if (attach_open(process, attach, request->attach, 0) != 0)
      close(attach);
    else
      process_pump(process);
  }
  return true;
}

/* Takes `attach` over, not `cgroup`. */
void start_process(const struct origin *origin, const struct tp_init_start *request, int cgroup,
                   int attach) {
  if (repeated(origin, request, attach))
    return;
  int code = 0;
  struct start *start = NULL;
  if (process_count() >= MAX_PROCESSES || start_count >= MAX_STARTS)
    code = EAGAIN;
  else if (!(start = start_new(origin, attach)))
    code = ENOMEM;
  if (code) {
    if (attach >= 0)
      close(attach);
    control_fail(origin, TP_STEP_SPAWN, code, "start process");
    return;
  }

  start->attach_flags = request->attach;
  start->process = process_new(request);
  start->stack = stack_take();
  if (!start->process || !start->stack || copy_texts(start, request) < 0)
    code = ENOMEM;
  if (!code)
    code = open_streams(start->process, &start->child, request);
  if (!code)
    code = launch(start, CLONE_VM | TP_CLONE_CLEAR_SIGHAND, cgroup);
  close_child_ends(&start->child);
  if (code) {
    control_fail(origin, TP_STEP_SPAWN, code, "start process");
    if (start->process)
      process_free(start->process);
    start_free(start);
    return;
  }
  start->process->pid = start->pid;
}

/* In the fork: become the user, tell init, serve the socket. */
static _Noreturn void agent_child(struct start *start, int socket) {
  struct child_failure failure = {0, 0};
  int fd = fcntl(socket, F_DUPFD_CLOEXEC, 3);
  if (child_become(&start->child, &failure) < 0) {
    if (write(start->child.status, &failure, sizeof failure) < 0)
      _exit(126);
    _exit(127);
  }
  memset(init_nonce, 0, sizeof init_nonce);
  dup2(fd, 3);
  /* Also the status pipe's end, which says "started". */
  tp_raw(SYS_close_range, 4, -1, 0);
  agent_run(3);
}

/* Takes neither descriptor over. */
void start_agent(const struct origin *origin, struct tp_bytes user, int cgroup, int socket) {
  struct start *start = start_count < MAX_STARTS ? start_new(origin, -1) : NULL;
  int code = start ? 0 : EAGAIN;
  const struct tp_init_start request = {.user = user};
  if (!code && copy_texts(start, &request) < 0)
    code = ENOMEM;
  if (!code)
    code = launch(start, TP_CLONE_CLEAR_SIGHAND, cgroup);
  if (!code && start->pid == 0)
    agent_child(start, socket);
  if (code) {
    control_fail(origin, TP_STEP_SPAWN, code, "start agent");
    if (start)
      start_free(start);
  }
}

void start_forget_control(const struct control *control) {
  for (struct start *start = starts; start; start = start->next)
    if (start->origin.control == control)
      start->origin.control = NULL;
}

void start_settle(pid_t pid) {
  for (struct start *start = starts; start; start = start->next)
    if (start->pid == pid) {
      status_ready(&start->status, EPOLLIN);
      return;
    }
}

int start_timeout(void) {
  uint64_t now = starts ? now_ms() : 0;
  int next = -1;
  for (struct start *start = starts; start; start = start->next) {
    if (start->timed_out)
      continue;
    if (start->deadline <= now) {
      start->timed_out = true;
      kill(start->pid, SIGKILL); /* still ours: reaping it would have settled the start */
    } else if (next < 0 || start->deadline - now < (uint64_t)next) {
      next = (int)(start->deadline - now);
    }
  }
  return next;
}

bool start_pending(void) {
  return start_count > 0;
}
