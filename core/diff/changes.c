/* What a send stream adds up to: see changes.h. No system calls but for memory. */
#include "changes.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define MOST (8u << 20) /* nodes and removed paths */

struct node {
  struct node *parent, *next; /* next in its bucket */
  char *was;                  /* its path in the old snapshot; NULL: it wasn't there */
  unsigned change;
  unsigned children; /* whose parent it is */
  uint32_t hash;
  uint16_t length;
  char *name;
};

struct tp_changes {
  struct node **buckets;
  size_t size, count, removed_count, removed_size;
  struct node *top;
  char **removed;
};

static uint32_t hash_of(const struct node *parent, const char *name, size_t length) {
  uint32_t hash = 2166136261u ^ (uint32_t)((uintptr_t)parent >> 4);
  for (size_t i = 0; i < length; i++)
    hash = (hash ^ (uint8_t)name[i]) * 16777619u;
  return hash ^ hash >> 15;
}

static struct node **slot_of(struct tp_changes *changes, const struct node *parent,
                             const char *name, size_t length) {
  uint32_t hash = hash_of(parent, name, length);
  struct node **at = &changes->buckets[hash & (changes->size - 1)];
  while (*at && ((*at)->hash != hash || (*at)->parent != parent || (*at)->length != length ||
                 memcmp((*at)->name, name, length) != 0))
    at = &(*at)->next;
  return at;
}

static int grow(struct tp_changes *changes, struct tp_error *err) {
  size_t size = changes->size ? changes->size * 2 : 256;
  struct node **buckets = calloc(size, sizeof *buckets);
  if (!buckets)
    return tp_fail(err, ENOMEM, "remember changes");
  for (size_t i = 0; i < changes->size; i++)
    for (struct node *node = changes->buckets[i], *next; node; node = next) {
      next = node->next;
      node->next = buckets[node->hash & (size - 1)];
      buckets[node->hash & (size - 1)] = node;
    }
  free(changes->buckets);
  changes->buckets = buckets;
  changes->size = size;
  return 0;
}

static void release(struct node *node) {
  if (!node)
    return;
  free(node->name);
  free(node->was);
  free(node);
}

/* Put it there, as far as the node knows; `insert` makes it found. */
static int place(struct node *node, struct node *parent, const char *name, size_t length) {
  char *copy = malloc(length + 1);
  if (!copy)
    return -1;
  memcpy(copy, name, length);
  copy[length] = '\0';
  free(node->name);
  node->name = copy;
  node->length = (uint16_t)length;
  node->parent = parent;
  node->hash = hash_of(parent, name, length);
  return 0;
}

static struct node *make(struct node *parent, const char *name, size_t length) {
  struct node *node = calloc(1, sizeof *node);
  if (node && place(node, parent, name, length) == 0)
    return node;
  release(node);
  return NULL;
}

static int insert(struct tp_changes *changes, struct node *node, struct tp_error *err) {
  if (changes->count >= MOST)
    return tp_fail(err, E2BIG, "more than %u changes", MOST);
  if (changes->count >= changes->size && grow(changes, err) < 0)
    return -1;
  struct node **slot = slot_of(changes, node->parent, node->name, node->length);
  node->next = *slot; /* which is NULL: callers have looked */
  *slot = node;
  changes->count++;
  if (node->parent)
    node->parent->children++;
  return 0;
}

static void take_out(struct tp_changes *changes, struct node *node) {
  *slot_of(changes, node->parent, node->name, node->length) = node->next;
  changes->count--;
  if (node->parent)
    node->parent->children--;
}

struct tp_changes *tp_changes_new(struct tp_error *err) {
  struct tp_changes *changes = calloc(1, sizeof *changes);
  if (changes && grow(changes, err) == 0) {
    changes->top = make(NULL, "", 0);
    if (changes->top)
      changes->top->was = calloc(1, 1);
    if (changes->top && changes->top->was && insert(changes, changes->top, err) == 0)
      return changes;
  }
  tp_changes_free(changes);
  tp_fail(err, ENOMEM, "remember changes");
  return NULL;
}

