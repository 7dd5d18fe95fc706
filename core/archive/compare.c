/* Walking one or two trees: see compare.h. */
#include "compare.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../scope.h"

#define MARGIN 50000000 /* nanoseconds; a tick has 10 million at most */
#define WANTED (STATX_BASIC_STATS | STATX_BTIME)

/* The names in a directory, sorted. */
struct names {
  char **list;
  size_t count, room;
};

static void free_names(struct names *names) {
  for (size_t i = 0; i < names->count; i++)
    free(names->list[i]);
  free(names->list);
}
#define TP_NAMES __attribute__((cleanup(free_names)))

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_name(struct names *names, const char *name) {
  if (names->count == names->room) {
    size_t room = names->room ? names->room * 2 : 32;
    char **list = realloc(names->list, room * sizeof *list);
    if (!list)
      return -1;
    names->list = list;
    names->room = room;
  }
  names->list[names->count] = strdup(name);
  return names->list[names->count] ? (names->count++, 0) : -1;
}

static int read_names(int directory, struct names *names, struct tp_error *err) {
  int copy = fcntl(directory, F_DUPFD_CLOEXEC, 0);
  DIR *dir = copy < 0 ? NULL : fdopendir(copy);
  if (!dir) {
    int code = errno;
    if (copy >= 0)
      close(copy);
    return tp_fail(err, code, "open directory");
  }
  rewinddir(dir);
  struct dirent *entry;
  int result = 0;
  while (result == 0 && (errno = 0, entry = readdir(dir)))
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
      result = add_name(names, entry->d_name);
  int code = result < 0 ? ENOMEM : errno;
  closedir(dir);
  if (code)
    return tp_fail(err, code, "read directory");
  if (names->count)
    qsort(names->list, names->count, sizeof *names->list, by_bytes);
  return 0;
}

static size_t slot_of(const struct tp_numbers *numbers, uint64_t number) {
  size_t slot = (size_t)((number * 0x9e3779b97f4a7c15u) >> 20) & (numbers->size - 1);
  while (numbers->slots[slot] && numbers->slots[slot] != number)
    slot = (slot + 1) & (numbers->size - 1);
  return slot;
}

int tp_numbers_add(struct tp_numbers *numbers, uint64_t number, struct tp_error *err) {
  if (numbers->used * 2 >= numbers->size) {
    struct tp_numbers larger = {.size = numbers->size ? numbers->size * 2 : 1024};
    larger.slots = calloc(larger.size, sizeof *larger.slots);
    if (!larger.slots)
      return tp_fail(err, ENOMEM, "remember %zu inodes", larger.size);
    for (size_t i = 0; i < numbers->size; i++)
      if (numbers->slots[i])
        larger.slots[slot_of(&larger, numbers->slots[i])] = numbers->slots[i];
    larger.used = numbers->used;
    free(numbers->slots);
    *numbers = larger;
  }
  size_t slot = slot_of(numbers, number);
  numbers->used += !numbers->slots[slot];
  numbers->slots[slot] = number;
  return 0;
}

bool tp_numbers_has(const struct tp_numbers *numbers, uint64_t number) {
  return numbers->size && numbers->slots[slot_of(numbers, number)];
}

void tp_numbers_free(struct tp_numbers *numbers) {
  free(numbers->slots);
  *numbers = (struct tp_numbers){0};
}

static bool same_time(const struct statx_timestamp *a, const struct statx_timestamp *b) {
  return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool unchanged(const struct tp_compare *compare, const struct statx *now,
                      const struct statx *then) {
  /* How old the last change was at that time. */
  int64_t age = compare->taken - (then->stx_ctime.tv_sec * 1000000000 + then->stx_ctime.tv_nsec);
  if (compare->taken && age >= -MARGIN && age <= MARGIN)
    return false;
  return now->stx_ino == then->stx_ino && now->stx_mode == then->stx_mode &&
         now->stx_size == then->stx_size && now->stx_uid == then->stx_uid &&
         now->stx_gid == then->stx_gid && same_time(&now->stx_ctime, &then->stx_ctime) &&
         same_time(&now->stx_mtime, &then->stx_mtime) && same_time(&now->stx_btime, &then->stx_btime);
}

/* One walk serves both passes: `scanning` counts and notes, the other calls back. */
struct walk {
  struct tp_compare *compare;
  bool scanning, told; /* told: the error names the path already */
  uint64_t bytes;
};

static int look(int directory, const char *name, struct statx *st, struct tp_error *err) {
  if (statx(directory, name, AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH), WANTED, st) < 0)
    return tp_fail(err, errno, "look at");
  return 0;
}

static int open_directory(int parent, const char *name, struct tp_error *err) {
  int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  return fd < 0 ? tp_fail(err, errno, "open directory") : fd;
}

