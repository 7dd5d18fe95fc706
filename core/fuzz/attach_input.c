/* What attached clients send; however it is cut, it means the same. */
#include "../init/attach_input.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

struct seen {
  size_t input, ends, sizes;
  uint32_t sum;
};

static void take(void *context, unsigned type, const uint8_t *bytes, size_t length) {
  struct seen *seen = context;
  for (size_t i = 0; i < length; i++)
    seen->sum = seen->sum * 31 + bytes[i];
  if (type == TP_ATTACH_STDIN)
    seen->input += length;
  else if (type == TP_ATTACH_STDIN_EOF && length == 0)
    seen->ends++;
  else if (type == TP_ATTACH_RESIZE && length == 4)
    seen->sizes++;
  else
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  struct tp_attach_parser whole = {0}, cut = {0};
  struct seen first = {0}, second = {0};
  if (length < 2)
    return 0;
  size_t piece = bytes[0] % 16 + 1u;
  bytes++, length--;
  int one = tp_attach_parse(&whole, bytes, length, take, &first), two = 0;
  for (size_t at = 0; at < length && two == 0; at += piece)
    two = tp_attach_parse(&cut, bytes + at, length - at < piece ? length - at : piece, take,
                          &second);
  if (one != two || memcmp(&first, &second, sizeof first) != 0)
    abort();
  return 0;
}
