"""What the Python servers of the specs share: a listener, TLS, a thread a connection.

Each server takes one argument, a JSON object: host, port (0: any), cert and key (files; TLS when
given), tls ("1.2" or "1.3": that version alone), alpn (list). It says "listening PORT" when ready.
"""
import json
import socket
import ssl
import sys
import threading


def context_of(config):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Weak certificates are one of the forms that clients must refuse, so serving them must work.
    context.set_ciphers(config.get("ciphers", "DEFAULT:@SECLEVEL=0"))
    context.load_cert_chain(config["cert"], config["key"])
    version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}.get(config.get("tls"))
    if version:
        context.minimum_version = context.maximum_version = version
    if config.get("alpn"):
        context.set_alpn_protocols(config["alpn"])
    context.sni_callback = lambda connection, name, _: setattr(connection, "wanted_name", name)
    return context


def converse(serve, connection, context, number):
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context:
            connection = context.wrap_socket(connection, server_side=True)
        serve(connection, number)
    except (OSError, EOFError):
        pass  # the peer went, or never meant it
    finally:
        connection.close()


def run(serve):
    """Calls serve(connection, number) for each connection, until killed."""
    config = json.loads(sys.argv[1])
    context = context_of(config) if config.get("cert") else None
    host = config.get("host", "127.0.0.1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, config.get("port", 0)), family=family, backlog=1024)
    print("listening %d" % listener.getsockname()[1], flush=True)
    number = 0
    while True:
        connection, _ = listener.accept()
        number += 1
        threading.Thread(target=converse, args=(serve, connection, context, number), daemon=True).start()


def config():
    return json.loads(sys.argv[1])
