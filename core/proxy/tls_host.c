/* Host names: see tls_host.h. */
#include "tls_host.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "tls_error.h"

bool tp_tls_host_is_address(const char *host) {
  unsigned char address[16];
  return inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1;
}

static bool is_name(const char *host, size_t length) {
  for (size_t i = 0; i < length; i++)
    if (!isalnum((unsigned char)host[i]) && !strchr("-._", host[i]))
      return false;
  return true;
}

int tp_tls_host_normalise(const char *host, char normal[TP_TLS_HOST], struct tp_error *err) {
  size_t length = strlen(host);
  if (length && host[length - 1] == '.')
    length--;
  if (length == 0 || length >= TP_TLS_HOST ||
      !(is_name(host, length) || tp_tls_host_is_address(host)))
    return tp_tls_refuse(err, EINVAL, "not a host name or an address, %zu bytes", strlen(host));
  for (size_t i = 0; i < length; i++)
    normal[i] = (char)tolower((unsigned char)host[i]);
  normal[length] = 0;
  return 0;
}
