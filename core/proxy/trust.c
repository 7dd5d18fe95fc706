/* A bundle of roots with what was learnt under it, sessions and verdicts: see trust.h.
 *
 * Both caches are small rings, looked through from start to end: a new connection costs a
 * millisecond of arithmetic, a look at a few dozen entries nothing. */
#include "trust.h"

#include <errno.h>
#include <mbedtls/pem.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../scope.h"
#include "tls_error.h"

enum { SESSIONS = 64, VERDICTS = 128 };

struct session {
  char *host;
  int64_t until;
  br_ssl_session_parameters parameters;
};

struct verdict {
  unsigned char digest[32];
  int64_t until;
};

struct tp_tls_trust {
  unsigned references;
  mbedtls_x509_crt roots;
  struct session sessions[SESSIONS];
  struct verdict verdicts[VERDICTS];
  unsigned next_session, next_verdict;
};

/* Each certificate by itself, as mbedTLS's own reader of bundles does, which however leaves out the
 * roots that have critical name constraints. */
static void parse_each(mbedtls_x509_crt *roots, const char *text) {
  mbedtls_pem_context pem;
  size_t used;
  for (;; text += used) {
    mbedtls_pem_init(&pem);
    used = 0;
    int result = mbedtls_pem_read_buffer(&pem, "-----BEGIN CERTIFICATE-----",
                                         "-----END CERTIFICATE-----", (const unsigned char *)text,
                                         NULL, 0, &used);
    if (result == 0)
      mbedtls_x509_crt_parse_der_with_ext_cb(roots, pem.buf, pem.buflen, 1, tp_trust_limits_known,
                                             NULL);
    mbedtls_pem_free(&pem);
    if (result == MBEDTLS_ERR_PEM_NO_HEADER_FOOTER_PRESENT || used == 0)
      return;
  }
}

/* mbedTLS reads text up to its final NUL. */
static int parse_bundle(mbedtls_x509_crt *roots, const char *pem, size_t length,
                        struct tp_error *err) {
  TP_FREE char *text = malloc(length + 1);
  if (!text)
    return tp_fail(err, ENOMEM, "read certificates");
  memcpy(text, pem, length);
  text[length] = 0;
  parse_each(roots, text);
  if (!roots->raw.p)
    return tp_tls_refuse(err, EBADMSG, "no certificate that can be read in %zu bytes of PEM",
                         length);
  return 0;
}

struct tp_tls_trust *tp_trust_open(const char *pem, size_t length, unsigned *count,
                                   struct tp_error *err) {
  struct tp_tls_trust *trust = calloc(1, sizeof *trust);
  if (!trust) {
    tp_fail(err, ENOMEM, "make trust");
    return NULL;
  }
  trust->references = 1;
  mbedtls_x509_crt_init(&trust->roots);
  if (parse_bundle(&trust->roots, pem, length, err) < 0) {
    tp_tls_trust_release(trust);
    return NULL;
  }
  *count = 0;
  for (const mbedtls_x509_crt *root = &trust->roots; root; root = root->next)
    (*count)++;
  return trust;
}

struct tp_tls_trust *tp_tls_trust_retain(struct tp_tls_trust *trust) {
  trust->references++;
  return trust;
}

static void session_clear(struct session *session) {
  free(session->host);
  explicit_bzero(session, sizeof *session);
}

void tp_tls_trust_release(struct tp_tls_trust *trust) {
  if (!trust || --trust->references)
    return;
  mbedtls_x509_crt_free(&trust->roots);
  for (unsigned i = 0; i < SESSIONS; i++)
    session_clear(&trust->sessions[i]);
  free(trust);
}

const mbedtls_x509_crt *tp_trust_roots(const struct tp_tls_trust *trust) {
  return &trust->roots;
}

static struct session *session_of(struct tp_tls_trust *trust, const char *host) {
  for (unsigned i = 0; i < SESSIONS; i++)
    if (trust->sessions[i].host && strcmp(trust->sessions[i].host, host) == 0)
      return &trust->sessions[i];
  return NULL;
}

bool tp_trust_session_load(struct tp_tls_trust *trust, const char *host,
                           br_ssl_session_parameters *parameters) {
  struct session *session = session_of(trust, host);
  if (!session)
    return false;
  if (session->until <= time(NULL)) {
    session_clear(session);
    return false;
  }
  *parameters = session->parameters;
  return true;
}

void tp_trust_session_save(struct tp_tls_trust *trust, const char *host,
                           const br_ssl_session_parameters *parameters, int64_t until) {
  struct session *session = session_of(trust, host);
  if (!session)
    session = &trust->sessions[trust->next_session++ % SESSIONS];
  char *name = strdup(host);
  session_clear(session);
  if (!name)
    return;
  *session = (struct session){.host = name, .until = until, .parameters = *parameters};
}

void tp_trust_session_forget(struct tp_tls_trust *trust, const char *host) {
  struct session *session = session_of(trust, host);
  if (session)
    session_clear(session);
}

bool tp_trust_verdict_load(const struct tp_tls_trust *trust, const unsigned char digest[32],
                           int64_t *until) {
  int64_t now = time(NULL);
  for (unsigned i = 0; i < VERDICTS; i++) {
    const struct verdict *verdict = &trust->verdicts[i];
    if (verdict->until > now && memcmp(verdict->digest, digest, 32) == 0) {
      *until = verdict->until;
      return true;
    }
  }
  return false;
}

void tp_trust_verdict_save(struct tp_tls_trust *trust, const unsigned char digest[32],
                           int64_t until) {
  struct verdict *verdict = &trust->verdicts[trust->next_verdict++ % VERDICTS];
  memcpy(verdict->digest, digest, 32);
  verdict->until = until;
}
