/* Ends a process whose policy does not come back, and tells the server which it was.
 *
 * Runs in the egress process. A debug hook counts Lua instructions, but not what one call of a C
 * function does (string.find with an evil pattern). So a tick of the process's own CPU time looks
 * whether one run has lasted for too many ticks; then it writes so into a page that the server shares,
 * and exits. Idle processes get no ticks, and arming costs no system call. */
#ifndef TP_WATCHDOG_H
#define TP_WATCHDOG_H

#include <stddef.h>

#include "../error.h"

#define TP_WATCHDOG_TEXT 512u
#define TP_WATCHDOG_EXIT 99 /* the process's exit code */

enum tp_watchdog_state { TP_WATCHDOG_IDLE, TP_WATCHDOG_RUNNING, TP_WATCHDOG_OVERDUE };

/* `fd`: a file of at least a page. `seconds` of CPU time that a run may last, give or take a tenth.
 * Once a process: EALREADY. Takes SIGPROF. */
int tp_watchdog_start(int fd, double seconds, struct tp_error *err);

/* A run begins, of whom the text tells; it is cut at TP_WATCHDOG_TEXT. Nothing before start. */
void tp_watchdog_arm(const char *text, size_t length);
/* It has come back. */
void tp_watchdog_disarm(void);

/* What a page says: the state, and the text in room for TP_WATCHDOG_TEXT bytes (none when idle, and
 * nothing but printable ASCII else, since the page was another's to write). EBADMSG: not such a page. */
int tp_watchdog_read(int fd, char *text, size_t *length, struct tp_error *err);

/* Let the process map so many bytes more than it has now, so that an allocation fails where the host
 * would begin to swap. For good. */
int tp_watchdog_limit_memory(size_t bytes, struct tp_error *err);

#endif
