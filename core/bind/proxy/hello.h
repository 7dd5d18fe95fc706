/* How a ClientHello looks in Lua, wherever it comes from. */
#ifndef TP_BIND_PROXY_HELLO_H
#define TP_BIND_PROXY_HELLO_H

#include "../../proxy/hello.h"
#include "proxy.h"

/* { sni, alpn = { name, ... }, versions = { 0x0304, ... }, has_tls12, ech, session_id_length } */
void tp_push_hello(lua_State *L, const struct tp_hello *hello);

#endif
