-- DNS messages: what queries say, which ones are refused, and that resolvers understand the answers.
require("tidepool.core")
local dns = require("tidepool.proxy").dns

local TYPES = { A = 1, PTR = 12, AAAA = 28, OPT = 41, HTTPS = 65 }

local function u16(n)
  return string.char(math.floor(n / 256), n % 256)
end

local function wire(name)
  local parts = {}
  for label in name:gmatch("[^.]+") do
    parts[#parts + 1] = string.char(#label) .. label
  end
  return table.concat(parts) .. "\0"
end

local function opt(options)
  options = options or {}
  return (options.name or "\0") .. u16(41) .. u16(options.size or 1400) .. "\0" .. string.char(options.version or 0)
    .. (options.dnssec and "\128\0" or "\0\0") .. u16(#(options.data or "")) .. (options.data or "")
end

-- A query; fields of `with` replace what is usual.
local function query(name, kind, with)
  with = with or {}
  return u16(with.id or 0x1234) .. string.char(with.flags or 1, with.flags2 or 0) .. u16(with.questions or 1)
    .. u16(with.answers or 0) .. u16(with.authority or 0) .. u16(with.additional or 0)
    .. (with.wire or wire(name)) .. u16(TYPES[kind] or kind) .. u16(with.class or 1) .. (with.rest or "")
end

local function edns(options)
  return { additional = 1, rest = opt(options) }
end

-- What an answer says, read back without our own parser.
local function read(bytes)
  local at = 13
  local function number(width)
    local n = 0
    for i = at, at + width - 1 do
      n = n * 256 + bytes:byte(i)
    end
    at = at + width
    return n
  end
  local function name_at(where, jumped)
    local labels, here = {}, where
    while true do
      local length = bytes:byte(here)
      if length == 0 then
        return table.concat(labels, "."), here + 1
      elseif length >= 192 then
        assert.is_nil(jumped)
        local rest = name_at((length - 192) * 256 + bytes:byte(here + 1) + 1, true)
        return table.concat(labels, ".") .. rest, here + 2
      end
      labels[#labels + 1] = bytes:sub(here + 1, here + length)
      here = here + 1 + length
    end
  end
  local function name()
    local text
    text, at = name_at(at)
    return text
  end
  local function count(where)
    return bytes:byte(where) * 256 + bytes:byte(where + 1)
  end
  local got = { id = count(1), flags = bytes:byte(3), flags2 = bytes:byte(4) - bytes:byte(4) % 16,
    rcode = bytes:byte(4) % 16, records = {} }
  if count(5) == 1 then
    got.question = name()
    got.type, got.class = number(2), number(2)
  end
  for i = 1, count(7) + count(9) + count(11) do
    local record = { section = i <= count(7) and "answer" or i <= count(7) + count(9) and "authority" or "additional" }
    record.name, record.type, record.class, record.ttl = name(), number(2), number(2), number(4)
    local length = number(2)
    record.data = bytes:sub(at, at + length - 1)
    at = at + length
    got.records[i] = record
  end
  assert.equal(#bytes + 1, at)
  return got
end

local function refused(bytes, word)
  local got, why, code = dns.parse(bytes)
  assert.is_nil(got)
  assert.equal("EBADMSG", code)
  assert.is_truthy(why:find(word, 1, true), ("%q doesn't say %q"):format(why, word))
end

describe("a DNS query", function()
  it("asks for one name, which is read in lower case", function()
    assert.same({ id = 0x1234, opcode = 0, rd = true, name = "www.example.org", type = "AAAA", class = "IN" },
      dns.parse(query("WwW.Example.oRg", "AAAA")))
    assert.same({ id = 7, opcode = 0, rd = false, name = "_a._tcp.b-c", type = "HTTPS", class = "CLASS3" },
      dns.parse(query("_a._tcp.b-c", "HTTPS", { id = 7, flags = 0, class = 3 })))
    assert.equal("TYPE4711", dns.parse(query("a", 4711)).type)
    assert.equal(".", dns.parse(query("", "A")).name)
  end)

  it("says with EDNS how long an answer may be", function()
    assert.equal(1400, dns.parse(query("a", "A", edns())).edns_size)
    assert.equal(512, dns.parse(query("a", "A", edns { size = 0 })).edns_size)
    assert.equal(65535, dns.parse(query("a", "A", edns { size = 65535, data = ("o"):rep(100), dnssec = true })).edns_size)
    assert.is_nil(dns.parse(query("a", "A")).edns_size)
  end)

  it("may carry other additional records, which mean nothing to us", function()
    local record = "\1a\192\12" .. u16(250) .. u16(255) .. "\0\0\0\0" .. u16(3) .. "abc"
    local got = dns.parse(query("a", "A", { additional = 2, rest = record .. opt() }))
    assert.equal("a", got.name)
    assert.equal(1400, got.edns_size)
  end)

  it("that we can't serve says what to answer", function()
    assert.equal("BADVERS", dns.parse(query("a", "A", edns { version = 1 })).rcode)
    assert.equal("NOTIMP", dns.parse(query("a", "A", { flags = 0x28 })).rcode)
    assert.equal(5, dns.parse(query("a", "A", { flags = 0x28, questions = 7 })).opcode)
    assert.equal("FORMERR", dns.parse(query("a", "OPT")).rcode)
    local odd = dns.parse(query(nil, "A", { wire = "\4a.\0\195\3b\\c\0" }))
    assert.equal("FORMERR", odd.rcode)
    assert.equal("a\\046\\000\\195.b\\092c", odd.name)
  end)

  it("of the longest name there is", function()
    local long = ("a"):rep(63) .. "." .. ("b"):rep(63) .. "." .. ("c"):rep(63) .. "." .. ("d"):rep(61)
    assert.equal(long, dns.parse(query(long, "A")).name)
    refused(query(long .. "d", "A"), "too long")
    refused(query(("a."):rep(128), "A"), "too long")
    local bytes = string.char(63) .. ("\255"):rep(63)
    assert.equal("FORMERR", dns.parse(query(nil, "A", { wire = bytes .. bytes .. bytes .. "\61" .. ("\255"):rep(61) .. "\0" })).rcode)
  end)
end)

describe("what is no DNS query is refused:", function()
  it("a cut one, wherever it is cut, and one with more behind it", function()
    local good = query("a.b", "A", edns { data = "abc" })
    for at = 0, #good - 1 do
      refused(good:sub(1, at), at < 12 and "no header" or "malformed")
    end
    refused(good .. "\0", "follows")
  end)

  it("an answer, none or several questions, answers in it", function()
    refused(query("a", "A", { flags = 0x80 }), "an answer")
    refused(query("a", "A", { questions = 0 }), "one question")
    refused(query("a", "A", { questions = 2, rest = wire("b") .. u16(1) .. u16(1) }), "one question")
    refused(query("a", "A", { answers = 1 }), "answers")
    refused(query("a", "A", { authority = 1 }), "answers")
  end)

  it("names that are compressed, or of unknown labels", function()
    refused(query(nil, "A", { wire = "\192\12" }), "compressed")
    refused(query(nil, "A", { wire = "\1a\192\12" }), "compressed")
    refused(query(nil, "A", { wire = "\65a\0" }), "unknown kind")
    refused(query("a", "A", { additional = 1, rest = "\192\255" .. ("\0"):rep(10) }), "forwards")
    refused(query("a", "A", { additional = 1, rest = "\64" .. ("\0"):rep(10) }), "name")
  end)

  it("two OPT records, or one with a name", function()
    refused(query("a", "A", { additional = 2, rest = opt() .. opt() }), "two OPT")
    refused(query("a", "A", edns { name = "\1a\0" }), "OPT record of a name")
  end)
end)

describe("a DNS answer", function()
  local A = { type = "A", ttl = 60, address = "198.18.0.1" }

  it("repeats the question as it was asked, and adds the records", function()
    local got = read(assert(dns.answer(query("wWw.Example.org", "A"), { rcode = "NOERROR",
      records = { A, { type = "A", ttl = 60, address = "198.18.0.2" } } }, 512)))
    assert.same({ id = 0x1234, flags = 0x81, flags2 = 0x80, rcode = 0, question = "wWw.Example.org", type = 1, class = 1,
      records = {
        { section = "answer", name = "wWw.Example.org", type = 1, class = 1, ttl = 60, data = "\198\18\0\1" },
        { section = "answer", name = "wWw.Example.org", type = 1, class = 1, ttl = 60, data = "\198\18\0\2" } } }, got)
  end)

  it("carries IPv6 addresses and names", function()
    local six = read(dns.answer(query("a", "AAAA"), { rcode = "NOERROR", records = { { type = "AAAA", address = "fd74:6964:6501::1" } } }, 512))
    assert.equal("\253\116\105\100\101\1" .. ("\0"):rep(9) .. "\1", six.records[1].data)
    local name = read(dns.answer(query("1.0.18.198.in-addr.arpa", "PTR"), { rcode = "NOERROR",
      records = { { type = "PTR", ttl = 1, name = "example.org" } } }, 512))
    assert.equal(wire("example.org"), name.records[1].data)
  end)

  it("lets a no be remembered for a few seconds", function()
    local got = read(dns.answer(query("a.b", "A"), { rcode = "NXDOMAIN", soa = true }, 512))
    assert.equal(3, got.rcode)
    assert.same({ section = "authority", name = "", type = 6, class = 1, ttl = 5 },
      { section = got.records[1].section, name = got.records[1].name, type = got.records[1].type, class = 1, ttl = got.records[1].ttl })
    assert.equal("\0\0\0\5", got.records[1].data:sub(-4))
    local longer = read(dns.answer(query("a.b", "A"), { rcode = "NOERROR", soa = true, negative_ttl = 258 }, 512))
    assert.equal("\0\0\1\2", longer.records[1].data:sub(-4))
  end)

  it("has an OPT record exactly when the query has one", function()
    local got = read(dns.answer(query("a", "A", edns { dnssec = true }), { rcode = "NOERROR", records = { A } }, 1232))
    assert.same({ section = "additional", name = "", type = 41, class = 1232, ttl = 0x8000, data = "" }, got.records[2])
    local bad = read(dns.answer(query("a", "A", edns { version = 1 }), { rcode = "BADVERS" }, 1232))
    assert.equal(0, bad.rcode)
    assert.equal(0x1000000, bad.records[1].ttl)
    assert.equal(0, #read(dns.answer(query("a", "A"), { rcode = "REFUSED" }, 1232)).records)
  end)

  it("keeps RD and CD, and says that recursion is to be had", function()
    assert.equal(0x90, read(dns.answer(query("a", "A", { flags2 = 0x30 }), { rcode = "NOERROR" }, 512)).flags2)
    assert.equal(0x80, read(dns.answer(query("a", "A", { flags = 0x06 }), { rcode = "NOERROR" }, 512)).flags)
    assert.equal(0xa8, read(dns.answer(query("a", "A", { flags = 0x28 }), { rcode = "NOTIMP" }, 512)).flags)
  end)

  it("that does not fit sends the asker to TCP", function()
    local records = {}
    for i = 1, 32 do
      records[i] = A
    end
    local ask = query("a.b", "A", edns())
    local whole = read(assert(dns.answer(ask, { rcode = "NOERROR", records = records }, 65535)))
    assert.equal(33, #whole.records)
    assert.equal(0x81, whole.flags)
    local bytes = assert(dns.answer(ask, { rcode = "NOERROR", records = records }, 512))
    assert.is_true(#bytes <= 512 and #bytes > 512 - 16)
    local short = read(bytes)
    assert.equal(0x83, short.flags)
    assert.equal("answer", short.records[#short.records - 1].section)
    assert.equal(41, short.records[#short.records].type)
  end)

  it("to a malformed query repeats nothing of it", function()
    for _, bytes in ipairs { query("a", "A"):sub(1, 15), query(nil, "A", { wire = "\192\12" }), query("a", "A", { questions = 9 }),
      query("a", "A"):sub(1, 12) } do
      assert.equal("\18\52\129\129\0\0\0\0\0\0\0\0", dns.answer(bytes, { rcode = "FORMERR" }, 512))
    end
  end)

  it("is not given to what has no header, or is an answer", function()
    for _, bytes in ipairs { "", "\18\52\1", query("a", "A", { flags = 0x81 }) } do
      local got, _, code = dns.answer(bytes, { rcode = "FORMERR" }, 512)
      assert.is_nil(got)
      assert.equal("EBADMSG", code)
    end
    local got, _, code = dns.answer(query("a", "A"), { rcode = "NOERROR" }, 511)
    assert.is_nil(got)
    assert.equal("EMSGSIZE", code)
  end)

  it("can't be made of what is no record", function()
    local function fails(record)
      assert.has_error(function()
        dns.answer(query("a", "A"), { rcode = "NOERROR", records = { record } }, 512)
      end)
    end
    for _, record in ipairs { 1, {}, { type = "A" }, { type = "A", address = "::1" }, { type = "AAAA", address = "1.2.3.4" },
      { type = "A", address = 1 }, { type = "MX", name = "a" }, { type = "PTR", name = "a..b" }, { type = "PTR", name = ("a"):rep(64) },
      { type = "A", address = "1.2.3.4", ttl = -1 } } do
      fails(record)
    end
    assert.has_error(function() dns.answer(query("a", "A"), { rcode = "WHATEVER" }, 512) end)
    assert.has_error(function() dns.answer(query("a", "A"), {}, 512) end)
    assert.has_error(function() dns.parse({}) end)
  end)

  it("survives a collector that runs all the time", function()
    collectgarbage("setpause", 1)
    collectgarbage("setstepmul", 10000)
    finally(function()
      collectgarbage("setpause", 200)
      collectgarbage("setstepmul", 200)
    end)
    for i = 1, 500 do
      local bytes = query("n" .. i .. ".example", "A", edns())
      assert.equal("n" .. i .. ".example", dns.parse(bytes).name)
      assert.is_truthy(dns.answer(bytes, { rcode = "NOERROR", records = { { type = "A", address = "10." .. i % 256 .. ".0.1" } } }, 512))
    end
  end)
end)
