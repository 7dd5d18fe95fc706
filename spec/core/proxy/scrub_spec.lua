-- The scrubber: what an upstream echoes of a secret is masked, however it is written and cut.
local proxy = require("tidepool.proxy")

local SECRET = "ghp_s3cr3t/+value?42"
local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

local function base64(bytes, extra)
  local alphabet, out = ALPHABET .. extra, {}
  for at = 1, #bytes, 3 do
    local a, b, c = bytes:byte(at, at + 2)
    local word = a * 65536 + (b or 0) * 256 + (c or 0)
    for digit = 0, 3 do
      local index = math.floor(word / 64 ^ (3 - digit)) % 64
      out[#out + 1] = (digit < 2 or digit == 2 and b or digit == 3 and c) and alphabet:sub(index + 1, index + 1) or "="
    end
  end
  return table.concat(out)
end

local function percent(bytes, format, chance)
  return (bytes:gsub(".", function(byte)
    return math.random() <= chance and format:format(byte:byte()) or byte
  end))
end

--- Cuts text into pieces of random size.
local function cut(text, most)
  local pieces, at = {}, 1
  while at <= #text do
    local size = math.random(0, most)
    pieces[#pieces + 1] = text:sub(at, at + size - 1)
    at = at + size
  end
  pieces[#pieces + 1] = ""
  return pieces
end

local function streamed(scrub, pieces)
  local out, id = scrub:pieces(pieces)
  return table.concat(out), id
end

local function mask_of(text)
  return ("*"):rep(#text)
end

describe("the scrubber", function()
  local scrub

  before_each(function()
    scrub = assert(proxy.scrub.new({ { SECRET, 7 } }, "mask"))
  end)

  it("masks the secret at the same length and tells which it was", function()
    local text, id = scrub:text("a " .. SECRET .. " b " .. SECRET)
    assert.equal("a " .. mask_of(SECRET) .. " b " .. mask_of(SECRET), text)
    assert.equal(7, id)
  end)

  it("leaves everything else alone", function()
    for _, text in ipairs({ "", "ghp_", SECRET:sub(1, -2), SECRET:sub(2), "%", "\\", "\\u00", "100 % \\x %zz" }) do
      assert.same({ text }, { scrub:text(text) })
    end
  end)

  it("finds it in base64 and base64url at each alignment", function()
    for _, extra in ipairs({ "+/", "-_" }) do
      for lead = 0, 5 do
        for trail = 0, 2 do
          local encoded = base64(("u"):rep(lead) .. SECRET .. ("v"):rep(trail), extra)
          local text, id = scrub:text("x=" .. encoded .. "&y")
          assert.equal(7, id)
          assert.equal(#encoded + 4, #text)
          -- 4 bits at either end, at most, depend on the neighbours too and stay.
          assert.is_true(select(2, text:gsub("%*", "")) >= math.floor(#SECRET * 8 / 6) - 1, text)
        end
      end
    end
  end)

  it("finds it percent-encoded, in either case of hex, any subset of its bytes", function()
    for _, format in ipairs({ "%%%02x", "%%%02X" }) do
      for _, chance in ipairs({ 1, 0.5, 0.1 }) do
        for _ = 1, 50 do
          local encoded = percent(SECRET, format, chance)
          assert.equal("a" .. mask_of(encoded) .. "b", (scrub:text("a" .. encoded .. "b")))
        end
      end
    end
  end)

  it("finds base64 whose + and / are percent-encoded", function()
    local encoded = base64("user:\255\255\255" .. SECRET, "+/"):gsub("[+/=]", { ["+"] = "%2B", ["/"] = "%2f", ["="] = "%3D" })
    assert.equal(7, (select(2, scrub:text(encoded))))
  end)

  it("finds it as JSON writes it", function()
    local escaped = SECRET:gsub("/", "\\/"):gsub("%?", "\\u003F")
    assert.equal('{"t":"' .. mask_of(escaped) .. '"}', (scrub:text('{"t":"' .. escaped .. '"}')))
    local lines = assert(proxy.scrub.new({ { 'line one\n"two"\tand \\', 1 } }))
    assert.equal(1, (select(2, lines:text([[{"k":"line one\n\"two\"\tand \\"}]]))))
  end)

  it("is not misled by bytes in front that would swallow the secret's first ones", function()
    local hex = assert(proxy.scrub.new({ { "41aabbccdd", 1 }, { "u0041xyzabc", 2 } }))
    assert.equal("%" .. mask_of("41aabbccdd"), (hex:text("%41aabbccdd")))
    assert.equal("%4" .. mask_of("41aa%62bccdd"), (hex:text("%441aa%62bccdd")))
    assert.equal("\\" .. mask_of("u0041xy%7Aabc"), (hex:text("\\u0041xy%7Aabc")))
  end)

  it("takes a secret that holds escapes itself", function()
    local odd = assert(proxy.scrub.new({ { "ab%41%25cd\\n", 1 } }))
    assert.equal("(" .. mask_of("ab%41%25cd\\n") .. ")", (odd:text("(ab%41%25cd\\n)")))
    local encoded = "ab%2541%2525c%64%5Cn"
    assert.equal(mask_of(encoded), (odd:text(encoded)))
  end)

  it("masks matches that overlap", function()
    local twins = assert(proxy.scrub.new({ { "abcdefgh12", 1 }, { "gh12ijklmn", 2 } }))
    local whole = "abcdefgh12ijklmn"
    assert.equal(mask_of(whole), (twins:text(whole)))
    for at = 0, #whole do
      assert.equal(mask_of(whole), (streamed(twins, { whole:sub(1, at), whole:sub(at + 1) })))
    end
  end)

  it("gives the same however the stream is cut", function()
    local second = "abcabcabd%"
    local two = assert(proxy.scrub.new({ { SECRET, 1 }, { second, 2 } }))
    for _ = 1, 300 do
      local parts = {}
      for _ = 1, math.random(1, 12) do
        local secret = math.random() < 0.5 and SECRET or second
        local kind = math.random(6)
        parts[#parts + 1] = kind == 1 and secret
          or kind == 2 and percent(secret, "%%%02x", math.random())
          or kind == 3 and percent(secret, "\\u%04x", math.random())
          or kind == 4 and base64(("u"):rep(math.random(0, 2)) .. secret, "+/")
          or kind == 5 and secret:sub(1, math.random(#secret))
          or ("xa%\\4ug"):rep(math.random(0, 9))
      end
      local text = table.concat(parts)
      local expected, id = two:text(text)
      for _, most in ipairs({ 1, 3, 20, 200 }) do
        local got, seen = streamed(two, cut(text, most))
        assert.equal(expected, got)
        assert.equal(id == nil, seen == nil)
      end
    end
  end)

  it("holds back only what may begin a match", function()
    local out = scrub:pieces({ "nothing here.", "but " .. SECRET:sub(1, 5), "no", "%6", "7 that was a g%", "" })
    assert.same({ "nothing here.", "but ", SECRET:sub(1, 5) .. "no", "", "%67 that was a ", "g%" }, out)
    assert.is_true(scrub:holds() >= #SECRET * 6 and scrub:holds() < 1000)
  end)

  it("only looks when asked to detect", function()
    local detect = assert(proxy.scrub.new({ { SECRET, 9 } }, "detect"))
    assert.same({ "x" .. SECRET, 9 }, { detect:text("x" .. SECRET) })
    local out, id = detect:pieces({ "x" .. SECRET:sub(1, 4), SECRET:sub(5) .. "y" })
    assert.same({ { "x", SECRET .. "y" }, 9 }, { out, id })
  end)

  it("finds each of many, with long ones among them", function()
    local list = {}
    for id = 1, 64 do
      local bytes = {}
      for at = 1, id == 64 and 4096 or math.random(8, 100) do
        bytes[at] = string.char(math.random(33, 126))
      end
      list[id] = { table.concat(bytes), id }
    end
    local many = assert(proxy.scrub.new(list))
    for id, entry in ipairs(list) do
      local text, found = many:text((" "):rep(5000) .. entry[1] .. " tail")
      assert.equal((" "):rep(5000) .. mask_of(entry[1]) .. " tail", text)
      assert.equal(id, found)
      assert.equal(id, (select(2, many:text("Basic " .. base64("me:" .. entry[1], "+/")))))
    end
  end)

  it("does nothing without secrets, and refuses those that it could not tell from other text", function()
    assert.same({ SECRET }, { assert(proxy.scrub.new({})):text(SECRET) })
    for _, list in ipairs({ { { "short", 1 } }, { { ("x"):rep(4097), 1 } }, { { SECRET, 0 } } }) do
      assert.equal("EINVAL", (select(3, proxy.scrub.new(list))))
    end
    assert.has_error(function()
      proxy.scrub.new({ SECRET })
    end)
    assert.has_error(function()
      proxy.scrub.new({ { SECRET, 1 } }, "other")
    end)
  end)

  it("survives the collector", function()
    for _ = 1, 200 do
      local one = assert(proxy.scrub.new({ { SECRET, 1 } }))
      collectgarbage()
      assert.equal(1, (select(2, one:text(SECRET))))
    end
  end)
end)
