/* The server's say while CRIU dumps or restores: CRIU runs us at each of its stages, and waits. */
#ifndef TP_CRIU_HOOK_H
#define TP_CRIU_HOOK_H

#include "../error.h"

/* Names the socket of the server; CRIU hands its environment on. */
#define TP_CRIU_HOOK "TIDEPOOL_CRIU_HOOK"

/* At the stages that matter asks the server by one frame, "STAGE PID" (of init, on the host), and waits
 * for one, "ok", before CRIU goes on. After a restore a plan may follow the "ok": its steps are carried out as
 * root inside, in the sandbox's mount namespace, before anything there runs. 0, or -1: CRIU is to give up. */
int tp_criu_hook(const char *stage, struct tp_error *err);

#endif
