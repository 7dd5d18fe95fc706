/* How a primitive says what failed: a message that names the path to the failure, and errno.
 *
 * A fallible function takes `struct tp_error *err` last and fills it exactly when it returns -1.
 * Callers on the way up add their context in front with tp_wrap. Used by every program of ours. */
#ifndef TP_ERROR_H
#define TP_ERROR_H

struct tp_error {
  int code; /* an errno value, never 0 once filled */
  char message[512];
};

/* Fill err with "FORMAT: strerror(code)" and return -1. */
int tp_fail(struct tp_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "FORMAT: " in front of the message that is there and return -1. */
int tp_wrap(struct tp_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The symbolic name of an errno value ("ENOENT"), or "EUNKNOWN". Static storage. */
const char *tp_error_name(int code);

#endif
