"""Prints the ClientHello of each TLS client here for host HOST: its name, a space, bytes in hex."""
import socket
import ssl
import subprocess
import sys

host = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
CLIENTS = {
    "openssl": ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", host],
    "openssl tls1.2": ["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{port}", "-servername", host],
    "curl": ["curl", "-s", "--connect-to", f"{host}:443:127.0.0.1:{port}", f"https://{host}/"],
    "git": ["git", "-c", f"http.curloptResolve={host}:{port}:127.0.0.1", "ls-remote", f"https://{host}:{port}/x"],
    "node": ["node", "-e", f'require("tls").connect({{ port: {port}, host: "127.0.0.1", servername: "{host}", '
             'ALPNProtocols: ["h2", "http/1.1"] }).on("error", () => {})'],
}


def receive(connection):
    """Until the client has nothing more to say: it waits for a ServerHello then. A busy machine lets it
    connect long before it says anything."""
    connection.settimeout(20)
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
            connection.settimeout(0.3)
    except TimeoutError:
        pass
    return b"".join(parts)


def python_hello():
    out = ssl.MemoryBIO()
    try:
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=host).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


print("python", python_hello().hex())
listener.settimeout(20)
for name, argv in CLIENTS.items():
    client = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    connection, _ = listener.accept()
    with connection:
        print(name.replace(" ", "_"), receive(connection).hex(), flush=True)
    client.kill()
    client.wait()
