/* Whom a TLS client believes: a bundle of root certificates, and the check of a peer's chain
 * against it, by mbedTLS, in the shape that BearSSL's handshake asks for (br_x509_class).
 *
 * In the egress process, unprivileged. The chain is the network's: at most 16 certificates, 64 KiB,
 * RSA keys up to 4096 bits with small exponents, so that nothing in it costs more than
 * milliseconds. SHA-2 signatures, RSA from 2048 bits, the curves P-256, P-384 and P-521. Name
 * constraints hold. There is no revocation check. */
#ifndef TP_PROXY_TRUST_H
#define TP_PROXY_TRUST_H

#include <bearssl.h>
#include <mbedtls/x509_crt.h>
#include <stdbool.h>

#include "tls.h"

/* Read PEM certificates, skipping what can't be parsed. EBADMSG when none is left. The caller owns
 * the reference that is returned. */
struct tp_tls_trust *tp_trust_open(const char *pem, size_t length, unsigned *count,
                                   struct tp_error *err);

/* One handshake's check. BearSSL gets the address of `vtable`; what it checked against goes with
 * the check, so keep both until the handshake is done. */
struct tp_trust_check;
struct tp_trust_check *tp_trust_check_new(struct tp_tls_trust *, const char *host,
                                          struct tp_error *err);
void tp_trust_check_free(struct tp_trust_check *);
const br_x509_class **tp_trust_check_engine(struct tp_trust_check *);
/* -1 and why when the chain was refused, else 0. */
int tp_trust_check_failure(const struct tp_trust_check *, struct tp_error *err);
/* Until when the verdict may be reused; 0 without one, a resumed handshake showing no chain. */
int64_t tp_trust_check_until(const struct tp_trust_check *);

/* Sessions by host, so that a new connection resumes: a round trip and the signatures less. A
 * session is offered no longer than the chain that it stands for may be believed. */
bool tp_trust_session_load(struct tp_tls_trust *, const char *host, br_ssl_session_parameters *);
void tp_trust_session_save(struct tp_tls_trust *, const char *host,
                           const br_ssl_session_parameters *, int64_t until);
void tp_trust_session_forget(struct tp_tls_trust *, const char *host);

/* For trust_chain.c: whether this very chain was found good for the host, lately. */
const mbedtls_x509_crt *tp_trust_roots(const struct tp_tls_trust *);
bool tp_trust_verdict_load(const struct tp_tls_trust *, const unsigned char digest[32],
                           int64_t *until);
void tp_trust_verdict_save(struct tp_tls_trust *, const unsigned char digest[32], int64_t until);

/* trust_name.c: whether the certificate is for the host, by RFC 6125: subjectAltName alone where it
 * has one, `*` for exactly one whole leftmost label, addresses only by iPAddress entries. */
bool tp_trust_name_matches(const mbedtls_x509_crt *, const char *host);
/* The names it is for, as text for a message: "a.example, *.b.example and 3 more". */
void tp_trust_name_list(const mbedtls_x509_crt *, char *text, size_t size);
/* A distinguished name's most telling part, made printable. */
void tp_trust_name_of(const mbedtls_x509_name *, char *text, size_t size);

/* trust_limits.c: whether the issuer's name constraints let it vouch for the host. */
bool tp_trust_limits_allow(const mbedtls_x509_crt *issuer, const char *host);
/* For mbedTLS's parser (mbedtls_x509_crt_ext_cb_t): yes to name constraints, though critical. */
int tp_trust_limits_known(void *context, const mbedtls_x509_crt *, const mbedtls_x509_buf *oid,
                          int critical, const unsigned char *at, const unsigned char *end);

#endif
