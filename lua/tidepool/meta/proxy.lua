---@meta tidepool.proxy
-- The C module of the egress process, for editors and for the reference: shapes, units, errors.
-- A failure is `nil, message, code`, code being the errno's name; a wrong argument type raises.

---@class tidepool.proxy
local proxy = {}

-- http: messages of HTTP/1.0 and 1.1, of bytes alone ----------------------------------------------

---@class tidepool.proxy.http
proxy.http = {}

---@class tidepool.HttpHead
---@field method? string        of a request
---@field target? string        of a request: a path, a URL, "*", or what CONNECT names
---@field status? integer       of a response
---@field reason? string        of a response, "" when it has none
---@field minor integer         0 for HTTP/1.0, 1 for HTTP/1.1
---@field headers { [1]: string, [2]: string }[] name and value, in order, as they came
---@field body "none"|"length"|"chunked"|"eof"|"upgrade"
---@field length? integer       bytes, when body is "length"
---@field keep_alive boolean    the sender means to go on after this message
---@field upgrade boolean       "Connection: upgrade" with "Upgrade"
---@field expect_continue boolean

---@class tidepool.HttpReader
local HttpReader = {}
--- Names the method of the request that the next final response answers: HEAD and CONNECT have
--- responses that end elsewhere.
---@param method string
function HttpReader:expect(method) end
--- Takes bytes of a head, never one past its end.
---@param bytes string
---@return integer? consumed bytes
---@return tidepool.HttpHead|string? head_or_message nil while the head is incomplete
---@return string? code "EBADMSG" (refused, the message says why), "EMSGSIZE", "EINVAL"
function HttpReader:head(bytes) end
--- Takes bytes of the body that the last head announced; call again while bytes are left.
---@param bytes string
---@return integer? consumed bytes
---@return string body_or_message a span of the body, may be ""
---@return boolean|string complete_or_code
function HttpReader:body(bytes) end
--- The trailers of the body that has just become complete.
---@return { [1]: string, [2]: string }[]
function HttpReader:trailers() end
--- The connection ended: may it, here? "EBADMSG" when a message was cut off.
---@return true?, string? message, string? code
function HttpReader:finish() end
--- Gives back what the last head and trailers took.
function HttpReader:forget() end

--- Makes a reader that is strict: what two readers could understand differently is refused.
---@param side "request"|"response"
---@return tidepool.HttpReader
function proxy.http.reader(side) end

---@class tidepool.Scrub Finds secrets: plain, base64 and base64url at each alignment, and these with bytes written as %XX or as JSON escapes.
local Scrub = {}

--- Masks the secrets in a whole text (a header, a log line) with `*`, at the same length.
---@param bytes string
---@return string bytes the same when nothing was found, or when the object only detects
---@return integer? id of the first secret found
function Scrub:text(bytes) end

--- What a pump would send on of a stream that comes in these pieces; the last one ends the stream.
---@param pieces string[]
---@return string[] pieces
---@return integer? id
function Scrub:pieces(pieces) end

--- The most bytes that the end of a stream's piece is ever kept back for.
---@return integer
function Scrub:holds() end

proxy.scrub = {}

---@param secrets { [1]: string, [2]: integer }[] each { bytes, id }; 8 to 4096 bytes, id > 0, at most 256
---@param mode? "mask"|"detect" default "mask"
---@return tidepool.Scrub? scrub
---@return string? message
---@return string? code "EINVAL", "ENOMEM"
function proxy.scrub.new(secrets, mode) end

---@class tidepool.Resolver Resolves names with given nameservers; opens no file. At most 1024 queries at once.
local Resolver = {}

--- A descriptor that is readable when `run` has answers or work.
---@return integer
function Resolver:number() end

--- Seconds until `run` is due even if nothing is readable; nil when nothing is.
---@return number?
function Resolver:timeout() end

--- Starts; `run` will tell the answer, of hosts and of addresses too. Asks for A and AAAA.
---@param name string a host name or an IP address in its usual form (not 127.1, 0x7f000001 and the like)
---@return integer? id
---@return string? message
---@return string? code "EINVAL" not a name, "EAGAIN" too many at once, "ENETUNREACH" no nameserver is known, "ENOMEM"
function Resolver:query(name) end

--- What has been answered: { id, addresses, ttl in seconds }, IPv4 first, or { id, nil, message, code }: "ENOENT" no such
--- name, "ENODATA" no address, "ETIMEDOUT", "EIO" no nameserver could be reached or would answer, "EBADMSG" nonsense came.
---@return table[] answers
function Resolver:run() end

