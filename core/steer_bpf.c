/* The SK_LOOKUP program and its map, by raw bpf(2): see steer.h. Runs as root, in the spawner
 * (which makes them) and in the server (which fills and empties the map). */
#include <errno.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "scope.h"
#include "steer.h"

static int bpf(enum bpf_cmd command, union bpf_attr *attr) {
  return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

int tp_steer_map(struct tp_error *err) {
  union bpf_attr attr = {.map_type = BPF_MAP_TYPE_SOCKMAP,
                         .key_size = 4,
                         .value_size = 8,
                         .max_entries = TP_STEER_SOCKETS};
  int fd = bpf(BPF_MAP_CREATE, &attr);
  return fd < 0 ? tp_fail(err, errno, "make a sockmap") : fd;
}

/* --- the program: a small assembler, so that jumps have names --------------------------------- */

enum label { IPV6, LOOK, DROP, PASS, LABELS };

struct assembly {
  struct bpf_insn code[64];
  enum label target[64]; /* of the jumps */
  int at[LABELS];
  unsigned count;
};

static void emit(struct assembly *a, int code, int to, int from, int off, int32_t value) {
  a->target[a->count] = LABELS;
  a->code[a->count++] = (struct bpf_insn){.code = (uint8_t)code,
                                          .dst_reg = (uint8_t)to & 15,
                                          .src_reg = (uint8_t)from & 15,
                                          .off = (int16_t)off,
                                          .imm = value};
}

static void label(struct assembly *a, enum label name) {
  a->at[name] = (int)a->count;
}

static void jump(struct assembly *a, int when, int reg, uint32_t value, enum label name) {
  emit(a, when == BPF_JA ? BPF_JMP | BPF_JA : BPF_JMP32 | when | BPF_K, reg, 0, 0, (int32_t)value);
  a->target[a->count - 1] = name;
}

static void load(struct assembly *a, int to, size_t offset) {
  emit(a, BPF_LDX | BPF_MEM | BPF_W, to, 6, (int)offset, 0);
}

static void move(struct assembly *a, int to, int from) {
  emit(a, BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}

static void set(struct assembly *a, int to, int32_t value) {
  emit(a, BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}

static void add(struct assembly *a, int to, int32_t value) {
  emit(a, BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value);
}

static void call(struct assembly *a, int32_t function) {
  emit(a, BPF_JMP | BPF_CALL, 0, 0, 0, function);
}

static void end(struct assembly *a, int32_t verdict) {
  set(a, 0, verdict);
  emit(a, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

#define FIELD(name) offsetof(struct bpf_sk_lookup, name)

/* Own destinations pass. r6 is the context, r7 the key of the TCP socket from here on.
 * Addresses are loaded in network order. */
static void sort_destination(struct assembly *a) {
  move(a, 6, 1);
  load(a, 2, FIELD(family));
  jump(a, BPF_JNE, 2, AF_INET, IPV6);
  set(a, 7, TP_STEER_TCP4);
  load(a, 2, FIELD(local_ip4));
  jump(a, BPF_JEQ, 2, htonl(TP_STEER_OWN4), PASS);
  emit(a, BPF_ALU | BPF_AND | BPF_K, 2, 0, 0, (int32_t)htonl(0xff000000));
  jump(a, BPF_JEQ, 2, htonl(0x7f000000), PASS);
  jump(a, BPF_JA, 0, 0, LOOK);

  static const uint32_t own[4] = TP_STEER_OWN6;
  label(a, IPV6);
  set(a, 7, TP_STEER_TCP6);
  for (unsigned i = 0; i < 4; i++)
    load(a, 2 + (int)i, FIELD(local_ip6) + 4 * i);
  /* Both of ours end in 0, N: ::1 and fd74:6964:6500::2. */
  jump(a, BPF_JNE, 4, 0, LOOK);
  emit(a, BPF_JMP32 | BPF_JNE | BPF_K, 2, 0, 2, 0); /* over the next two */
  jump(a, BPF_JNE, 3, 0, LOOK);
  jump(a, BPF_JEQ, 5, htonl(1), PASS);
  jump(a, BPF_JNE, 2, htonl(own[0]), LOOK);
  jump(a, BPF_JNE, 3, htonl(own[1]), LOOK);
  jump(a, BPF_JEQ, 5, htonl(own[3]), PASS);
}

/* The rest goes to the socket of its protocol. No socket in the map: it is refused. */
static void assign_socket(struct assembly *a, int map) {
  label(a, LOOK);
  load(a, 2, FIELD(protocol));
  emit(a, BPF_JMP32 | BPF_JEQ | BPF_K, 2, 0, 4, IPPROTO_TCP); /* over what is about UDP */
  jump(a, BPF_JNE, 2, IPPROTO_UDP, DROP);
  load(a, 2, FIELD(local_port));
  jump(a, BPF_JNE, 2, TP_STEER_DNS, DROP);
  add(a, 7, TP_STEER_UDP4 - TP_STEER_TCP4);

  emit(a, BPF_STX | BPF_MEM | BPF_W, 10, 7, -4, 0);
  emit(a, BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map);
  emit(a, 0, 0, 0, 0, 0); /* the instruction above is two long */
  move(a, 2, 10);
  add(a, 2, -4);
  call(a, BPF_FUNC_map_lookup_elem);
  emit(a, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 0, 0);
  a->target[a->count - 1] = DROP;
  move(a, 8, 0);
  move(a, 1, 6);
  move(a, 2, 8);
  set(a, 3, BPF_SK_LOOKUP_F_NO_REUSEPORT);
  call(a, BPF_FUNC_sk_assign);
  move(a, 7, 0);
  move(a, 1, 8);
  call(a, BPF_FUNC_sk_release);
  jump(a, BPF_JNE, 7, 0, DROP);
  label(a, PASS);
  end(a, SK_PASS);
  label(a, DROP);
  end(a, SK_DROP);
}

int tp_steer_program(int map, struct tp_error *err) {
  struct assembly a = {.count = 0};
  sort_destination(&a);
  assign_socket(&a, map);
  for (unsigned i = 0; i < a.count; i++)
    if (a.target[i] != LABELS)
      a.code[i].off = (int16_t)(a.at[a.target[i]] - (int)i - 1);

  union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_SK_LOOKUP,
                         .expected_attach_type = BPF_SK_LOOKUP,
                         .insn_cnt = a.count,
                         .insns = (uintptr_t)a.code,
                         .license = (uintptr_t) "MIT",
                         .prog_name = "tidepool_steer"};
  int fd = bpf(BPF_PROG_LOAD, &attr);
  return fd < 0 ? tp_fail(err, errno, "load the steering program") : fd;
}

int tp_steer_link(int program, int namespace, struct tp_error *err) {
  union bpf_attr attr = {.link_create = {.prog_fd = (uint32_t)program,
                                         .target_fd = (uint32_t)namespace,
                                         .attach_type = BPF_SK_LOOKUP}};
  int fd = bpf(BPF_LINK_CREATE, &attr);
  return fd < 0 ? tp_fail(err, errno, "attach the steering program") : fd;
}

int tp_steer_probe(struct tp_error *err) {
  TP_CLOSE int map = tp_steer_map(err);
  if (map < 0)
    return -1;
  TP_CLOSE int program = tp_steer_program(map, err);
  return program < 0 ? -1 : 0;
}

int tp_steer_fill(int map, const int sockets[TP_STEER_SOCKETS], struct tp_error *err) {
  for (uint32_t key = 0; key < TP_STEER_SOCKETS; key++) {
    if (sockets[key] < 0)
      continue;
    uint64_t value = (uint64_t)sockets[key];
    union bpf_attr attr = {
        .map_fd = (uint32_t)map, .key = (uintptr_t)&key, .value = (uintptr_t)&value};
    if (bpf(BPF_MAP_UPDATE_ELEM, &attr) < 0)
      return tp_fail(err, errno, "put socket %u into the map", (unsigned)key);
  }
  return 0;
}

int tp_steer_clear(int map, struct tp_error *err) {
  for (uint32_t key = 0; key < TP_STEER_SOCKETS; key++) {
    uint64_t cookie;
    union bpf_attr attr = {
        .map_fd = (uint32_t)map, .key = (uintptr_t)&key, .value = (uintptr_t)&cookie};
    /* Looked up first: deleting says EINVAL of a key without a socket, as of what is no map. */
    bool gone = bpf(BPF_MAP_LOOKUP_ELEM, &attr) < 0 && errno == ENOENT;
    attr.value = 0;
    if (!gone && bpf(BPF_MAP_DELETE_ELEM, &attr) < 0)
      return tp_fail(err, errno, "take socket %u out of the map", (unsigned)key);
  }
  return 0;
}
