/* tidepool-unpack: extracts archives into a directory, confined to it.
 *
 *   tidepool-unpack --target DIR --uid-base N [--count 65536] [--plain] [--finish]
 *                   [--max-bytes N] [--max-file N] [--max-entries N] [--blobs DIR]
 *                   --stdin | --layer PATH [--at N --length N] [--digest sha256:HEX]
 *                   [--diff-id sha256:HEX] ...
 *   tidepool-unpack --print PATH --blobs DIR | --at N --length N [--digest sha256:HEX] [--max-bytes N]
 *   tidepool-unpack --index
 *
 * The supervisor (root) opens target and layers, then a worker enters the jail of confine.h and
 * reads them. Layer paths are looked up beneath --blobs, which a hostile archive may have filled.
 * Standard output tells "progress BYTES ENTRIES READ TOTAL" about five times a second (the last two
 * of the layers as they are stored; TOTAL 0 when it isn't known) and at the end "done BYTES ENTRIES
 * SKIPPED"; standard error tells "CODE: message". Exit status 0, 1, or 2 for a wrong
 * command line. What failed leaves a target that the caller must delete.
 * --max-bytes is for the content of all layers; --max-file, the same unless told, for a file with its holes.
 * --at and --length name a part of a file, as where a tar that isn't compressed holds a layer: --index
 * tells these of the tar on standard input (see index.h). --print copies a small file, or part of one,
 * to standard output once its digest is right. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../scope.h"
#include "confine.h"
#include "finish.h"
#include "index.h"
#include "layer.h"
#include "supervise.h"

#define MAX_LAYERS 256
#define MAX_PRINT (4u << 20)

struct options {
  const char *target, *blobs, *print;
  struct tp_range range;
  struct tp_layer layers[MAX_LAYERS];
  unsigned layer_count;
  bool finish;
  uint64_t max_file; /* 0: as unpack.max_bytes */
  struct tp_unpack unpack;
};

static int usage(const char *what) {
  fprintf(stderr, "EINVAL: tidepool-unpack: wrong or missing %s\n", what);
  return 2;
}

static bool number(const char *text, uint64_t max, uint64_t *value) {
  char *end;
  errno = 0;
  *value = strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && !*end && !errno && *value && *value <= max;
}

/* 0, or the exit status 2. Digests belong to the layer (or --print) before them. */
static int parse(int argc, char **argv, struct options *options) {
  struct tp_layer *layer = NULL;
  uint64_t value;
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i], *argument = i + 1 < argc ? argv[i + 1] : "";
    if (strcmp(name, "--plain") == 0) {
      options->unpack.plain = true;
      continue;
    } else if (strcmp(name, "--finish") == 0) {
      options->finish = true;
      continue;
    }
    bool from_stdin = strcmp(name, "--stdin") == 0;
    if (!from_stdin && i + 1 == argc)
      return usage(name);
    if (from_stdin || strcmp(name, "--layer") == 0 || strcmp(name, "--print") == 0) {
      if (options->layer_count == MAX_LAYERS)
        return usage("number of layers");
      layer = &options->layers[options->layer_count++];
      layer->fd = -1;
      layer->name = from_stdin ? "-" : argument;
      if (strcmp(name, "--print") == 0)
        options->print = argument;
      i += !from_stdin;
    } else if (strcmp(name, "--digest") == 0 && layer) {
      if (tp_digest_parse(argument, layer->digest) < 0)
        return usage(name);
      i++;
    } else if (strcmp(name, "--diff-id") == 0 && layer) {
      if (tp_digest_parse(argument, layer->diff_id) < 0)
        return usage(name);
      i++;
    } else if (strcmp(name, "--at") == 0 && layer && number(argument, INT64_MAX, &value)) {
      layer->at = value;
      i++;
    } else if (strcmp(name, "--length") == 0 && layer && number(argument, INT64_MAX, &value)) {
      layer->length = value;
      i++;
    } else if (strcmp(name, "--target") == 0) {
      options->target = argv[++i];
    } else if (strcmp(name, "--blobs") == 0) {
      options->blobs = argv[++i];
    } else {
      bool known = true;
      if (strcmp(name, "--uid-base") == 0 && number(argument, UINT32_MAX, &value))
        options->range.base = (uint32_t)value;
      else if (strcmp(name, "--count") == 0 && number(argument, 1u << 24, &value))
        options->range.count = (uint32_t)value;
      else if (strcmp(name, "--max-bytes") == 0 && number(argument, INT64_MAX, &value))
        options->unpack.max_bytes = value;
      else if (strcmp(name, "--max-file") == 0 && number(argument, INT64_MAX, &value))
        options->max_file = value;
      else if (strcmp(name, "--max-entries") == 0 && number(argument, UINT32_MAX, &value))
        options->unpack.max_entries = value;
      else
        known = false;
      if (!known)
        return usage(name);
      i++;
    }
  }
  if (!options->layer_count)
    return usage("layer");
  if (options->print && (options->layer_count != 1 || !(options->blobs || options->layers[0].length)))
    return usage("--blobs");
  if (!options->print && (!options->target || !options->range.base))
    return usage("--target or --uid-base");
  return 0;
}