--- Gives up what runs. Closing twice is harmless.
function Resolver:close() end

proxy.resolver = {}

---@class tidepool.ResolverOptions
---@field servers? string[] "address", "address:port" or "[address]:port"; what is none is passed over, at most 8 are used
---@field hosts? table<string, string[]> names that are answered from here; what is no address is passed over
---@field timeout? number seconds for a nameserver's first try, 2; later tries get more
---@field tries? integer 3

---@param options tidepool.ResolverOptions
---@return tidepool.Resolver? resolver
---@return string? message
---@return string? code "EINVAL" no server is an address, "EMFILE", "ENOMEM"
function proxy.resolver.new(options) end

--- What kind of place an IP address is. An IPv6 address that carries an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo)
--- is of that one's kind.
---@param address string
---@return "public"|"private"|"loopback"|"link-local"|"metadata"|"multicast"|"unspecified"|"reserved"|"documentation"|nil kind
---@return string? message
---@return string? code "EINVAL"
function proxy.resolver.classify(address) end

---@class tidepool.Trust Root certificates, with the sessions and verdicts learnt under them.
---@class tidepool.Identity A certificate for one host with its key, signed by a sandbox's CA.
local Identity = {}

--- When the certificate ends, in seconds since 1970. Present another well before.
---@return number
function Identity:expires() end

--- The certificate as DER.
---@return string
function Identity:certificate() end

---@class tidepool.Ca
local Ca = {}

--- Signs a certificate of 30 days for a DNS name or an address. Takes a millisecond or two: cache it.
---@param host string
---@return tidepool.Identity? identity
---@return string? message
---@return string? code "EINVAL" not a host name
function Ca:identity(host) end

proxy.ca = {}

--- Makes a certificate authority of ten years, with a P-256 key.
---@param common_name string 1 to 64 bytes
---@return string? pem the certificate
---@return string der_or_message the key, to be kept secret
---@return string? code "EINVAL"
function proxy.ca.generate(common_name) end

---@param pem string
---@param der string the key
---@return tidepool.Ca? ca
---@return string? message
---@return string? code "EBADMSG" can't be read, "EKEYREJECTED" not a pair, or not a P-256 CA
function proxy.ca.open(pem, der) end

---@class tidepool.TlsEnd One end of a TLS 1.2 connection without a socket: feed it, take what it says.
local TlsEnd = {}

--- Takes records of the peer; fewer bytes than given while plaintext waits to be read.
---@param records string
---@return integer taken
function TlsEnd:feed(records) end

--- Records for the peer, "" when none waits.
---@return string
function TlsEnd:take() end

--- Takes plaintext for the peer; fewer bytes than given while records wait to be taken.
---@param plaintext string
---@return integer taken
function TlsEnd:write(plaintext) end

--- Plaintext of the peer, "" when none waits.
---@return string
function TlsEnd:read() end

--- Says close_notify; keep feeding and taking until it is closed.
function TlsEnd:close() end

---@return { writable: boolean, readable: boolean, closed: boolean, resumed: boolean, alpn: string?, suite: string? } state writable at first: the handshake is done
function TlsEnd:state() end

--- True when nothing failed.
---@return true? fine
---@return string? message for a person
---@return string? code "EKEYEXPIRED", "ENOKEY" self-signed or unknown issuer, "EKEYREJECTED" wrong host, purpose
--- or weak, "EPROTONOSUPPORT" no version, cipher or ALPN in common, "EPROTO"
function TlsEnd:failure() end

--- Frees it now; twice is harmless.
function TlsEnd:free() end

proxy.tls = {}

--- Reads root certificates, skipping what can't be parsed.
---@param pem string
---@return tidepool.Trust? trust
---@return integer|string count_or_message
---@return string? code "EBADMSG" none could be read
function proxy.tls.trust(pem) end

---@param identity tidepool.Identity
---@return tidepool.TlsEnd? tls
---@return string? message
---@return string? code
function proxy.tls.server(identity) end

--- Checks the chain against the trust, the clock and the host; resumes an earlier session of the host.
---@param trust tidepool.Trust
---@param host string DNS name or address
---@return tidepool.TlsEnd? tls
---@return string? message
---@return string? code "EINVAL" not a host name
function proxy.tls.client(trust, host) end

-- hello: what a TLS client says before anything is encrypted --------------------------------------

---@class tidepool.proxy.hello
proxy.hello = {}

