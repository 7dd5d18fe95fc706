/* Applying one tar stream to the current directory, which is the confined worker's root.
 *
 * Names are cut to relative ones; `..` ends the run, as does any entry that can't be restored as
 * it is written: an image is whole or not there. What an image may legitimately hold and a sandbox
 * must not (device nodes, sockets, trusted.* attributes) is left out and counted. */
#ifndef TP_LAYER_H
#define TP_LAYER_H

#include "report.h"
#include "source.h"

struct tp_unpack {
  bool plain;           /* files and directories alone, of mode 0600 and 0700, no whiteouts */
  uint64_t max_bytes;   /* of all layers together, before and after holes */
  uint64_t max_entries; /* of all layers together */
  unsigned max_id;      /* largest uid and gid that the range can hold */
  int report_fd;
  struct tp_report report;
  int64_t reported; /* when, monotonic, milliseconds */
  uint64_t stored;  /* bytes of the layers before this one, as they are stored */
};

int tp_layer_apply(struct tp_unpack *unpack, const struct tp_layer *layer, struct tp_error *err);

#endif