void tp_changes_free(struct tp_changes *changes) {
  if (!changes)
    return;
  for (size_t i = 0; i < changes->size; i++)
    for (struct node *node = changes->buckets[i], *next; node; node = next) {
      next = node->next;
      release(node);
    }
  for (size_t i = 0; i < changes->removed_count; i++)
    free(changes->removed[i]);
  free(changes->removed);
  free(changes->buckets);
  free(changes);
}

/* "a/b" of "a" and "b"; NULL without memory, or when it gets too long. */
static char *below(const char *path, const char *name, size_t length) {
  size_t used = strlen(path);
  char *joined = used + length + 2 < 2 * PATH_MAX ? malloc(used + length + 2) : NULL;
  if (!joined)
    return NULL;
  memcpy(joined, path, used);
  if (used)
    joined[used++] = '/';
  memcpy(joined + used, name, length);
  joined[used + length] = '\0';
  return joined;
}

/* The node of a path, made with those above it when they weren't named yet: then they have been where
 * they are all the time, relative to the one above. NULL: see err. */
static struct node *find(struct tp_changes *changes, const char *path, size_t length,
                         struct tp_error *err) {
  struct node *at = changes->top;
  while (length) {
    const char *slash = memchr(path, '/', length);
    size_t part = slash ? (size_t)(slash - path) : length;
    struct node *node = *slot_of(changes, at, path, part);
    if (!node) {
      node = make(at, path, part);
      if (node && at->was && !(node->was = below(at->was, path, part))) {
        release(node);
        node = NULL;
      }
      if (!node) {
        tp_fail(err, ENOMEM, "remember changes");
        return NULL;
      }
      if (insert(changes, node, err) < 0) {
        release(node);
        return NULL;
      }
    }
    at = node;
    path += slash ? part + 1 : part;
    length -= slash ? part + 1 : part;
  }
  return at;
}

/* What was at this path of the old snapshot is not there any more. Takes the string over. */
static int remove_path(struct tp_changes *changes, char **was, struct tp_error *err) {
  if (!*was)
    return 0;
  if (changes->removed_count == changes->removed_size) {
    size_t size = changes->removed_size ? changes->removed_size * 2 : 64;
    char **grown = size < MOST ? realloc(changes->removed, size * sizeof *grown) : NULL;
    if (!grown)
      return tp_fail(err, size < MOST ? ENOMEM : E2BIG, "remember removed paths");
    changes->removed = grown;
    changes->removed_size = size;
  }
  changes->removed[changes->removed_count++] = *was;
  *was = NULL;
  return 0;
}

/* The directory of a path, and its last name. */
static struct node *find_above(struct tp_changes *changes, const char *path, size_t length,
                               const char **name, size_t *name_length, struct tp_error *err) {
  *name = path + length;
  while (*name > path && (*name)[-1] != '/')
    (*name)--;
  *name_length = (size_t)(path + length - *name);
  if (!*name_length) {
    tp_fail(err, EBADMSG, "the top was made or moved");
    return NULL;
  }
  return find(changes, path, *name > path ? (size_t)(*name - path) - 1 : 0, err);
}

/* What is at the name makes room: it was removed without a word. */
static int vacate(struct tp_changes *changes, const struct node *parent, const char *name,
                  size_t length, struct tp_error *err) {
  struct node *there = *slot_of(changes, parent, name, length);
  if (!there)
    return 0;
  if (there->children)
    return tp_fail(err, EBADMSG, "a directory that is not empty was replaced");
  if (remove_path(changes, &there->was, err) < 0)
    return -1;
  take_out(changes, there);
  release(there);
  return 0;
}

static int create(struct tp_changes *changes, const char *path, size_t path_length,
                  struct tp_error *err) {
  const char *name;
  size_t length;
  struct node *parent = find_above(changes, path, path_length, &name, &length, err);
  if (!parent || vacate(changes, parent, name, length, err) < 0)
    return -1;
  struct node *node = make(parent, name, length);
  if (!node)
    return tp_fail(err, ENOMEM, "remember changes");
  node->change = TP_CHANGE_IS;
  if (insert(changes, node, err) == 0)
    return 0;
  release(node);
  return -1;
}

