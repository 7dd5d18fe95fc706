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

return proxy
