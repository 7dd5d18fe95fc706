/* The scrubber's run: see scrub.h. Compiling is in scrub_compile.c.
 *
 * Most streams hold no secret, so the common path must cost next to nothing. A filter names the few
 * positions at which a match may start; only those are walked. Each pattern has at least 8 bytes, so
 * a match either starts with 8 plain ones, of which a probe of 3 bytes at every sixth position sees a
 * window, or has an escape among its first 8, whose lead byte memchr finds. The last positions of a
 * buffer, where neither need be whole, are all walked.
 *
 * Whether a match starts at a position depends only on the bytes from there on. That is why nothing
 * but the start of what is unfinished must be remembered from one piece to the next, and why the
 * result doesn't depend on how the stream is cut. */
#include "scrub.h"

#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include "scrub_table.h"

#define BLOCK 4096u
#define TAIL (TP_SCRUB_SHORTEST + TP_SCRUB_ESCAPE)

enum { NONE = 0, PARTIAL = -1 };

static bool is_lead(unsigned char byte) {
  return byte == '%' || byte == '\\';
}

static int hex_value(unsigned char byte) {
  if (byte >= '0' && byte <= '9')
    return byte - '0';
  byte |= 0x20;
  return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* The escape at `at`: its width and value, 0 when it is none, PARTIAL when the bytes end in it. */
static int escape_at(const unsigned char *bytes, size_t length, size_t at, unsigned char *value) {
  const unsigned char *from = bytes + at;
  size_t room = length - at, digits = 1;
  if (*from == '\\') {
    if (room < 2)
      return PARTIAL;
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *letter = memchr(letters, from[1], sizeof letters - 1);
    if (letter) {
      *value = (unsigned char)values[letter - letters];
      return 2;
    }
    if (from[1] != 'u')
      return NONE;
    for (digits = 2; digits < 4; digits++) {
      if (digits >= room)
        return PARTIAL;
      if (from[digits] != '0')
        return NONE;
    }
  }
  int high = 0, low = 0;
  if (digits >= room)
    return PARTIAL;
  if ((high = hex_value(from[digits])) < 0 || (*from == '\\' && high > 7))
    return NONE;
  if (digits + 1 >= room)
    return PARTIAL;
  if ((low = hex_value(from[digits + 1])) < 0)
    return NONE;
  *value = (unsigned char)(high << 4 | low);
  return (int)digits + 2;
}

struct view {
  const unsigned char *bytes;
  size_t length;
  bool last;
};

/* Follow a pattern from its byte `from` on, at position `at`, decoding escapes. Where the match ends,
 * NONE, or PARTIAL when the bytes end first. */
static ssize_t walk(const struct tp_scrub_entry *entry, const struct view *view, size_t at,
                    size_t from) {
  for (size_t i = from; i < entry->length; i++) {
    if (at >= view->length)
      return view->last ? NONE : PARTIAL;
    unsigned char value = view->bytes[at];
    int width = is_lead(value) ? escape_at(view->bytes, view->length, at, &value) : 1;
    if (width < 0 && !view->last)
      return PARTIAL;
    if (value != entry->bytes[i])
      return NONE;
    at += width > 0 ? (size_t)width : 1;
  }
  return (ssize_t)at;
}

/* The same without decoding, for secrets that hold a '%' or '\' themselves. */
static ssize_t compare(const struct tp_scrub_entry *entry, const struct view *view, size_t at) {
  size_t room = view->length - at, size = entry->length < room ? entry->length : room;
  if (memcmp(entry->bytes, view->bytes + at, size) != 0)
    return NONE;
  if (size == entry->length)
    return (ssize_t)(at + size);
  return view->last ? NONE : PARTIAL;
}

struct outcome {
  size_t end; /* of the longest match, or 0 */
  bool partial;
  unsigned id;
};

static void note(struct outcome *outcome, ssize_t end, unsigned id) {
  if (end == PARTIAL)
    outcome->partial = true;
  if (end <= 0)
    return;
  if ((size_t)end > outcome->end)
    outcome->end = (size_t)end;
  if (!outcome->id)
    outcome->id = id;
}

/* All patterns that start at this position. */
static struct outcome match_at(const struct tp_scrub *scrub, const struct view *view, size_t at) {
  struct outcome outcome = {0};
  unsigned char first = view->bytes[at], value = 0;
  for (unsigned i = scrub->bucket[first]; i < scrub->bucket[first + 1]; i++) {
    const struct tp_scrub_entry *entry = &scrub->entries[i];
    note(&outcome, walk(entry, view, at, 0), entry->id);
    if (entry->leads)
      note(&outcome, compare(entry, view, at), entry->id);
  }
  if (!is_lead(first))
    return outcome;
  int width = escape_at(view->bytes, view->length, at, &value);
  if (width < 0 && !view->last)
    outcome.partial = true;
  if (width <= 0)
    return outcome;
  for (unsigned i = scrub->bucket[value]; i < scrub->bucket[value + 1]; i++)
    note(&outcome, walk(&scrub->entries[i], view, at + (size_t)width, 1), scrub->entries[i].id);
  return outcome;
}

struct block {
  size_t from, to; /* match starts looked for */
  uint64_t starts[BLOCK / 64];
  bool any;
};

static void set_start(struct block *block, size_t start) {
  if (start < block->from || start >= block->to)
    return;
  start -= block->from;
  block->starts[start / 64] |= (uint64_t)1 << start % 64;
  block->any = true;
}

/* The starts whose offset from `at` has its bit in `offsets`. */
static void set_starts(struct block *block, size_t at, unsigned offsets) {
  for (unsigned offset = 0; offsets; offset++, offsets >>= 1)
    if (offsets & 1 && at >= offset)
      set_start(block, at - offset);
}

static void probe(const struct tp_scrub *scrub, const struct view *view, struct block *block) {
  size_t end = block->to + TP_SCRUB_WINDOWS - 1;
  if (view->length < 4)
    return;
  if (end > view->length - 3)
    end = view->length - 3; /* 4 bytes are loaded, of which 3 count */
  const unsigned char *windows = scrub->windows;
  unsigned shift = scrub->shift;
  for (size_t at = block->from; at < end; at += TP_SCRUB_WINDOWS) {
    unsigned offsets = windows[tp_scrub_hash(view->bytes + at, shift)];
    if (offsets)
      set_starts(block, at, offsets);
  }
}

static void find_escapes(const struct tp_scrub *scrub, const struct view *view, char lead,
                         struct block *block) {
  size_t end = block->to + TP_SCRUB_SHORTEST - 1;
  if (end > view->length)
    end = view->length;
  const unsigned char *from = view->bytes + block->from, *to = view->bytes + end;
  while (from < to && (from = memchr(from, lead, (size_t)(to - from)))) {
    size_t at = (size_t)(from - view->bytes);
    unsigned char value;
    if (escape_at(view->bytes, view->length, at, &value) > 0 && scrub->early[value])
      set_starts(block, at, scrub->early[value]);
    from++;
  }
}

static void filter(const struct tp_scrub *scrub, const struct view *view, struct block *block) {
  memset(block->starts, 0, sizeof block->starts);
  block->any = false;
  probe(scrub, view, block);
  find_escapes(scrub, view, '%', block);
  find_escapes(scrub, view, '\\', block);
  size_t tail = view->length > TAIL ? view->length - TAIL : 0;
  for (size_t at = tail > block->from ? tail : block->from; at < block->to; at++)
    set_start(block, at);
}

/* Bytes that a match covers and that no walk has yet passed: walks need them as they were. */
struct cover {
  char *bytes; /* NULL: only look */
  size_t from, to;
};

static void mask_until(struct cover *cover, size_t limit) {
  size_t to = cover->to < limit ? cover->to : limit;
  if (cover->from >= to)
    return;
  if (cover->bytes)
    memset(cover->bytes + cover->from, '*', to - cover->from);
  cover->from = to;
}

/* Walk the block's candidates in order. Returns the first start of an unfinished match, or `to`. */
static size_t walk_block(const struct tp_scrub *scrub, const struct view *view,
                         const struct block *block, struct cover *cover, unsigned *found) {
  for (unsigned word = 0; word < BLOCK / 64; word++) {
    for (uint64_t bits = block->starts[word]; bits; bits &= bits - 1) {
      size_t at = block->from + word * 64 + (unsigned)__builtin_ctzll(bits);
      struct outcome outcome = match_at(scrub, view, at);
      if (outcome.id && !*found)
        *found = outcome.id;
      if (outcome.partial)
        return at;
      if (outcome.end <= cover->to)
        continue;
      mask_until(cover, at);
      if (cover->from < at)
        cover->from = at;
      cover->to = outcome.end;
    }
  }
  return block->to;
}

void tp_scrub_run(struct tp_scrub *scrub, struct tp_scrub_stream *stream, char *bytes,
                  size_t length, bool last, size_t *held, unsigned *found) {
  struct view view = {(const unsigned char *)bytes, length, last};
  struct cover cover = {scrub->flags & TP_SCRUB_MASK ? bytes : NULL, 0, stream->masked};
  struct block block;
  size_t done = 0;
  *found = 0;
  while (done < length && scrub->count) {
    block.from = done;
    block.to = length - done > BLOCK ? done + BLOCK : length;
    filter(scrub, &view, &block);
    done = block.any ? walk_block(scrub, &view, &block, &cover, found) : block.to;
    if (done < block.to)
      break;
  }
  if (!scrub->count)
    done = length;
  mask_until(&cover, done);
  stream->masked = cover.to > done ? cover.to - done : 0;
  *held = length - done;
}
