/* What main.c alone needs of loop.c. */
#ifndef TP_INIT_LOOP_H
#define TP_INIT_LOOP_H

extern int loop_fd; /* the epoll */
void loop_collect(void);

#endif
