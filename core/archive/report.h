/* What a confined worker tells its supervisor, one record a write.
 *
 * The one that unpacks parses hostile bytes, so the supervisor takes records of one fixed size, checks the
 * kind, ends the text itself and prints nothing unprintable. Smaller than PIPE_BUF: never torn. */
#ifndef TP_REPORT_H
#define TP_REPORT_H

#include <stdint.h>

#include "../error.h"

enum tp_report_kind { TP_REPORT_PROGRESS = 1, TP_REPORT_DONE, TP_REPORT_FAILED };

struct tp_report {
  uint32_t kind;
  int32_t code;     /* errno value of a failure */
  uint64_t bytes;   /* file content unpacked, or packed, so far */
  uint64_t entries; /* archive entries seen, or written, so far */
  uint64_t skipped; /* device nodes, sockets and foreign attributes left out */
  uint64_t done;    /* of `total`: stored bytes of all layers read, or content packed */
  uint64_t total;   /* 0: not known */
  uint64_t stored;  /* bytes of the layer that was written */
  char text[sizeof((struct tp_error *)0)->message];
};

#endif
