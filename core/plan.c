/* Plans as bytes: see plan.h. No system calls here. */
#include "plan.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const struct {
  const char *name, *kinds;
} ops[TP_OPS] = {
#define X(name, kinds) {#name, kinds},
    TP_PLAN_OPS(X)
#undef X
};

const char *tp_op_name(enum tp_op op) {
  return ops[op].name;
}

const char *tp_op_kinds(enum tp_op op) {
  return ops[op].kinds;
}

int tp_op_find(const char *name, size_t length) {
  for (int i = 0; i < TP_OPS; i++)
    if (strlen(ops[i].name) == length && memcmp(ops[i].name, name, length) == 0)
      return i;
  return -1;
}

struct cursor {
  const uint8_t *at, *end;
};

static int take(struct cursor *cursor, unsigned size, uint64_t *value) {
  if ((size_t)(cursor->end - cursor->at) < size)
    return -1;
  *value = 0;
  for (unsigned i = 0; i < size; i++)
    *value |= (uint64_t)cursor->at[i] << (8 * i);
  cursor->at += size;
  return 0;
}

static int take_bytes(struct cursor *cursor, char kind, struct tp_arg *arg) {
  uint64_t length;
  if (take(cursor, 4, &length) < 0 || (size_t)(cursor->end - cursor->at) < length + 1)
    return -1;
  arg->bytes = (const char *)cursor->at;
  arg->length = (size_t)length;
  if (arg->bytes[length] != '\0')
    return -1;
  if (kind == 'p' && (length == 0 || length >= PATH_MAX || strlen(arg->bytes) != length))
    return -1;
  cursor->at += length + 1;
  return 0;
}

static int take_step(struct cursor *cursor, struct tp_step *step) {
  uint64_t op, optional, zero;
  if (take(cursor, 1, &op) < 0 || take(cursor, 1, &optional) < 0 || take(cursor, 2, &zero) < 0)
    return -1;
  if (op >= TP_OPS || optional > 1 || zero)
    return -1;
  step->op = (enum tp_op)op;
  step->optional = optional == 1;
  const char *kinds = ops[op].kinds;
  for (unsigned i = 0; kinds[i]; i++) {
    struct tp_arg *arg = &step->args[i];
    if (kinds[i] == 'p' || kinds[i] == 's') {
      if (take_bytes(cursor, kinds[i], arg) < 0)
        return -1;
      continue;
    }
    if (take(cursor, 8, &arg->number) < 0)
      return -1;
    if (kinds[i] == 'd' && arg->number >= TP_PLAN_SLOTS)
      return -1;
  }
  return 0;
}

/* One clone at most; the child's steps stand between `child` and `exec`. */
static bool in_order(struct tp_plan *plan, int i) {
  switch (plan->steps[i].op) {
  case TP_OP_clone:
    if (plan->clone >= 0)
      return false;
    plan->clone = i;
    return true;
  case TP_OP_child:
    if (plan->clone < 0 || plan->child >= 0)
      return false;
    plan->child = i;
    return true;
  case TP_OP_exec:
    if (plan->child < 0 || plan->exec >= 0 || plan->steps[i].optional)
      return false;
    plan->exec = i;
    return true;
  default:
    return true;
  }
}

int tp_plan_decode(const void *bytes, size_t length, struct tp_plan *plan, struct tp_error *err) {
  struct cursor cursor = {bytes, (const uint8_t *)bytes + length};
  uint64_t version, count;
  plan->count = 0;
  plan->clone = plan->child = plan->exec = -1;
  if (take(&cursor, 2, &version) < 0 || take(&cursor, 2, &count) < 0)
    return tp_fail(err, EBADMSG, "plan without a header");
  if (version != TP_PLAN_VERSION)
    return tp_fail(err, EBADMSG, "plan of version %u", (unsigned)version);
  if (count > TP_PLAN_STEPS)
    return tp_fail(err, EBADMSG, "plan of %u steps", (unsigned)count);

  for (unsigned i = 0; i < count; i++) {
    if (take_step(&cursor, &plan->steps[i]) < 0)
      return tp_fail(err, EBADMSG, "plan step %u is malformed", i + 1);
    if (!in_order(plan, (int)i))
      return tp_fail(err, EBADMSG, "plan step %u: misplaced %s", i + 1,
                     ops[plan->steps[i].op].name);
  }
  if (cursor.at != cursor.end)
    return tp_fail(err, EBADMSG, "bytes after the plan's last step");
  if (plan->clone >= 0 && plan->exec < 0)
    return tp_fail(err, EBADMSG, "plan clones but does not exec");
  plan->count = (unsigned)count;
  return 0;
}

static uint8_t *room(struct tp_plan_writer *writer, size_t want) {
  if (writer->size - writer->length < want) {
    size_t size = writer->size * 2 + want + 1024;
    uint8_t *grown = realloc(writer->bytes, size);
    if (!grown) {
      writer->failed = true;
      return NULL;
    }
    writer->bytes = grown;
    writer->size = size;
  }
  uint8_t *at = writer->bytes + writer->length;
  writer->length += want;
  return at;
}

static void put(struct tp_plan_writer *writer, uint64_t value, unsigned size) {
  uint8_t *at = room(writer, size);
  for (unsigned i = 0; at && i < size; i++)
    at[i] = (uint8_t)(value >> (8 * i));
}

void tp_plan_begin(struct tp_plan_writer *writer) {
  *writer = (struct tp_plan_writer){0};
  put(writer, TP_PLAN_VERSION, 2);
  put(writer, 0, 2);
}

void tp_plan_step(struct tp_plan_writer *writer, enum tp_op op, bool optional) {
  put(writer, op, 1);
  put(writer, optional, 1);
  put(writer, 0, 2);
  writer->count++;
}

void tp_plan_number(struct tp_plan_writer *writer, uint64_t number) {
  put(writer, number, 8);
}

void tp_plan_bytes(struct tp_plan_writer *writer, const char *bytes, size_t length) {
  put(writer, length, 4);
  uint8_t *at = room(writer, length + 1);
  if (!at)
    return;
  memcpy(at, bytes, length);
  at[length] = 0;
}

int tp_plan_end(struct tp_plan_writer *writer, struct tp_error *err) {
  if (writer->failed)
    return tp_fail(err, ENOMEM, "encode plan");
  if (writer->count > TP_PLAN_STEPS)
    return tp_fail(err, E2BIG, "plan of %u steps, the limit is %d", writer->count, TP_PLAN_STEPS);
  writer->bytes[2] = (uint8_t)writer->count;
  writer->bytes[3] = (uint8_t)(writer->count >> 8);
  return 0;
}
