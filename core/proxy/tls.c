/* TLS endpoints over BearSSL's engine: see tls.h.
 *
 * The suites are those with forward secrecy and SHA-2, AES-GCM first: with AES-NI it is several
 * times faster than anything else here. CBC is offered upstream alone, last, for old servers.
 * Renegotiation is refused. */
#include "tls.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tls_error.h"
#include "tls_host.h"
#include "tls_parts.h"
#include "tls_random.h"
#include "trust.h"

struct tp_tls {
  union {
    br_ssl_engine_context engine; /* the first member of both */
    br_ssl_client_context client;
    br_ssl_server_context server;
  };
  bool is_client, open, resumed;
  struct tp_tls_identity *identity;
  struct tp_tls_trust *trust;
  struct tp_trust_check *check; /* a client's, until the handshake is done */
  char host[TP_TLS_HOST];       /* a client's */
  unsigned char in[BR_SSL_BUFSIZE_INPUT];
  unsigned char out[BR_SSL_BUFSIZE_OUTPUT];
};

static const uint16_t CLIENT_SUITES[] = {
    BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256,
    BR_TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384,
    BR_TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384,
};

static const uint16_t SERVER_SUITES[] = {
    BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* What a server end agrees to; a client end offers the first alone. */
static const char *PROTOCOLS[] = {"http/1.1", "http/1.0"};

/* Seeding by hand, since BearSSL's own way is to open /dev/urandom where the CPU has no rdrand. */
static int seed(br_ssl_engine_context *engine, struct tp_error *err) {
  unsigned char bytes[48];
  if (tp_tls_random(NULL, bytes, sizeof bytes) < 0)
    return tp_fail(err, errno, "seed TLS");
  br_ssl_engine_inject_entropy(engine, bytes, sizeof bytes);
  engine->rng_os_rand_done = 1;
  explicit_bzero(bytes, sizeof bytes);
  return 0;
}

/* What both ends have in common, AES-NI and the like where this CPU has them. */
static int equip(struct tp_tls *tls, struct tp_error *err) {
  br_ssl_engine_context *engine = &tls->engine;
  br_ssl_engine_set_versions(engine, BR_TLS12, BR_TLS12);
  br_ssl_engine_set_hash(engine, br_sha256_ID, &br_sha256_vtable);
  br_ssl_engine_set_hash(engine, br_sha384_ID, &br_sha384_vtable);
  br_ssl_engine_set_hash(engine, br_sha512_ID, &br_sha512_vtable);
  br_ssl_engine_set_prf_sha256(engine, &br_tls12_sha256_prf);
  br_ssl_engine_set_prf_sha384(engine, &br_tls12_sha384_prf);
  br_ssl_engine_set_default_aes_gcm(engine);
  br_ssl_engine_set_default_chapol(engine);
  br_ssl_engine_set_default_ec(engine);
  br_ssl_engine_add_flags(engine, BR_OPT_NO_RENEGOTIATION);
  br_ssl_engine_set_buffers_bidi(engine, tls->in, sizeof tls->in, tls->out, sizeof tls->out);
  return seed(engine, err);
}

/* Not zeroed as a whole: the buffers need no zeros, and an untouched page costs no memory. */
static struct tp_tls *new_end(struct tp_error *err) {
  struct tp_tls *tls = malloc(sizeof *tls);
  if (!tls) {
    tp_fail(err, ENOMEM, "make TLS endpoint");
    return NULL;
  }
  memset(tls, 0, offsetof(struct tp_tls, in));
  return tls;
}

static struct tp_tls *started(struct tp_tls *tls, int reset, struct tp_error *err) {
  if (reset)
    return tls;
  tp_fail(err, EIO, "start TLS (BearSSL error %d)", br_ssl_engine_last_error(&tls->engine));
  tp_tls_free(tls);
  return NULL;
}

struct tp_tls *tp_tls_server(struct tp_tls_identity *identity, struct tp_error *err) {
  struct tp_tls *tls = new_end(err);
  if (!tls)
    return NULL;
  br_ssl_server_zero(&tls->server);
  tls->identity = tp_tls_identity_retain(identity);
  if (equip(tls, err) < 0) {
    tp_tls_free(tls);
    return NULL;
  }
  br_ssl_engine_set_suites(&tls->engine, SERVER_SUITES, COUNT(SERVER_SUITES));
  br_ssl_engine_set_protocol_names(&tls->engine, PROTOCOLS, 2);
  br_ssl_engine_add_flags(&tls->engine,
                          BR_OPT_ENFORCE_SERVER_PREFERENCES | BR_OPT_FAIL_ON_ALPN_MISMATCH);
  br_ssl_server_set_single_ec(&tls->server, identity->chain, 2, identity->key, BR_KEYTYPE_SIGN,
                              BR_KEYTYPE_EC, br_ec_get_default(), br_ecdsa_sign_asn1_get_default());
  br_ssl_server_set_cache(&tls->server, identity->sessions);
  return started(tls, br_ssl_server_reset(&tls->server), err);
}

static int equip_client(struct tp_tls *tls, const char *host, struct tp_error *err) {
  br_ssl_engine_context *engine = &tls->engine;
  if (tp_tls_host_normalise(host, tls->host, err) < 0 || equip(tls, err) < 0)
    return -1;
  tls->check = tp_trust_check_new(tls->trust, tls->host, err);
  if (!tls->check)
    return -1;
  br_ssl_engine_set_default_aes_cbc(engine);
  br_ssl_engine_set_default_ecdsa(engine);
  br_ssl_engine_set_default_rsavrfy(engine);
  br_ssl_engine_set_suites(engine, CLIENT_SUITES, COUNT(CLIENT_SUITES));
  br_ssl_engine_set_protocol_names(engine, PROTOCOLS, 1);
  br_ssl_engine_set_x509(engine, tp_trust_check_engine(tls->check));
  return 0;
}

struct tp_tls *tp_tls_client(struct tp_tls_trust *trust, const char *host, struct tp_error *err) {
  struct tp_tls *tls = new_end(err);
  if (!tls)
    return NULL;
  br_ssl_client_zero(&tls->client);
  tls->is_client = true;
  tls->trust = tp_tls_trust_retain(trust);
  if (equip_client(tls, host, err) < 0) {
    tp_tls_free(tls);
    return NULL;
  }
  br_ssl_session_parameters session;
  bool resume = tp_trust_session_load(trust, tls->host, &session);
  if (resume)
    br_ssl_engine_set_session_parameters(&tls->engine, &session);
  /* An address is no name for SNI. */
  const char *name = tp_tls_host_is_address(tls->host) ? NULL : tls->host;
  return started(tls, br_ssl_client_reset(&tls->client, name, resume), err);
}

void tp_tls_free(struct tp_tls *tls) {
  if (!tls)
    return;
  tp_trust_check_free(tls->check);
  tp_tls_identity_release(tls->identity);
  tp_tls_trust_release(tls->trust);
  explicit_bzero(tls, sizeof *tls); /* keys, and what was said last */
  free(tls);
}

/* A client's handshake is done: keep its session for the next, drop what verified the chain. */
static void settle_client(struct tp_tls *tls) {
  br_ssl_session_parameters session;
  int64_t until = tp_trust_check_until(tls->check);
  br_ssl_engine_get_session_parameters(&tls->engine, &session);
  tls->resumed = until == 0;
  if (!tls->resumed && session.session_id_len > 0)
    tp_trust_session_save(tls->trust, tls->host, &session, until);
  tp_trust_check_free(tls->check);
  tls->check = NULL;
}

static void settle(struct tp_tls *tls) {
  unsigned state = br_ssl_engine_current_state(&tls->engine);
  if (tls->open)
    return;
  if (state == BR_SSL_CLOSED && tls->is_client)
    tp_trust_session_forget(tls->trust, tls->host);
  if (!(state & BR_SSL_SENDAPP))
    return;
  tls->open = true;
  if (tls->is_client)
    settle_client(tls);
}

unsigned tp_tls_state(const struct tp_tls *tls) {
  static const struct {
    unsigned theirs, ours;
  } bits[] = {{BR_SSL_RECVREC, TP_TLS_TAKES_RECORDS}, {BR_SSL_SENDREC, TP_TLS_HAS_RECORDS},
              {BR_SSL_RECVAPP, TP_TLS_HAS_DATA},      {BR_SSL_SENDAPP, TP_TLS_TAKES_DATA},
              {BR_SSL_CLOSED, TP_TLS_CLOSED}};
  unsigned theirs = br_ssl_engine_current_state(&tls->engine), ours = 0;
  for (unsigned i = 0; i < COUNT(bits); i++)
    if (theirs & bits[i].theirs)
      ours |= bits[i].ours;
  return ours;
}

unsigned char *tp_tls_records_in(struct tp_tls *tls, size_t *room) {
  return br_ssl_engine_recvrec_buf(&tls->engine, room);
}

void tp_tls_records_in_ack(struct tp_tls *tls, size_t length) {
  br_ssl_engine_recvrec_ack(&tls->engine, length);
  settle(tls);
}

unsigned char *tp_tls_records_out(struct tp_tls *tls, size_t *length) {
  return br_ssl_engine_sendrec_buf(&tls->engine, length);
}

void tp_tls_records_out_ack(struct tp_tls *tls, size_t length) {
  br_ssl_engine_sendrec_ack(&tls->engine, length);
  settle(tls);
}

unsigned char *tp_tls_data_in(struct tp_tls *tls, size_t *length) {
  return br_ssl_engine_recvapp_buf(&tls->engine, length);
}

void tp_tls_data_in_ack(struct tp_tls *tls, size_t length) {
  br_ssl_engine_recvapp_ack(&tls->engine, length);
}

unsigned char *tp_tls_data_out(struct tp_tls *tls, size_t *room) {
  return br_ssl_engine_sendapp_buf(&tls->engine, room);
}

void tp_tls_data_out_ack(struct tp_tls *tls, size_t length) {
  br_ssl_engine_sendapp_ack(&tls->engine, length);
}

void tp_tls_flush(struct tp_tls *tls) {
  br_ssl_engine_flush(&tls->engine, 0);
}

void tp_tls_close(struct tp_tls *tls) {
  br_ssl_engine_close(&tls->engine);
}

int tp_tls_failure(const struct tp_tls *tls, struct tp_error *err) {
  int number = br_ssl_engine_last_error(&tls->engine);
  if (number == BR_ERR_OK)
    return 0;
  if (tls->check && tp_trust_check_failure(tls->check, err) < 0)
    return -1;
  const char *peer = tls->is_client ? tls->host : "client";
  return tp_tls_explain(number, tls->is_client, tls->open, peer, err);
}

const char *tp_tls_alpn(const struct tp_tls *tls) {
  return br_ssl_engine_get_selected_protocol((br_ssl_engine_context *)&tls->engine);
}

const char *tp_tls_suite(const struct tp_tls *tls) {
  static const struct {
    uint16_t number;
    const char *name;
  } names[] = {
#define N(name) {BR_TLS_##name, #name}
      N(ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),       N(ECDHE_RSA_WITH_AES_128_GCM_SHA256),
      N(ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),       N(ECDHE_RSA_WITH_AES_256_GCM_SHA384),
      N(ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256), N(ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
      N(ECDHE_ECDSA_WITH_AES_128_CBC_SHA256),       N(ECDHE_RSA_WITH_AES_128_CBC_SHA256),
      N(ECDHE_ECDSA_WITH_AES_256_CBC_SHA384),       N(ECDHE_RSA_WITH_AES_256_CBC_SHA384),
#undef N
  };
  for (unsigned i = 0; tls->open && i < COUNT(names); i++)
    if (names[i].number == tls->engine.session.cipher_suite)
      return names[i].name;
  return NULL;
}

int tp_tls_resumed(const struct tp_tls *tls) {
  return tls->resumed;
}
