/* init's replies and events: what decodes encodes to the same bytes again. */
#include <stdlib.h>
#include <string.h>

#include "../init/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  struct tp_init_reply message;
  struct tp_error err;
  if (tp_init_decode_reply(bytes, length, &message, &err) < 0)
    return 0;
  struct tp_writer writer;
  tp_writer_init(&writer, length);
  tp_init_encode_reply(&writer, &message);
  if (writer.bad || writer.length != length || memcmp(writer.bytes, bytes, length) != 0)
    abort();
  tp_writer_free(&writer);
  return 0;
}