static bool is_below(const struct node *node, const struct node *above) {
  for (; node; node = node->parent)
    if (node == above)
      return true;
  return false;
}

static int move(struct tp_changes *changes, const struct tp_send_command *command,
                struct tp_error *err) {
  const char *name;
  size_t length;
  struct node *node = find(changes, command->path, command->path_length, err);
  struct node *parent =
      node ? find_above(changes, command->to, command->to_length, &name, &length, err) : NULL;
  if (!parent)
    return -1;
  if (*slot_of(changes, parent, name, length) == node)
    return 0;
  if (node == changes->top || is_below(parent, node))
    return tp_fail(err, EBADMSG, "a directory was moved into itself");
  if (vacate(changes, parent, name, length, err) < 0)
    return -1;
  take_out(changes, node);
  if (place(node, parent, name, length) == 0)
    return insert(changes, node, err); /* there is room: one was taken out */
  int outcome = tp_fail(err, ENOMEM, "remember changes");
  struct tp_error ignored;
  insert(changes, node, &ignored); /* where it was, so that it is freed with the others */
  return outcome;
}

static int removed(struct tp_changes *changes, const struct tp_send_command *command,
                   struct tp_error *err) {
  struct node *node = find(changes, command->path, command->path_length, err);
  if (!node)
    return -1;
  if (node == changes->top || node->children)
    return tp_fail(err, EBADMSG, "what is not empty was removed");
  if (remove_path(changes, &node->was, err) < 0)
    return -1;
  take_out(changes, node);
  release(node);
  return 0;
}

static int mark(struct tp_changes *changes, const struct tp_send_command *command, unsigned change,
                struct tp_error *err) {
  struct node *node = find(changes, command->path, command->path_length, err);
  if (!node)
    return -1;
  node->change |= change;
  return 0;
}

int tp_changes_apply(struct tp_changes *changes, const struct tp_send_command *command,
                     struct tp_error *err) {
  switch (command->kind) {
  case TP_SEND_CREATE:
  case TP_SEND_LINK:
    return create(changes, command->path, command->path_length, err);
  case TP_SEND_RENAME:
    return move(changes, command, err);
  case TP_SEND_REMOVE:
    return removed(changes, command, err);
  case TP_SEND_DATA:
    return mark(changes, command, TP_CHANGE_DATA, err);
  case TP_SEND_META:
    return mark(changes, command, TP_CHANGE_META, err);
  case TP_SEND_TIMES:
    return mark(changes, command, TP_CHANGE_TIMES, err);
  default:
    return 0;
  }
}

/* Writes the path that the node has now; -1 when that gets longer than a path can be. */
static int path_of(const struct node *node, char *path, size_t size, struct tp_error *err) {
  size_t at = size - 1;
  path[at] = '\0';
  for (; node->parent; node = node->parent) {
    size_t want = node->length + (path[at] ? 1u : 0u);
    if (want > at)
      return tp_fail(err, EBADMSG, "a path of more than %u bytes", (unsigned)size);
    if (path[at])
      path[--at] = '/';
    at -= node->length;
    memcpy(path + at, node->name, node->length);
  }
  memmove(path, path + at, size - at);
  return 0;
}

int tp_changes_each(struct tp_changes *changes,
                    int (*each)(void *context, const char *path, unsigned change), void *context,
                    struct tp_error *err) {
  static char path[2 * PATH_MAX];
  for (size_t i = 0; i < changes->removed_count; i++)
    if (each(context, changes->removed[i], TP_CHANGE_WAS) < 0)
      return -1;
  for (size_t i = 0; i < changes->size; i++)
    for (struct node *node = changes->buckets[i]; node; node = node->next) {
      if (path_of(node, path, sizeof path, err) < 0)
        return -1;
      bool moved = node->was && strcmp(node->was, path) != 0;
      unsigned change = node->change | (moved ? TP_CHANGE_IS : 0u);
      if (moved && each(context, node->was, TP_CHANGE_WAS) < 0)
        return -1;
      if (change && each(context, path, change) < 0)
        return -1;
    }
  return 0;
}
