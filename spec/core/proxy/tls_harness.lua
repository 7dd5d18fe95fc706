--- Drives sans-I/O TLS ends for the specs: against each other in memory, against real programs on
-- loopback.
local uv = require("luv")
local async = require("tidepool.async")
local daemon = require("spec.support.daemon")
local proxy = require("tidepool.proxy")

local harness = {}

--- A CA of ours, and a trust in it: ca, trust, pem.
function harness.authority(name)
  local pem, key = assert(proxy.ca.generate(name or "Tidepool sandbox spec"))
  return assert(proxy.ca.open(pem, key)), assert(proxy.tls.trust(pem)), pem
end

-- Moves what `from` has to say; whether there was anything. Plaintext is read into `texts`.
local function carry(from, to, texts)
  local records = from:take()
  local had = #records > 0
  while #records > 0 do
    local taken, text = to:feed(records), to:read()
    if taken == 0 and text == "" then
      break
    end
    records = records:sub(taken + 1)
    texts[#texts + 1] = text
  end
  return had
end

--- Carries records between two ends until neither has any; what each of them then has read.
function harness.connect(one, two)
  local at_one, at_two = {}, {}
  repeat
    local onward, back = carry(one, two, at_two), carry(two, one, at_one)
  until not onward and not back
  return table.concat(at_one), table.concat(at_two)
end

--- A pair that has shaken hands: server, client.
function harness.pair(ca, trust, host)
  local server = assert(proxy.tls.server(assert(ca:identity(host))))
  local client = assert(proxy.tls.client(trust, host))
  harness.connect(server, client)
  assert(server:failure())
  assert(client:failure())
  return server, client
end

-- Feeds what a socket receives and sends what the end says; on_text gets plaintext, then nil at the end.
local function attach(socket, tls, on_text)
  local function push()
    local records = tls:take()
    if #records > 0 and not socket:is_closing() then
      socket:write(records)
    end
  end
  local function feed(bytes)
    while #bytes > 0 do
      local taken = tls:feed(bytes)
      local text = tls:read()
      if taken == 0 and #text == 0 then
        return
      end
      bytes = bytes:sub(taken + 1)
      on_text(text)
    end
  end
  socket:read_start(async.guarded(function(_, bytes)
    if bytes then
      feed(bytes)
      push()
      on_text("") -- a client that resumes is open only once its last record is taken
      push()
    end
    if not socket:is_closing() and (not bytes or tls:state().closed) then
      socket:read_stop()
      on_text(nil)
    end
  end))
  push()
  return push
end

local function dial(port)
  local socket = uv.new_tcp()
  async.wait(function(wake)
    socket:connect("127.0.0.1", port, async.guarded(wake))
  end)
  return socket
end

--- Shakes hands with a server on loopback as `host`; sends `request` if given, and returns what it
-- answers with the end's state: text, state | nil, message, code of the failure.
function harness.ask(port, trust, host, request)
  return async.within(function()
    local socket, tls = dial(port), assert(proxy.tls.client(trust, host))
    local text, ended, state = {}, async.event(), nil
    local push = attach(socket, tls, function(piece)
      text[#text + 1] = piece
      local now = tls:state()
      if now.writable and not state then
        state = now
        tls:write(request or "")
      end
      if piece == nil or state and not request then
        ended:set()
      end
    end)
    ended:wait(20)
    local good, message, code = tls:failure()
    tls:close()
    push()
    socket:close()
    if not good then
      return nil, message, code
    end
    return table.concat(text), state
  end)
end

--- Serves HTTP over TLS on loopback while fn(port) runs in a task, and returns its results. Each
-- request is answered with `body`; what ends of ours failed with is collected in `failures`.
function harness.serve(identity, body, fn)
  local listener, failures = uv.new_tcp(), {}
  assert(listener:bind("127.0.0.1", 0))
  local answer = ("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"):format(#body, body)
  local function serve(socket)
    local tls, request, push = assert(proxy.tls.server(identity)), "", nil
    push = attach(socket, tls, function(piece)
      request = request .. (piece or "")
      if request:find("\r\n\r\n", 1, true) then
        request = ""
        tls:write(answer)
        tls:close()
      end
      if piece == nil and not socket:is_closing() then
        local good, message, code = tls:failure()
        failures[#failures + 1] = not good and { message = message, code = code } or nil
        push()
        socket:shutdown(function() socket:close() end)
      end
    end)
  end
  assert(listener:listen(16, async.guarded(function()
    local socket = uv.new_tcp()
    listener:accept(socket)
    serve(socket)
  end)))
  local results = { async.within(fn, listener:getsockname().port, failures) }
  listener:close()
  return unpack(results)
end

--- `openssl s_server` with these options in front of a certificate; its port.
function harness.openssl_server(leaf, options)
  local port = daemon.free_port()
  local words = { "openssl", "s_server", "-accept", "127.0.0.1:" .. port, "-cert", leaf.alone, "-key", leaf.key }
  if leaf.chain_file then
    words[#words + 1] = "-cert_chain"
    words[#words + 1] = leaf.chain_file
  end
  for _, word in ipairs(options or { "-www" }) do
    words[#words + 1] = word
  end
  words.ready = "ACCEPT"
  return daemon.start(words), port
end

return harness
