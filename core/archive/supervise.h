/* Running a confined worker: the supervisor stays root, opens nothing more, and only listens. */
#ifndef TP_SUPERVISE_H
#define TP_SUPERVISE_H

#include <stdbool.h>

#include "report.h"

/* Forks a worker into a new pid namespace with only /dev/null for its standard descriptors (but
 * standard input when `keeps_stdin`); `work` gets the descriptor for its reports and never returns.
 * Shows "progress BYTES ENTRIES DONE TOTAL" lines, and fills `last` with the report of its success.
 * -1 with what the worker said, or EIO when it ended without a word. */
int tp_supervise(void (*work)(void *data, int report_fd), void *data, bool keeps_stdin,
                 struct tp_report *last, struct tp_error *err);

/* In the worker: about five times a second, send the report as it stands. The first time at once, as
 * soon as it is confined; ends the worker when nobody listens. */
void tp_report_progress(struct tp_report *report, int report_fd, int64_t *reported);

/* In the worker: its last word; never returns. */
__attribute__((noreturn)) void tp_report_end(struct tp_report *report, int report_fd, int result,
                                             const struct tp_error *err);

#endif
