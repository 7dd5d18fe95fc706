/* The scrubber: finds secrets in a stream of bytes, however it is cut, and masks them in place.
 *
 * Runs in the egress process over what upstreams answer; an upstream that echoes a credential must
 * not thereby put it into the sandbox. Found are, for each secret:
 *   plain bytes,
 *   base64 and base64url at each of the three alignments, but for the first and last character,
 *     which belong to the neighbours as well,
 * and each of these with any of its bytes written as %XX (either case) or as JSON does (\/ \" \\ \n
 * and so on, \u00XX). Other transformations (compression, encryption, hashes, hex, base64 with line
 * breaks, the secret cut in two) are not found. A mask has the length of what it covers. */
#ifndef TP_SCRUB_H
#define TP_SCRUB_H

#include <stdbool.h>
#include <stddef.h>

#include "../error.h"

#define TP_SCRUB_SHORTEST 8u /* shorter ones would be "found" in innocent text */
#define TP_SCRUB_LONGEST 4096u
#define TP_SCRUB_SECRETS 256u

enum { TP_SCRUB_MASK = 1, TP_SCRUB_DETECT = 2 };

struct tp_scrub; /* compiled once, immutable, counted references, one thread */

struct tp_scrub_pattern {
  const char *bytes;
  size_t length;
  unsigned id; /* not 0 */
};

/* One stream's state; zeroed before its first piece. */
struct tp_scrub_stream {
  size_t masked; /* of what is held, these first bytes belong to a match that has been reported */
};

/* NULL on failure: EINVAL (length, id, too many), ENOMEM. The bytes are copied. The caller owns one
 * reference. */
struct tp_scrub *tp_scrub_new(const struct tp_scrub_pattern *patterns, unsigned count,
                              unsigned flags, struct tp_error *err);
struct tp_scrub *tp_scrub_retain(struct tp_scrub *scrub);
void tp_scrub_release(struct tp_scrub *scrub); /* NULL is harmless */

/* What it was made with. */
unsigned tp_scrub_flags(const struct tp_scrub *scrub);

/* Look through bytes[0..length): what was held of the piece before, then the next piece. The first
 * length - *held bytes are done and may go out; the last *held may begin a match: keep them as they
 * are and put them before the next piece. `last`: the stream ends here, hold nothing.
 * *found is the id of a match seen in this call, or 0. With DETECT alone nothing is written. */
void tp_scrub_run(struct tp_scrub *scrub, struct tp_scrub_stream *stream, char *bytes,
                  size_t length, bool last, size_t *held, unsigned *found);

/* The most that can ever be held. */
size_t tp_scrub_holds(const struct tp_scrub *scrub);

#endif
