/* See attach_input.h. No system calls here. */
#include "attach_input.h"

#include <stdbool.h>
#include <string.h>

static bool valid_head(const uint8_t *head, uint32_t length) {
  if (head[1] || head[2] || head[3])
    return false;
  switch (head[0]) {
  case TP_ATTACH_STDIN: return length <= TP_ATTACH_LIMIT;
  case TP_ATTACH_STDIN_EOF: return length == 0;
  case TP_ATTACH_RESIZE: return length == 4;
  default: return false;
  }
}

int tp_attach_parse(struct tp_attach_parser *parser, const uint8_t *bytes, size_t length,
                    tp_attach_taker *take, void *context) {
  const uint8_t *end = bytes + length;
  while (bytes < end) {
    if (parser->have < TP_ATTACH_INPUT_HEADER) {
      parser->head[parser->have++] = *bytes++;
      if (parser->have < TP_ATTACH_INPUT_HEADER)
        continue;
      const uint8_t *head = parser->head;
      parser->left = head[4] | (uint32_t)head[5] << 8 | (uint32_t)head[6] << 16 |
                     (uint32_t)head[7] << 24;
      parser->small_have = 0;
      if (!valid_head(head, parser->left))
        return -1;
      if (parser->left == 0) {
        if (head[0] == TP_ATTACH_STDIN_EOF)
          take(context, head[0], head, 0);
        parser->have = 0;
      }
      continue;
    }

    size_t part = (size_t)(end - bytes) < parser->left ? (size_t)(end - bytes) : parser->left;
    if (parser->head[0] == TP_ATTACH_RESIZE) {
      memcpy(parser->small + parser->small_have, bytes, part);
      parser->small_have = (uint8_t)(parser->small_have + part);
      if (part == parser->left)
        take(context, TP_ATTACH_RESIZE, parser->small, sizeof parser->small);
    } else {
      take(context, parser->head[0], bytes, part);
    }
    bytes += part;
    parser->left -= (uint32_t)part;
    if (parser->left == 0)
      parser->have = 0;
  }
  return 0;
}