static int visit(struct walk *walk, int directory, const char *name, const struct statx *st,
                 bool changed, struct tp_error *err) {
  struct tp_compare *compare = walk->compare;
  if (!walk->scanning)
    return changed || tp_numbers_has(&compare->written, st->stx_ino)
               ? compare->found(compare, directory, name, st, err)
               : 0;
  if (!changed)
    return 0;
  if (S_ISREG(st->stx_mode) && !(st->stx_nlink > 1 && tp_numbers_has(&compare->written, st->stx_ino)))
    walk->bytes += st->stx_blocks * 512 < st->stx_size ? st->stx_blocks * 512 : st->stx_size;
  if (S_ISDIR(st->stx_mode) || st->stx_nlink > 1)
    return tp_numbers_add(&compare->written, st->stx_ino, err);
  return 0;
}

static int walk_directory(struct walk *walk, int tree, int base, bool *changed, struct tp_error *err);

static int walk_below(struct walk *walk, int tree, int base, const char *name, const struct statx *st,
                      bool *changed, struct tp_error *err) {
  TP_CLOSE int inner = open_directory(tree, name, err);
  if (inner < 0)
    return -1;
  TP_CLOSE int inner_base = base < 0 ? -1 : open_directory(base, name, err);
  bool below = false;
  if (base >= 0 && inner_base < 0)
    return -1;
  if (walk_directory(walk, inner, inner_base, &below, err) < 0)
    return -1;
  *changed |= below;
  /* Whoever applies a change below would leave a new time behind: so the directory is told too. */
  return below && walk->scanning ? tp_numbers_add(&walk->compare->written, st->stx_ino, err) : 0;
}

/* One name of `tree`, which is in `base` too unless that is -1. */
static int walk_name(struct walk *walk, int tree, int base, const char *name, bool *changed,
                     struct tp_error *err) {
  struct statx now, then;
  if (look(tree, name, &now, err) < 0 || (base >= 0 && look(base, name, &then, err) < 0))
    return -1;
  bool differs = base < 0 || !unchanged(walk->compare, &now, &then);
  *changed |= differs;
  if (visit(walk, tree, name, &now, differs, err) < 0)
    return -1;
  if (!S_ISDIR(now.stx_mode))
    return 0;
  bool both = base >= 0 && S_ISDIR(then.stx_mode);
  return walk_below(walk, tree, both ? base : -1, name, &now, changed, err);
}

static int walk_directory(struct walk *walk, int tree, int base, bool *changed, struct tp_error *err) {
  struct tp_compare *compare = walk->compare;
  TP_NAMES struct names now = {0}, then = {0};
  if (read_names(tree, &now, err) < 0 || (base >= 0 && read_names(base, &then, err) < 0))
    return -1;

  size_t length = strlen(compare->path);
  int result = 0;
  for (size_t i = 0, j = 0; result == 0 && (i < now.count || j < then.count);) {
    int order = i == now.count ? 1 : j == then.count ? -1 : strcmp(now.list[i], then.list[j]);
    const char *name = order > 0 ? then.list[j] : now.list[i];
    if (length + strlen(name) + 2 > sizeof compare->path)
      return tp_fail(err, ENAMETOOLONG, "below %.100s...", compare->path);
    if (length)
      compare->path[length] = '/';
    strcpy(compare->path + length + (length > 0), name);
    if (order > 0) {
      *changed = true;
      result = walk->scanning ? 0 : compare->gone(compare, err);
    } else {
      result = walk_name(walk, tree, order == 0 ? base : -1, name, changed, err);
    }
    if (result < 0 && !walk->told) {
      walk->told = true;
      tp_wrap(err, "%.200s", compare->path);
    }
    compare->path[length] = '\0';
    i += order <= 0;
    j += order >= 0;
  }
  return result;
}

static int walk_all(struct walk *walk, struct tp_error *err) {
  struct tp_compare *compare = walk->compare;
  struct statx now, then;
  *compare->path = '\0';
  if (look(compare->tree, "", &now, err) < 0 ||
      (compare->base >= 0 && look(compare->base, "", &then, err) < 0))
    return -1;
  bool changed = compare->base < 0 || !unchanged(compare, &now, &then);
  if (visit(walk, compare->tree, "", &now, changed, err) < 0)
    return -1;
  if (walk_directory(walk, compare->tree, compare->base, &changed, err) < 0)
    return -1;
  return changed && walk->scanning ? tp_numbers_add(&compare->written, now.stx_ino, err) : 0;
}

int tp_compare_scan(struct tp_compare *compare, uint64_t *bytes, struct tp_error *err) {
  struct walk walk = {.compare = compare, .scanning = true};
  if (walk_all(&walk, err) < 0)
    return -1;
  *bytes = walk.bytes;
  return 0;
}

int tp_compare_run(struct tp_compare *compare, struct tp_error *err) {
  struct walk walk = {.compare = compare};
  return walk_all(&walk, err);
}
