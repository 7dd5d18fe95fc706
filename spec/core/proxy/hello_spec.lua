-- ClientHellos: those that real clients send, whole or in the smallest pieces, and malformed ones.
require("tidepool.core")
local hello = require("tidepool.proxy").hello

local function u8(n)
  return string.char(n)
end

local function u16(n)
  return string.char(math.floor(n / 256), n % 256)
end

local function vector(width, bytes)
  return (width == 1 and u8 or u16)(#bytes) .. bytes
end

local function extension(kind, data)
  return u16(kind) .. vector(2, data)
end

local function server_name(name)
  return extension(0, vector(2, "\0" .. vector(2, name)))
end

local function protocols(...)
  local names = {}
  for i, name in ipairs { ... } do
    names[i] = vector(1, name)
  end
  return extension(16, vector(2, table.concat(names)))
end

local function versions(...)
  local numbers = {}
  for i, number in ipairs { ... } do
    numbers[i] = u16(number)
  end
  return extension(43, vector(1, table.concat(numbers)))
end

local function message(body)
  return "\1" .. string.char(math.floor(#body / 65536)) .. u16(#body % 65536) .. body
end

-- A hello's handshake message; `extensions` nil: the hello of an old client, without any.
local function handshake(extensions, options)
  options = options or {}
  return message(u16(options.version or 0x0303) .. ("r"):rep(32) .. vector(1, options.session or ("s"):rep(32))
    .. vector(2, options.suites or "\19\1\192\43") .. vector(1, options.compression or "\0")
    .. (extensions and vector(2, extensions) or ""))
end

-- In records of at most `most` bytes each.
local function records(bytes, most)
  local list = {}
  for at = 1, #bytes, most or 16384 do
    local part = bytes:sub(at, at + (most or 16384) - 1)
    list[#list + 1] = "\22\3\1" .. u16(#part) .. part
  end
  return table.concat(list)
end

local function parse(extensions, options)
  return hello.parse(records(handshake(extensions, options)))
end

local function refused(bytes, word)
  local got, why, code = hello.parse(bytes)
  assert.is_nil(got)
  assert.equal("EBADMSG", code, why)
  if word then
    assert.is_truthy(why:find(word, 1, true), ("%q doesn't say %q"):format(why, word))
  end
end

describe("a ClientHello", function()
  it("says whom the client wants and what it can do", function()
    assert.same({ sni = "example.org", alpn = { "h2", "http/1.1" }, versions = { 0x0304, 0x0303 }, has_tls12 = true,
      ech = false, session_id_length = 32 },
      parse(server_name("Example.ORG") .. protocols("h2", "http/1.1") .. versions(0x1a1a, 0x0304, 0x0303)))
  end)

  it("may leave everything out", function()
    assert.same({ alpn = {}, versions = { 0x0303 }, has_tls12 = true, ech = false, session_id_length = 0 },
      parse(nil, { session = "" }))
    assert.same({ alpn = {}, versions = { 0x0301 }, has_tls12 = false, ech = false, session_id_length = 32 },
      parse("", { version = 0x0301 }))
  end)

  it("accepts TLS 1.2 only when it says so", function()
    assert.is_false(parse(versions(0x0304)).has_tls12)
    assert.is_false(parse(versions(0x0304, 0x0302)).has_tls12)
    assert.is_true(parse(versions(0x0303)).has_tls12)
    assert.is_false(parse("", { version = 0x0302 }).has_tls12)
  end)

  it("takes an address where a name is due for no name", function()
    assert.is_nil(parse(server_name("192.0.2.7")).sni)
    assert.is_nil(parse(server_name("2001:db8::1")).sni)
  end)

  it("tells that another hello is encrypted inside", function()
    assert.is_true(parse(server_name("public.example") .. extension(0xfe0d, "\0abc")).ech)
  end)

  it("reads the same in records and reads of any size", function()
    local bytes = handshake(server_name("example.org") .. protocols("http/1.1") .. versions(0x0303)
      .. extension(51, ("k"):rep(1300)))
    local expected = hello.parse(records(bytes))
    assert.equal("example.org", expected.sni)
    for _, most in ipairs { 1, 2, 3, 5, 100, 517 } do
      assert.same(expected, (hello.parse(records(bytes, most))))
    end
    local text = records(bytes, 700)
    for at = 0, #text - 1 do
      local got, word, code = hello.parse(text:sub(1, at))
      assert.same({ nil, "more", nil }, { got, word, code })
    end
    assert.same(expected, (hello.parse(text .. "\20\3\3\0\1\1")))
  end)

  it("may be longer than a record, as post-quantum keys make it", function()
    local got = parse(extension(51, ("k"):rep(20000)) .. server_name("a.b"))
    assert.equal("a.b", got.sni)
    assert.equal("a.b", hello.parse(records(handshake(extension(51, ("k"):rep(60000)) .. server_name("a.b")))).sni)
    refused(records(handshake(extension(51, ("k"):rep(65000)) .. extension(52, ("k"):rep(520)))), "more than")
    refused(records(handshake(extension(51, ("k"):rep(12000))), 1), "more than")
    refused("\22\3\1\0\4\1\255\255\255", "more than")
  end)

  it("is read from openssl, curl, python and node as they send it", function()
    local found = require("spec.support.hellos").capture("host.example")
    for _, name in ipairs({ "python", "openssl", "curl", "git", "node" }) do
      assert.is_truthy(found[name], "nothing from " .. name)
    end
    for name, bytes in pairs(found) do
      local got, why = hello.parse(bytes)
      assert.is_truthy(got, name .. ": " .. tostring(why))
      assert.equal("host.example", got.sni, name)
      for at = 0, #bytes - 1, 7 do
        assert.equal("more", select(2, hello.parse(bytes:sub(1, at))), name)
      end
    end
  end)
end)

describe("what is no ClientHello", function()
  it("is refused at its first bytes", function()
    refused("GET / HTTP/1.1\r\n", "not a TLS handshake")
    refused("G")
    refused("\128\46\1\3\1", "SSL 2")
    refused("\22\2", "version 2")
    refused("\21\3\1\0\2\2\40", "not a TLS handshake")
    refused("\22\3\1\0\0", "0 bytes")
    refused("\22\3\1\64\1", "16385 bytes")
    refused("\22\3\1\0\1\2", "message 2")
    refused("\22\3\1\0\1\1\23\3\1\0\1", "not a TLS handshake")
  end)

  it("is refused when its vectors don't fit each other", function()
    local good = handshake(server_name("a.b"))
    local without = #handshake(nil) -- a hello of an old client, and well-formed
    for at = 4, #good - 1 do
      if at ~= without then
        refused(records(message(good:sub(5, at))))
      end
    end
    refused(records(good .. "\1"), "follows")
    refused(records(good:sub(1, -2)) .. "\22\3\1\0\2" .. good:sub(-1) .. "\1", "follows")
    refused(records(handshake("", { session = ("s"):rep(33) })), "session")
    refused(records(handshake("", { suites = "" })), "suites")
    refused(records(handshake("", { suites = "\1\2\3" })), "suites")
    refused(records(handshake("", { compression = "" })), "compression")
    refused(records(handshake("", { version = 0x0300 })), "version")
    refused(records(handshake("", { version = 0x0203 })), "version")
  end)

  it("is refused when an extension is malformed, or there twice", function()
    for _, bad in ipairs {
      "\0", "\0\0\0", "\0\0\0\9a", extension(0, ""), extension(0, "\0\0"), extension(0, "\0\4\0\0\2a"),
      extension(0, vector(2, "\1" .. vector(2, "a.b"))), extension(0, vector(2, "\0" .. vector(2, "a.b")) .. "x"),
      extension(0, vector(2, "\0" .. vector(2, "a.b") .. "\0" .. vector(2, "c.d"))),
      extension(16, ""), extension(16, "\0\0"), extension(16, "\0\1\0"), extension(16, "\0\2\2h"),
      extension(16, "\0\3\2h2x"), extension(43, ""), extension(43, "\0"), extension(43, "\3\3\4\3"),
      extension(43, "\2\3\4\3"), server_name("a.b") .. server_name("a.b"), extension(99, "") .. extension(99, ""),
    } do
      refused(records(handshake(bad)))
    end
    local many = {}
    for i = 1, 129 do
      many[i] = extension(1000 + i, "")
    end
    refused(records(handshake(table.concat(many))), "too many")
    assert.is_truthy(parse(table.concat(many, "", 1, 128)))
  end)

  it("is refused when its name is no host name", function()
    for _, name in ipairs { "", ".", "a.", "a..b", ".a", "a b", "a/b", "a:1", "*.a", "a\0b", "a\0", "\195\164.de", "[::1]",
      "1.2.3", "127.1", "2130706433", "0x7f000001", "a.0x7f", "example.1", ("a"):rep(64) .. ".b",
      ("a."):rep(126) .. "ab" } do
      refused(records(handshake(server_name(name))))
    end
    for _, name in ipairs { "localhost", "a-b.c_d", "1.a", "0xfg", "xn--bcher-kva.example", ("a"):rep(63) .. ".b",
      ("a."):rep(126) .. "a" } do
      assert.equal(name, (assert(parse(server_name(name)))).sni)
    end
  end)
end)

it("reading ClientHellos survives a collector that runs all the time, and takes strings only", function()
  collectgarbage("setpause", 1)
  collectgarbage("setstepmul", 10000)
  finally(function()
    collectgarbage("setpause", 200)
    collectgarbage("setstepmul", 200)
  end)
  local text = records(handshake(server_name("a.b") .. protocols("h2", "http/1.1")), 20)
  for i = 1, 500 do
    assert.equal("a.b", hello.parse(text).sni)
    assert.is_nil((hello.parse(text:sub(1, i % #text))))
  end
  assert.has_error(function() hello.parse({}) end)
end)