static int open_blob(int blobs, const struct tp_layer *layer, struct tp_error *err) {
  if (strcmp(layer->name, "-") == 0)
    return STDIN_FILENO;
  struct open_how how = {.flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC};
  if (blobs != AT_FDCWD)
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  TP_CLOSE int fd = (int)syscall(SYS_openat2, blobs, layer->name, &how, sizeof how);
  struct stat st;
  if (fd < 0)
    return tp_fail(err, errno, "open %.300s", layer->name);
  if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
    return tp_fail(err, EINVAL, "%.300s is not a regular file", layer->name);
  if (lseek(fd, (off_t)layer->at, SEEK_SET) < 0)
    return tp_fail(err, errno, "seek in %.300s", layer->name);
  return tp_take_fd(&fd);
}

static int open_blobs(struct options *options, struct tp_error *err) {
  int blobs = AT_FDCWD;
  if (options->blobs) {
    blobs = open(options->blobs, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (blobs < 0)
      return tp_fail(err, errno, "open %s", options->blobs);
  }
  for (unsigned i = 0; i < options->layer_count; i++) {
    options->layers[i].fd = open_blob(blobs, &options->layers[i], err);
    if (options->layers[i].fd < 0)
      return -1;
  }
  if (blobs >= 0)
    close(blobs);
  return 0;
}

/* Copies the file to standard output after its digest is known to be right. */
static int print_blob(const struct options *options, struct tp_error *err) {
  const struct tp_layer *layer = &options->layers[0];
  size_t limit = options->unpack.max_bytes < MAX_PRINT ? options->unpack.max_bytes : MAX_PRINT;
  size_t size = 0, most = layer->length ? layer->length : SIZE_MAX;
  ssize_t got;
  TP_FREE uint8_t *content = malloc(limit + 1);
  if (!content)
    return tp_fail(err, ENOMEM, "%.300s", layer->name);
  while (size <= limit && size < most) {
    size_t want = limit + 1 - size < most - size ? limit + 1 - size : most - size;
    if ((got = read(layer->fd, content + size, want)) == 0)
      break;
    if (got < 0)
      return tp_fail(err, errno, "read %.300s", layer->name);
    size += (size_t)got;
  }
  if (size > limit)
    return tp_fail(err, EFBIG, "%.300s has more than %zu bytes", layer->name, limit);

  struct sha256_ctx context;
  char hex[TP_DIGEST_HEX + 1];
  sha256_init(&context);
  sha256_update(&context, size, content);
  tp_digest_hex(&context, hex);
  if (*layer->digest && strcmp(hex, layer->digest) != 0)
    return tp_fail(err, EBADMSG, "%.300s has another digest (sha256:%.16s...)", layer->name, hex);
  for (size_t done = 0; done < size; done += (size_t)got)
    if ((got = write(STDOUT_FILENO, content + done, size - done)) < 0)
      return tp_fail(err, errno, "write");
  return 0;
}

struct job {
  struct options *options;
  int tree, userns, target;
};

/* The worker: never returns, reports its end. */
static void work(void *data, int report_fd) {
  struct job *job = data;
  struct options *options = job->options;
  struct tp_unpack *unpack = &options->unpack;
  struct tp_error err = {.code = 0};
  close(job->target);
  unpack->report_fd = report_fd;
  uint64_t max_file = options->max_file ? options->max_file : unpack->max_bytes;
  int result = tp_confine_enter(TP_CONFINE_WRITE, job->tree, job->userns, max_file, &err);
  tp_report_progress(&unpack->report, report_fd, &unpack->reported);
  umask(022);
  for (unsigned i = 0; result == 0 && i < options->layer_count; i++)
    result = tp_layer_apply(unpack, &options->layers[i], &err);
  if (result == 0 && options->finish && tp_finish(&err) < 0)
    result = tp_wrap(&err, "finish the image");
  tp_report_end(&unpack->report, report_fd, result, &err);
}

/* What there is to read, for whoever shows progress; 0 when a pipe is among it. */
static uint64_t stored_size(const struct options *options) {
  uint64_t total = 0;
  for (unsigned i = 0; i < options->layer_count; i++) {
    struct stat st;
    if (fstat(options->layers[i].fd, &st) < 0 || !S_ISREG(st.st_mode))
      return 0;
    total += options->layers[i].length ? options->layers[i].length : (uint64_t)st.st_size;
  }
  return total;
}

static int unpack(struct options *options, struct tp_error *err) {
  TP_CLOSE int target = open(options->target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (target < 0)
    return tp_fail(err, errno, "open %s", options->target);
  TP_CLOSE int userns = tp_userns_open(&options->range, err);
  if (userns < 0)
    return -1;
  /* A plain archive's files are the worker's own: no shifting, so any file system will do. */
  if (options->unpack.plain && fchown(target, options->range.base, options->range.base) < 0)
    return tp_fail(err, errno, "give %s to the worker", options->target);
  TP_CLOSE int tree = tp_confine_mount(target, options->unpack.plain ? -1 : userns, err);
  if (tree < 0)
    return -1;

  struct job job = {.options = options, .tree = tree, .userns = userns, .target = target};
  struct tp_report last;
  bool uses_stdin = false;
  for (unsigned i = 0; i < options->layer_count; i++)
    uses_stdin |= options->layers[i].fd == STDIN_FILENO;
  options->unpack.report.total = stored_size(options);
  if (tp_supervise(work, &job, uses_stdin, &last, err) < 0)
    return -1;
  printf("done %llu %llu %llu\n", (unsigned long long)last.bytes, (unsigned long long)last.entries,
         (unsigned long long)last.skipped);
  if (syncfs(target) < 0)
    return tp_fail(err, errno, "sync %s", options->target);
  return 0;
}

int main(int argc, char **argv) {
  static struct options options = {
      .range = {.count = 65536},
      .unpack = {.max_bytes = 32ull << 30, .max_entries = 4000000},
  };
  struct tp_error err;

  close_range(3, ~0u, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* nothing is half-made by a server that is gone */
  setlocale(LC_CTYPE, "C.UTF-8"); /* names in PAX headers are UTF-8 */
  signal(SIGPIPE, SIG_IGN);

  if (argc == 2 && strcmp(argv[1], "--index") == 0) {
    if (tp_index(STDIN_FILENO, &err) == 0)
      return 0;
    fprintf(stderr, "%s: %s\n", tp_error_name(err.code), err.message);
    return 1;
  }
  int status = parse(argc, argv, &options);
  if (status)
    return status;
  options.unpack.max_id = options.range.count - 1;
  int result = open_blobs(&options, &err);
  if (result == 0)
    result = options.print ? print_blob(&options, &err) : unpack(&options, &err);
  if (result == 0)
    return 0;
  fprintf(stderr, "%s: %s\n", tp_error_name(err.code), err.message);
  return 1;
}
