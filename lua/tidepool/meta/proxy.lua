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

return proxy
