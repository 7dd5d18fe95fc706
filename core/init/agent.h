/* The file agent: a fork of init with a user's identity that works on files for one client.
 *
 * It may block on its own socket and on disks, since it is not pid 1. What it does to files is what
 * its user may do; init's memory that it inherited is of no use to it and undumpable. */
#ifndef TP_INIT_AGENT_H
#define TP_INIT_AGENT_H

#include <sys/stat.h>

#include "../channel.h"
#include "codec.h"

#define AGENT_DEFAULT_MODE UINT32_MAX /* "the usual, or what is there" */
#define AGENT_PATH (TP_INIT_PATH + 16)

struct agent {
  struct tp_channel channel;
  struct tp_writer writer;
  /* What BEGIN opened: agent_file.c */
  int file; /* -1: nothing */
  bool append, exclusive, created;
  int failed; /* errno of the first WRITE that failed */
  mode_t mode;
  uint64_t begin_size, written;
  char target[AGENT_PATH], temporary[AGENT_PATH];
};

/* A path of the request, absolute; relative ones are in /workspace. */
const char *agent_path(struct tp_bytes path, char room[AGENT_PATH]);
void agent_stat(const struct stat *from, struct tp_agent_stat *to);
/* Send, waiting until the client has room. Ends the program when the client is gone. */
void agent_reply(struct agent *agent, const struct tp_agent_reply *reply, const int *fd);

/* Each returns 0 or an errno. */
int agent_begin(struct agent *agent, const struct tp_agent_request *request);
void agent_write(struct agent *agent, const struct tp_agent_request *request);
int agent_commit(struct agent *agent, const struct tp_agent_request *request,
                 struct tp_agent_stat *stat);
void agent_abort(struct agent *agent);

/* where[] names the directory that could not be read, for the message. */
int agent_list(struct agent *agent, const struct tp_agent_request *request, char *where,
               size_t size);
int agent_remove(const struct tp_agent_request *request);
int agent_mkdir(const struct tp_agent_request *request);

#endif
