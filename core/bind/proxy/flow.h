/* What the bindings of the flow share: its connections' Lua handles, and how an operation's results
 * look in Lua, whether it ended at once or is told by flow:run(). */
#ifndef TP_BIND_PROXY_FLOW_H
#define TP_BIND_PROXY_FLOW_H

#include "../../proxy/flow.h"
#include "proxy.h"

/* A handle that holds NULL for now; __gc releases whatever is put there. */
struct tp_conn **tp_new_conn(lua_State *L);
/* The connection at `index`; raises when it is being read, or written, already. */
struct tp_conn *tp_check_reading(lua_State *L, int index);
struct tp_conn *tp_check_writing(lua_State *L, int index);
/* Seconds to milliseconds; nil is 0, no limit. */
uint64_t tp_check_limit(lua_State *L, int index);
void tp_define_conn(lua_State *L);

/* Push what an operation ended with; how many values. */
int tp_push_results(lua_State *L, const struct tp_op *op);
/* What a start function returns: a token, or 0 and the results of what has ended and is freed. */
int tp_push_begun(lua_State *L, struct tp_op *op);

/* Whatever the results raise (no memory), the operation is freed. */
#define TP_OP_SCOPE __attribute__((cleanup(tp_scope_op)))
static inline void tp_scope_op(struct tp_op **op) {
  tp_op_free(*op);
}

#endif
