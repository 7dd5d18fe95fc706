---@meta
-- What a policy's code can name, for editors and for the reference. Nothing else is there but `pcall`,
-- `assert`, `error`, `ipairs`, `next`, `pairs`, `select`, `tonumber`, `tostring`, `type`, `unpack`, `bit`, and
-- `string`, `table`, `math` without what could reach further or take the process's memory.

---@class tidepool.policy.Event what is decided about; the hook's own copy
---@field hook "resolve"|"connect"|"request"|"response"|"log"
---@field sandbox string its name
---@field id string
---@field labels table<string, string>
---@field image string?
---@field options table the policy's own, checked
---@field host string? nil when the address was given out for no name
---@field address string? the address, when there is no host
---@field port integer? nil at resolve
---@field protocol "tls"|"http"|"tcp"|nil nil at resolve; "tcp" is neither of the others
---@field tls boolean?
---@field sni string?
---@field alpn string[]?
---@field mismatch string? what disagrees of Host, SNI and the connection's name; then allow needs `mismatch`
---@field method string? from request on
---@field path string? with the query
---@field headers table<string, string>? by lower-case name, several joined by ", "
---@field body string? if the policy asked for it with `body`, and it was not larger
---@field status integer? of the response
---@field response_headers table<string, string>?
---@field action string? log: what was decided
---@field policy string? log: who decided
---@field reason string? log
---@field bytes_sent integer? log
---@field bytes_received integer? log
---@field seconds number? log
---@field tail string? log: the end of the response's body, as much as `tail` asked for

---@class tidepool.policy.Changes
---@field headers table<string, string|number|false>? false removes; framing headers can't be set
---@field path string? the request's path and query
---@field to string? "address:port" to connect to; names a private address too
---@field private boolean? the name may resolve to private addresses
---@field ca string? PEM, more roots for the upstream
---@field mismatch boolean? the names may disagree
---@field scrub boolean? false: secrets in the response are not masked

---@alias tidepool.policy.Hook fun(event: tidepool.policy.Event, options: table): tidepool.policy.Verdict?
---@class tidepool.policy.Verdict opaque, from one of the constructors

---@class tidepool.policy.Handler for one host, or for those below one
---@field resolve tidepool.policy.Hook?
---@field connect tidepool.policy.Hook? missing, while there is `request`: ports 443 and 80 are allowed
---@field request tidepool.policy.Hook?
---@field response tidepool.policy.Hook?
---@field log fun(event: tidepool.policy.Event, options: table)?
---@field body integer|(fun(event: tidepool.policy.Event, options: table): integer?)|nil most bytes of the request's body to see
---@field tail integer|(fun(event: tidepool.policy.Event, options: table): integer?)|nil bytes of the response's end to see in log

---@class tidepool.policy.Option
---@field type "string"|"number"|"integer"|"boolean"|"host"|"host_list"|"string_list"|"glob_list"|"port_list"|"map"|"pem"|"secret"|"bytes"|"seconds"|"enum"
---@field about string?
---@field required boolean?
---@field default any
---@field values any[]? of an enum
---@field least number? of a number, or of a length
---@field most number?

---@class tidepool.policy.Declaration: tidepool.policy.Handler
---@field name string
---@field about string what it does, in a sentence
---@field version (string|number)?
---@field options table<string, tidepool.policy.Option>?
---@field hosts table<string, tidepool.policy.Handler>|(fun(options: table): table<string, tidepool.policy.Handler>)|nil by name, *.below or *
---@field cases table[]? for `policy test`: lua/tidepool/egress/policy/cases.lua says what one holds

--- A policy's file ends in `return policy { ... }`.
---@param declaration tidepool.policy.Declaration
function policy(declaration) end

---@param changes tidepool.policy.Changes?
---@return tidepool.policy.Verdict
function allow(changes) end

---@param reason string? for a person inside the sandbox
---@param status integer? 400 to 599; 403
---@return tidepool.policy.Verdict
function deny(reason, status) end

--- Relays the connection without reading it. At connect only; takes `to`, `private`, `mismatch`.
---@param changes tidepool.policy.Changes?
---@return tidepool.policy.Verdict
function passthrough(changes) end

--- Sends it to another upstream, with its name in SNI and Host.
---@param target string "host" or "host:port"
---@param changes tidepool.policy.Changes?
---@return tidepool.policy.Verdict
function redirect(target, changes) end

--- Answers without asking any upstream.
---@param status integer 200 to 599
---@param headers table<string, string>?
---@param body string? at most 1 MiB
---@return tidepool.policy.Verdict
function respond(status, headers, body) end

--- The value of a secret; raises when there is none of that name, which is a deny that says so.
---@param name string
---@return string
function secret(name) end

--- A line in the audit, without the secrets that this policy has seen.
function log(text) end

--- Asks the outside, for instance for a token. At most 8 a hook, and 10 seconds together. `to`, `private` and `ca`
--- as in a verdict: where to connect, whether that may be private, more roots.
---@param request { url: string, method: string?, headers: table<string, string>?, body: string?, timeout: number?, limit: integer?, to: string?, private: boolean?, ca: string? }
---@return { status: integer, headers: table<string, string>, body: string }? response
---@return string? message
---@return string? code
function fetch(request) end

--- Changes that connect where the options `to` (a map: host to "address:port"), `private` and `ca` say, with these
--- headers: for `allow`, `redirect` and `passthrough`.
---@param event tidepool.policy.Event
---@param options { to: table<string, string>?, private: boolean?, ca: string? }
---@param headers table<string, string|number|false>?
---@return tidepool.policy.Changes
function upstream(event, options, headers) end

---@return number seconds since 1970
function now() end

--- Whether a glob (exact, *.below or *) stands for the host.
---@return boolean
function match(glob, host) end

---@return string
function base64(bytes) end

---@return string? bytes nil when it is none
function unbase64(text) end

---@return string digits
function hex(bytes) end

---@return string 32 bytes
function sha256(bytes) end

---@return string digits
function sha256_hex(bytes) end

--- HMAC-SHA-256.
---@return string 32 bytes
function hmac(key, bytes) end

---@return string 32 bytes
function hmac_sha256(key, bytes) end

---@return string digits
function hmac_hex(key, bytes) end

--- What the policy remembers of this sandbox, over restarts: JSON-able, at most 64 KiB.
state = {}

--- `decode` returns nil, message for what is no JSON; `encode` raises for what can't be written as JSON.
json = { null = nil }

---@return string
function json.encode(value) end

---@return any value
---@return string? message
function json.decode(text) end