---@class tidepool.Hello
---@field sni? string           host name in lower case, valid; never an address
---@field alpn string[]         protocol names, may be empty
---@field versions integer[]    accepted versions (0x0304 is TLS 1.3), the hello's own when it lists none
---@field has_tls12 boolean     the client accepts TLS 1.2
---@field ech boolean           another hello is encrypted inside (or pretended to be)
---@field session_id_length integer

--- Reads a ClientHello, fragmented over records in any way. `bytes`: all since the connection's start.
---@param bytes string
---@return tidepool.Hello? hello
---@return string? more_or_message "more" when it is not complete yet
---@return string? code "EBADMSG": no hello, or a malformed one
function proxy.hello.parse(bytes) end

-- flow: connections and what is done on them -------------------------------------------------------

--- Operations return 0 and their results when they ended at once, else a token; flow:run() tells what the token's
--- operation ended with. lua/tidepool/egress/flow.lua waits for them.
---@class tidepool.Flow
local Flow = {}

--- A descriptor that is readable while there is something to do.
---@return integer
function Flow:number() end

--- Does what can be done now, for some milliseconds at most.
---@return { [integer]: any, n: integer }[] ended each { token, results... }, n counting all; at most 256
function Flow:run() end

--- Ends an operation: nil, "cancelled", "ECANCELED".
---@param token integer
---@return boolean cancelled false: it has ended already, and run has told how or will
function Flow:cancel(token) end

--- Takes a connected stream socket over.
---@param fd tidepool.Fd|integer
---@return tidepool.Conn? conn
---@return string? message
---@return string? code
function Flow:adopt(fd) end

---@param address string an IPv4 or IPv6 literal
---@param port integer
---@param timeout? number seconds
---@return tidepool.Conn? conn
---@return integer|string token_or_message 0 and the results when it ended at once
---@return any ... "EINVAL" (no literal), "EMFILE", "ENETUNREACH", later "ECONNREFUSED", "ETIMEDOUT"
function Flow:connect(address, port, timeout) end

--- Moves the body that `from`'s last head announced into `to`, with back pressure and in constant
--- memory; what has come is never kept waiting. Reads `from` and writes `to`.
--- Results: bytes, trailers or nil, tail or nil, id of what was masked or nil |
--- nil, message, code, "read"|"write", bytes, id. "EBADMSG": cut off or broken; "EILSEQ": a detecting scrub found `id`.
---@param from tidepool.Conn
---@param to tidepool.Conn
--- `framing` is that of what is written ("none": dropped); `tail`: how many of the last bytes to return.
---@param options { framing: "length"|"chunked"|"none"|"eof", scrub?: tidepool.Scrub, tail?: integer }
---@param timeout? number seconds without progress
---@return integer token
---@return any ...
function Flow:pump(from, to, options, timeout) end

--- Moves everything both ways until both have ended; half-closes pass between plain sockets.
--- Results: bytes of a, bytes of b | nil, message, code, bytes of a, bytes of b.
---@param a tidepool.Conn
---@param b tidepool.Conn
---@param idle_timeout? number seconds without progress
---@param options? { scrub?: tidepool.Scrub } looks at what goes from b to a; what may begin a secret is kept for a second of silence at most
---@return integer token
---@return any ...
function Flow:relay(a, b, idle_timeout, options) end

--- Closes every connection at once; twice is harmless.
function Flow:close() end

---@class tidepool.Conn A connection, closed when collected. One operation reads it and one writes it at a time; another raises.
local Conn = {}

--- What the peer speaks; its bytes stay unread. Results: "tls", hello | "http", first line |
--- "h2", bytes | "other", bytes | "silent" | nil, message, "EOF"
---@param timeout? number seconds; then "silent", or "other" when something incomplete came
---@return integer token
---@return any ...
function Conn:peek(timeout) end

---@param identity tidepool.Identity
---@param timeout? number seconds
---@return integer token
---@return any ... true | nil, message, code: "EPROTONOSUPPORT", "EPROTO", "ECONNRESET", "ETIMEDOUT", "EISCONN"
function Conn:accept_tls(identity, timeout) end

---@param trust tidepool.Trust
---@param host string a DNS name or an address, which the certificate must be for
---@param timeout? number seconds
---@return integer token
---@return any ... true | nil, message, code: "EKEYEXPIRED", "ENOKEY", "EKEYREJECTED" and accept_tls's
function Conn:connect_tls(trust, host, timeout) end

---@param side "request"|"response" the same for all heads of a connection
---@param timeout? number seconds, for the whole head
---@param method? string of the request that a response answers
---@return integer token
---@return any ... tidepool.HttpHead | nil, message, code: "EOF" (closed between messages), "EBADMSG", "EMSGSIZE", "ECONNRESET", "EINVAL" (the last body is unread)
function Conn:read_head(side, timeout, method) end

