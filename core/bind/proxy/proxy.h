/* The parts of require "tidepool.proxy". Each pushes its table of functions. */
#ifndef TP_BIND_PROXY_H
#define TP_BIND_PROXY_H

#include "../bind.h"

#endif
