/* How HTTP heads look in Lua, wherever they come from. */
#ifndef TP_BIND_PROXY_HTTP_H
#define TP_BIND_PROXY_HTTP_H

#include "../../proxy/http.h"
#include "proxy.h"

/* { method, target, status, reason, minor, headers = { { name, value }, ... }, body = "none" |
 * "length" | "chunked" | "eof" | "upgrade", length, keep_alive, upgrade, expect_continue } */
void tp_push_http_head(lua_State *L, const struct tp_http_head *head);
/* { { name, value }, ... } */
void tp_push_http_headers(lua_State *L, const struct tp_http_header *headers, unsigned count);

#endif