--- The whole body that the last head announced.
---@param limit integer bytes, up to 1 GiB
---@param timeout? number seconds without progress
---@return integer token
---@return any ... string | nil, message, code: "EMSGSIZE" (close the connection then), "EBADMSG"
function Conn:read_body(limit, timeout) end

--- What has come, at least one byte. For what isn't HTTP.
---@param timeout? number seconds
---@param most? integer bytes, 64 KiB by default
---@return integer token
---@return any ... string | nil, message, code: "EOF", "ECONNRESET"
function Conn:read(timeout, most) end

--- Ends when the kernel has all of it, or with `more` when it may wait for what is written next.
---@param bytes string
---@param timeout? number seconds without progress
---@param more? boolean
---@return integer token
---@return any ... true | nil, message, code: "EPIPE", "ECONNRESET"
function Conn:write(bytes, timeout, more) end

--- Ends when the peer closes (true) or says something ("data"), while nobody reads.
---@param timeout? number seconds
---@return integer token
---@return any ...
function Conn:watch_close(timeout) end

--- Queues a fatal TLS alert in plain, for a peer whose hello was only peeked at.
---@param number integer 49 access_denied, 70 protocol_version ...
---@return true? ok
---@return string? message
---@return string? code
function Conn:alert(number) end

--- Sends what is queued and the end, then closes; in the background, at most 5 s. Its operations end with "ECANCELED".
function Conn:close() end

--- Closes at once; a TCP peer sees a reset.
function Conn:reset() end

---@return { read: integer, written: integer } bytes on the socket
function Conn:stats() end

---@return integer? number nothing when closed
function Conn:fd() end

---@return boolean
function Conn:is_open() end

---@return { alpn?: string, suite?: string }? nothing without TLS
function Conn:tls() end

proxy.flow = {}

---@return tidepool.Flow? flow
---@return string? message
---@return string? code "EMFILE"
function proxy.flow.new() end

-- socket: what was steered here --------------------------------------------------------------------

proxy.socket = {}

--- The next connection of a listener: address and port are what the client asked for ("" and 0 for a
--- unix socket). Non-blocking, close-on-exec.
---@param listener tidepool.Fd|integer
---@return tidepool.Fd? fd
---@return { address: string, port: integer, peer_address: string, peer_port: integer }|string endpoints_or_message
---@return string? code "EAGAIN" (none waits), "EMFILE" (stop watching for a while), "ECONNABORTED"
function proxy.socket.accept(listener) end

--- Has the kernel tell which address each datagram was sent to; before the first receive.
---@param fd tidepool.Fd|integer
---@return true? ok
---@return string? message
---@return string? code
function proxy.socket.want_address(fd) end

--- One datagram, of at most 4096 bytes.
---@param fd tidepool.Fd|integer
---@return string? bytes
---@return string from_or_message for proxy.socket.send, and good for nothing else
---@return string? code "EAGAIN"
function proxy.socket.receive(fd) end

--- Answers a datagram, from the address that it was sent to.
---@param fd tidepool.Fd|integer
---@param bytes string
---@param from string
---@return true? ok
---@return string? message
---@return string? code "EAGAIN"
function proxy.socket.send(fd, bytes, from) end

-- dns: queries and the answers to them -------------------------------------------------------------

---@class tidepool.proxy.dns
proxy.dns = {}

---@class tidepool.DnsQuery
---@field id integer
---@field opcode integer
---@field rd boolean            recursion is desired
---@field rcode? string         the only thing to answer with: "NOTIMP", "BADVERS", "FORMERR"
---@field name? string          lower case, no last dot; "." for the root; absent with "NOTIMP". Bytes that no host
--- name has are written \DDD, and the rcode is "FORMERR" then
---@field type? string          "A", "AAAA", "PTR", "HTTPS" ..., or "TYPE" and its number
---@field class? string         "IN", or "CLASS" and its number
---@field edns_size? integer    bytes that the asker takes over UDP, at least 512; absent without EDNS

--- Reads a query (over TCP: without the two bytes of length).
---@param bytes string
---@return tidepool.DnsQuery? query
---@return string? message
---@return string? code "EBADMSG": answer "FORMERR", if dns.answer finds anything to answer
function proxy.dns.parse(bytes) end

---@class tidepool.DnsRecord
---@field type "A"|"AAAA"|"PTR"
---@field ttl? integer          seconds
---@field address? string       of A and AAAA
---@field name? string          of PTR

