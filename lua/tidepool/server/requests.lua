--- What became of requests that a client may send again, since it lost the connection before the answer.
--
-- Runs in the server. Such a request has a key; its outcome is written down in the transaction that makes
-- it so, and the next server finds by the key what need not, or must not, be done twice.
local cjson = require("cjson")
local database = require("tidepool.server.database")

local requests = {}

local Requests = {}
Requests.__index = Requests

local FORGOTTEN = 24 * 3600 -- seconds; a client asks again at once, or never

--- The requests of a database.
function requests.open(db)
  return setmetatable({ db = db }, Requests)
end

--- What was noted of the request of this key, a table; nil: nothing, or the request has no key.
function Requests:find(key)
  local found = key and self.db:rows("SELECT outcome FROM requests WHERE key = ?", key)
  return found and found[1] and database.decode(found[1].outcome) or nil
end

--- Notes a request's outcome, or how far it has got; nothing for one without a key. true | nil, message, code
function Requests:note(key, outcome)
  if not key then
    return true
  end
  local now = os.time()
  local ok, message, code = self.db:execute("DELETE FROM requests WHERE noted < ?", now - FORGOTTEN)
  if not ok then
    return nil, message, code
  end
  return self.db:execute("INSERT OR REPLACE INTO requests (key, outcome, noted) VALUES (?, ?, ?)",
    key, cjson.encode(outcome), now)
end

return requests
