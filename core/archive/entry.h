/* Entries of the layer that is being packed: what compare.h finds, into what sink.h writes. */
#ifndef TP_ENTRY_H
#define TP_ENTRY_H

#include "compare.h"
#include "report.h"
#include "sink.h"

struct tp_pack {
  struct tp_sink sink;
  bool against_base; /* what is left out must then be hidden */
  uint64_t holes;    /* bytes so far */
  int report_fd;
  int64_t reported;
  struct tp_report report;
  struct tp_links {
    struct tp_link {
      uint64_t inode;
      char *path;
    } *slots;
    size_t size, used;
  } links;
};

/* As tp_compare's callbacks, with a tp_pack as their data. */
int tp_entry_found(struct tp_compare *compare, int directory, const char *name,
                   const struct statx *st, struct tp_error *err);
int tp_entry_gone(struct tp_compare *compare, struct tp_error *err);

void tp_links_free(struct tp_links *links);

#endif
