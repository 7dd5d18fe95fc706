/* Steering: a sandbox's network namespace, in which every connection but the sandbox's own ends at
 * sockets that only processes outside hold.
 *
 * Made by the spawner (plan step `steer`), opened and shut by the server, both root. The namespace
 * has `lo` alone and routes that make every address local; what is for the sandbox itself (127/8,
 * ::1, its own two addresses) goes the usual way. Of the rest, TCP goes to a listening socket and
 * UDP port 53 to a datagram socket of ours, and nothing else goes anywhere. Two ways lead there:
 *   bpf     an SK_LOOKUP program on the namespace and a sockmap of the four sockets. Shut: the map
 *           is empty, and the program refuses.
 *   tproxy  transparent sockets, and rules that the server puts in by `nft` before anything runs
 *           inside. Shut: the sockets aren't transparent, and the rules refuse. */
#ifndef TP_STEER_H
#define TP_STEER_H

#include <stdbool.h>

#include "error.h"

/* The port of the listeners. It is ours inside; outside of the ephemeral ports, so nobody gets
 * it by chance. The datagram sockets have port 53, since a reply's port is its socket's; they
 * share it with whoever sets SO_REUSEADDR, as name servers do. */
#define TP_STEER_PORT 61080
#define TP_STEER_DNS 53

#define TP_STEER_OWN4 0x0ac80002                          /* 10.200.0.2 */
#define TP_STEER_OWN6 {0xfd746964, 0x65000000, 0, 2}      /* fd74:6964:6500::2 */

enum tp_steer_mode { TP_STEER_BPF, TP_STEER_TPROXY };

/* The keys of the sockmap, too. A system without IPv6 has -1 for its two. */
enum { TP_STEER_TCP4, TP_STEER_TCP6, TP_STEER_UDP4, TP_STEER_UDP6, TP_STEER_SOCKETS };

/* Whether the kernel lets us use bpf: 0, or -1 with "EPERM" and the like. */
int tp_steer_probe(struct tp_error *err);

/* From now on connections reach the sockets. The map is of mode bpf alone. Twice is harmless. */
int tp_steer_open(enum tp_steer_mode mode, int map, const int sockets[TP_STEER_SOCKETS],
                  struct tp_error *err);

/* From now on connections are refused, and those that nobody has accepted yet are reset. Root
 * inside can destroy the listeners (accept then fails with EINVAL); this makes them new as
 * well. */
int tp_steer_shut(enum tp_steer_mode mode, int map, const int sockets[TP_STEER_SOCKETS],
                  struct tp_error *err);

/* Make a program and its map ahead, for a step to come; true once there are enough. Cannot fail:
 * where bpf is refused, the step that wants them says so. */
bool tp_steer_stock(void);

/* --- steer_bpf.c ------------------------------------------------------------------------------ */

/* An empty sockmap, and a program that looks into it. */
int tp_steer_map(struct tp_error *err);
int tp_steer_program(int map, struct tp_error *err);
/* Attach the program to a network namespace, for as long as the returned link is open somewhere. */
int tp_steer_link(int program, int namespace, struct tp_error *err);
int tp_steer_fill(int map, const int sockets[TP_STEER_SOCKETS], struct tp_error *err);
int tp_steer_clear(int map, struct tp_error *err);

/* --- steer_network.c: in the calling thread's network namespace ------------------------------- */

/* lo up, the sandbox's addresses, the routes, no answer to pings. What is there already is fine.
 * *ipv6 tells whether the namespace has that. */
int tp_steer_network(bool *ipv6, struct tp_error *err);
/* The four sockets; nothing reaches them yet. The caller owns those that are not -1, also on
 * failure. */
int tp_steer_sockets(bool ipv6, int sockets[TP_STEER_SOCKETS], struct tp_error *err);

#endif
