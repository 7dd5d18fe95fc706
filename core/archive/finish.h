/* What every image must have to be a sandbox, whoever made it.
 *
 * Mount points, /etc/{hostname,hosts,resolv.conf} as regular files, user and group `agent` (1000)
 * with home /workspace, sudo without a password where sudo is there. Runs in the confined worker
 * with the image as root directory: an image's symbolic links can't lead outside. */
#ifndef TP_FINISH_H
#define TP_FINISH_H

#include "../error.h"

int tp_finish(struct tp_error *err);

#endif
