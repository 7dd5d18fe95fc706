/* Requests to the file agent: what decodes encodes to the same bytes again. */
#include <stdlib.h>
#include <string.h>

#include "../init/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  struct tp_agent_request message;
  struct tp_error err;
  if (tp_agent_decode_request(bytes, length, &message, &err) < 0)
    return 0;
  struct tp_writer writer;
  tp_writer_init(&writer, length);
  tp_agent_encode_request(&writer, &message);
  if (writer.bad || writer.length != length || memcmp(writer.bytes, bytes, length) != 0)
    abort();
  tp_writer_free(&writer);
  return 0;
}