---@class tidepool.DnsReply
---@field rcode "NOERROR"|"FORMERR"|"SERVFAIL"|"NXDOMAIN"|"NOTIMP"|"REFUSED"|"BADVERS"
---@field records? tidepool.DnsRecord[] at most 32, of the name that was asked for
---@field soa? boolean          let a negative answer be remembered
---@field negative_ttl? integer seconds that it may be, 5 when left out

--- Writes the answer to a query, which may be malformed. What does not fit sends the asker to TCP.
---@param query string
---@param reply tidepool.DnsReply
---@param max_bytes integer at least 512
---@return string? bytes
---@return string? message
---@return string? code "EBADMSG": no answer is possible, "EMSGSIZE": max_bytes is too small
function proxy.dns.answer(query, reply, max_bytes) end

proxy.digest = {}

---@param bytes string
---@return string 32 bytes
function proxy.digest.sha256(bytes) end

---@param key string
---@param bytes string
---@return string 32 bytes
function proxy.digest.hmac_sha256(key, bytes) end

---@param bytes string
---@return string lower-case hex
function proxy.digest.hex(bytes) end

---@param bytes string
---@return string
function proxy.digest.base64(bytes) end

--- Reads only what `base64` would write: the padding is there, no white space, no stray bits.
---@param text string
---@return string? bytes
function proxy.digest.unbase64(text) end

--- By the alphabet of URLs, without padding.
---@param bytes string
---@return string
function proxy.digest.base64url(bytes) end

---@param text string with or without padding
---@return string? bytes
function proxy.digest.unbase64url(text) end

--- Random bytes of the kernel's.
---@param count integer at most 4096
---@return string? bytes
---@return string? message
---@return string? code
function proxy.digest.random(count) end

--- Compares in a time that doesn't tell where they differ.
---@param one string
---@param other string
---@return boolean
function proxy.digest.equal(one, other) end

--- Seals with AES-256-GCM under a random nonce; 32 bytes longer than the text.
---@param key string 32 bytes
---@param bytes string
---@param context string what the bytes are; `unseal` asks for the same
---@return string? sealed
---@return string? message
---@return string? code
function proxy.digest.seal(key, bytes, context) end

---@param key string 32 bytes
---@param sealed string
---@param context string
---@return string? bytes
---@return string? message
---@return string? code "EBADMSG" not what was sealed with this key and context
function proxy.digest.unseal(key, sealed, context) end

proxy.watchdog = {}

--- From now on a run (from `arm` to `disarm`) of more than `seconds` of CPU time, give or take a tenth, ends the process with
--- exit code 99. `fd` is a file of at least a page, shared with whoever will `read` it. Takes SIGPROF.
---@param options { seconds?: number, fd: tidepool.Fd|integer } seconds: 1 by default
---@return boolean? started
---@return string? message
---@return string? code "EALREADY" once a process, "EINVAL" no page
function proxy.watchdog.start(options) end

--- A run begins. Before `start` this does nothing. No system call, about 0.1 µs.
---@param text string who runs; cut at 512 bytes
function proxy.watchdog.arm(text) end

--- The run has come back.
function proxy.watchdog.disarm() end

--- Who took too long. When the process ended otherwise while someone ran: nil, and who that was.
---@param fd tidepool.Fd|integer
---@return string? overdue printable ASCII
---@return string? running or a message
---@return string? code "EBADMSG" it is no such page
function proxy.watchdog.read(fd) end

--- Caps the process's memory for good: what exceeds it is Lua's "not enough memory", which pcall catches.
---@param bytes integer how many more than are mapped now
---@return boolean? limited
---@return string? message
---@return string? code
function proxy.watchdog.limit_memory(bytes) end

proxy.confine = {}

---@class tidepool.Confinement
---@field uid integer of nobody else, not 0
---@field gid integer
---@field memory? integer bytes that it may map beyond what it has now
---@field files? integer descriptors; by default what the kernel grants, up to a million

--- Gives up for good: files (an empty read-only root), capabilities, root, processes, new kinds of sockets, and every system
--- call that the egress process doesn't need (they fail with EPERM). It stays in its network namespace and can connect, by
--- TCP and UDP. Load every module first: `require` finds nothing afterwards. After a failure the process must end.
---@param options tidepool.Confinement
---@return boolean? confined
---@return string? message
---@return string? code "EPERM" it isn't root, "EBUSY" it has threads
function proxy.confine.enter(options) end

return proxy
