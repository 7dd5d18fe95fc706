/* Plans: what decodes encodes to the same bytes again. */
#include <stdlib.h>
#include <string.h>

#include "../plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

static void write_step(struct tp_plan_writer *writer, const struct tp_step *step) {
  const char *kinds = tp_op_kinds(step->op);
  tp_plan_step(writer, step->op, step->optional);
  for (unsigned i = 0; kinds[i]; i++) {
    const struct tp_arg *arg = &step->args[i];
    if (kinds[i] == 'p' || kinds[i] == 's')
      tp_plan_bytes(writer, arg->bytes, arg->length);
    else
      tp_plan_number(writer, arg->number);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  static struct tp_plan plan;
  struct tp_error err;
  if (tp_plan_decode(bytes, length, &plan, &err) < 0)
    return 0;
  struct tp_plan_writer writer;
  tp_plan_begin(&writer);
  for (unsigned i = 0; i < plan.count; i++)
    write_step(&writer, &plan.steps[i]);
  if (tp_plan_end(&writer, &err) < 0 || writer.length != length ||
      memcmp(writer.bytes, bytes, length) != 0)
    abort();
  free(writer.bytes);
  return 0;
}
