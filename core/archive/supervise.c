/* Running a confined worker: see supervise.h. */
#include "supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../scope.h"

#define PROGRESS_MS 200

void tp_report_progress(struct tp_report *report, int report_fd, int64_t *reported) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  int64_t ms = now.tv_sec * 1000 + now.tv_nsec / 1000000;
  if (ms - *reported < PROGRESS_MS)
    return;
  *reported = ms;
  report->kind = TP_REPORT_PROGRESS;
  /* A supervisor that is gone takes us with it, but for one that went before we asked for that. */
  if (write(report_fd, report, sizeof *report) < 0)
    _exit(1);
}

void tp_report_end(struct tp_report *report, int report_fd, int result, const struct tp_error *err) {
  report->kind = result < 0 ? TP_REPORT_FAILED : TP_REPORT_DONE;
  if (result < 0) {
    report->code = err->code;
    memcpy(report->text, err->message, sizeof err->message);
  }
  ssize_t sent = write(report_fd, report, sizeof *report);
  _exit(result < 0 || sent < 0 ? 1 : 0);
}

static void become_worker(bool keeps_stdin) {
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = keeps_stdin ? 1 : 0; fd < 3; fd++)
    dup2(null, fd);
  close(null);
}

/* Its word is not trusted beyond numbers. */
static int listen_to(int reports, struct tp_report *last, bool *failed, struct tp_error *err) {
  struct tp_report report = {.kind = 0};
  ssize_t got;
  while ((got = read(reports, &report, sizeof report)) == (ssize_t)sizeof report) {
    report.text[sizeof report.text - 1] = '\0';
    for (char *c = report.text; *c; c++)
      if ((unsigned char)*c < ' ' || *c == 0x7f)
        *c = '?';
    if (report.kind == TP_REPORT_PROGRESS)
      printf("progress %llu %llu %llu %llu\n", (unsigned long long)report.bytes,
             (unsigned long long)report.entries, (unsigned long long)report.done,
             (unsigned long long)report.total);
    if (report.kind == TP_REPORT_FAILED) {
      *failed = true;
      err->code = report.code > 0 ? report.code : EIO;
      memcpy(err->message, report.text, sizeof err->message);
    }
    fflush(stdout);
  }
  *last = report;
  return report.kind == TP_REPORT_DONE;
}

int tp_supervise(void (*work)(void *data, int report_fd), void *data, bool keeps_stdin,
                 struct tp_report *last, struct tp_error *err) {
  int reports[2];
  if (pipe2(reports, O_CLOEXEC) < 0)
    return tp_fail(err, errno, "make pipe");
  TP_CLOSE int reports_read = reports[0];
  if (unshare(CLONE_NEWPID) < 0) {
    close(reports[1]);
    return tp_fail(err, errno, "unshare pid namespace");
  }
  pid_t pid = fork();
  if (pid == 0) {
    become_worker(keeps_stdin);
    close(reports[0]);
    work(data, reports[1]);
  }
  close(reports[1]);
  if (pid < 0)
    return tp_fail(err, errno, "fork");
  close(STDIN_FILENO); /* else whoever feeds us would wait on a worker that is gone */

  bool failed = false, done = listen_to(reports_read, last, &failed, err);
  int status;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
    ;
  if (failed)
    return -1;
  if (!done || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return tp_fail(err, EIO, "the worker ended by %s %d", WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
  return 0;
}
