/* The parts of require "tidepool.proxy". Each pushes its table of functions. */
#ifndef TP_BIND_PROXY_H
#define TP_BIND_PROXY_H

#include "../bind.h"

/* What a server end presents, what a client end believes: the object's own reference. */
struct tp_tls_identity *tp_check_identity(lua_State *L, int index);
struct tp_tls_trust *tp_check_trust(lua_State *L, int index);

int tp_open_tls(lua_State *L);
int tp_open_ca(lua_State *L);

/* Userdata that holds a struct tp_scrub *. */
#define TP_SCRUB_TYPE "tidepool.Scrub"

int tp_open_scrub(lua_State *L);
int tp_open_resolver(lua_State *L);
int tp_open_digest(lua_State *L);
int tp_open_watchdog(lua_State *L);
int tp_open_confine(lua_State *L);

int tp_open_http(lua_State *L);
int tp_open_hello(lua_State *L);
int tp_open_dns(lua_State *L);

int tp_open_flow(lua_State *L);
int tp_open_socket(lua_State *L);

#endif
