/* The parts of require "tidepool.proxy". Each pushes its table of functions. */
#ifndef TP_BIND_PROXY_H
#define TP_BIND_PROXY_H

#include "../bind.h"

/* Userdata that holds a struct tp_scrub *. */
#define TP_SCRUB_TYPE "tidepool.Scrub"

int tp_open_scrub(lua_State *L);

int tp_open_http(lua_State *L);

#endif
