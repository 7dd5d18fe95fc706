/* The words for failed handshakes: see tls_error.h. */
#include "tls_error.h"

#include <bearssl.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

int tp_tls_refuse(struct tp_error *err, int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);
  err->code = code;
  return -1;
}

/* Alerts that BearSSL has no name for. */
enum { UNRECOGNIZED_NAME = 112, CERTIFICATE_REQUIRED = 116 };

static const char *alert_name(int alert) {
  static const struct {
    int number;
    const char *name;
  } names[] = {
      {BR_ALERT_UNEXPECTED_MESSAGE, "unexpected_message"},
      {BR_ALERT_BAD_RECORD_MAC, "bad_record_mac"},
      {BR_ALERT_RECORD_OVERFLOW, "record_overflow"},
      {BR_ALERT_HANDSHAKE_FAILURE, "handshake_failure"},
      {BR_ALERT_BAD_CERTIFICATE, "bad_certificate"},
      {BR_ALERT_UNSUPPORTED_CERTIFICATE, "unsupported_certificate"},
      {BR_ALERT_CERTIFICATE_REVOKED, "certificate_revoked"},
      {BR_ALERT_CERTIFICATE_EXPIRED, "certificate_expired"},
      {BR_ALERT_CERTIFICATE_UNKNOWN, "certificate_unknown"},
      {BR_ALERT_ILLEGAL_PARAMETER, "illegal_parameter"},
      {BR_ALERT_UNKNOWN_CA, "unknown_ca"},
      {BR_ALERT_ACCESS_DENIED, "access_denied"},
      {BR_ALERT_DECODE_ERROR, "decode_error"},
      {BR_ALERT_DECRYPT_ERROR, "decrypt_error"},
      {BR_ALERT_PROTOCOL_VERSION, "protocol_version"},
      {BR_ALERT_INSUFFICIENT_SECURITY, "insufficient_security"},
      {BR_ALERT_INTERNAL_ERROR, "internal_error"},
      {BR_ALERT_USER_CANCELED, "user_canceled"},
      {BR_ALERT_NO_APPLICATION_PROTOCOL, "no_application_protocol"},
      {UNRECOGNIZED_NAME, "unrecognized_name"},
      {CERTIFICATE_REQUIRED, "certificate_required"},
  };
  for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
    if (names[i].number == alert)
      return names[i].name;
  return "unknown";
}

/* An upstream server said no. */
static int explain_refusal(int alert, const char *host, struct tp_error *err) {
  switch (alert) {
  case BR_ALERT_PROTOCOL_VERSION:
    return tp_tls_refuse(err, EPROTONOSUPPORT, "%s speaks only TLS 1.3, the proxy TLS 1.2", host);
  case BR_ALERT_HANDSHAKE_FAILURE:
  case BR_ALERT_INSUFFICIENT_SECURITY:
    return tp_tls_refuse(err, EPROTONOSUPPORT,
                         "%s and the proxy have no TLS version or cipher suite in common, or it "
                         "wants a client certificate (alert %s)",
                         host, alert_name(alert));
  case BR_ALERT_NO_APPLICATION_PROTOCOL:
    return tp_tls_refuse(err, EPROTONOSUPPORT, "%s does not speak HTTP/1.1", host);
  case UNRECOGNIZED_NAME:
    return tp_tls_refuse(err, EPROTO, "the server says it is not %s (alert unrecognized_name)",
                         host);
  case CERTIFICATE_REQUIRED:
    return tp_tls_refuse(err, EPROTO, "%s wants a client certificate", host);
  default:
    return tp_tls_refuse(err, EPROTO, "%s ended the connection with alert %s (%d)", host,
                         alert_name(alert), alert);
  }
}

/* A client in the sandbox said no, to a certificate in most cases. */
static int explain_distrust(int alert, struct tp_error *err) {
  if (alert >= BR_ALERT_BAD_CERTIFICATE && alert <= BR_ALERT_UNKNOWN_CA)
    return tp_tls_refuse(err, EPROTO, "client does not accept the proxy's certificate (alert %s)",
                         alert_name(alert));
  return tp_tls_refuse(err, EPROTO, "client ended the connection with alert %s (%d)",
                       alert_name(alert), alert);
}

/* Our server end said no to a client. */
static int explain_our_refusal(int alert, struct tp_error *err) {
  switch (alert) {
  case BR_ALERT_PROTOCOL_VERSION:
    return tp_tls_refuse(err, EPROTONOSUPPORT, "client does not speak TLS 1.2");
  case BR_ALERT_HANDSHAKE_FAILURE:
    return tp_tls_refuse(err, EPROTONOSUPPORT,
                         "client speaks only TLS 1.3, the proxy TLS 1.2, or they have no cipher "
                         "suite in common");
  case BR_ALERT_NO_APPLICATION_PROTOCOL:
    return tp_tls_refuse(err, EPROTONOSUPPORT, "client does not accept HTTP/1.1 by its ALPN");
  default:
    return tp_tls_refuse(err, EPROTO, "client broke the TLS protocol (alert %s sent)",
                         alert_name(alert));
  }
}

int tp_tls_explain(int number, bool is_client, bool open, const char *peer, struct tp_error *err) {
  if (number >= BR_ERR_SEND_FATAL_ALERT) {
    int alert = number - BR_ERR_SEND_FATAL_ALERT;
    if (!is_client && !open)
      return explain_our_refusal(alert, err);
    return tp_tls_refuse(err, EPROTO, "%s broke the TLS protocol (alert %s sent)", peer,
                         alert_name(alert));
  }
  if (number >= BR_ERR_RECV_FATAL_ALERT) {
    int alert = number - BR_ERR_RECV_FATAL_ALERT;
    return is_client && !open ? explain_refusal(alert, peer, err) : explain_distrust(alert, err);
  }
  switch (number) {
  case BR_ERR_UNSUPPORTED_VERSION: /* also what any bytes but TLS look like */
  case BR_ERR_BAD_VERSION:
  case BR_ERR_UNKNOWN_TYPE:
  case BR_ERR_TOO_LARGE:
    if (!open)
      return tp_tls_refuse(err, EPROTONOSUPPORT,
                           "%s does not speak TLS on this port, or none as new as 1.2", peer);
    break;
  case BR_ERR_BAD_MAC:
    return tp_tls_refuse(err, EPROTO, "a TLS record of %s was corrupted", peer);
  case BR_ERR_BAD_SIGNATURE:
    return tp_tls_refuse(err, EKEYREJECTED, "%s does not hold the key of its certificate", peer);
  case BR_ERR_BAD_CIPHER_SUITE:
  case BR_ERR_INVALID_ALGORITHM:
    return tp_tls_refuse(err, EPROTONOSUPPORT, "%s and the proxy have no TLS algorithm in common",
                         peer);
  case BR_ERR_NO_RANDOM:
    return tp_tls_refuse(err, EIO, "no random bytes for TLS");
  }
  return tp_tls_refuse(err, EPROTO, "TLS with %s failed (BearSSL error %d)", peer, number);
}
