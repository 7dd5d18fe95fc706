local cjson = require("cjson")
local format = require("tidepool.cli.format")

describe("JSON output", function()
  it("writes an empty list as a list and an empty map as a map", function()
    assert.equal('{"a":[]}', format.json({ a = format.array({}) }))
    assert.equal('{"a":{}}', format.json({ a = {} }))
  end)

  it("keeps text as it is, also slashes", function()
    assert.equal('{"path":"/a/é"}', format.json({ path = "/a/é" }))
  end)

  it("marks bytes that are no text", function()
    local fields = format.bytes({}, { stdout = "\255\0x", stderr = "fine" })
    assert.same({ stdout = "/wB4", stderr = "ZmluZQ==", encoding = "base64" }, fields)
    assert.same({ stdout = "é", encoding = "utf-8" }, format.bytes({}, { stdout = "é" }))
    assert.same({ base64 = "YS//" }, cjson.decode(format.json({ path = "a/\255" })).path)
  end)

  it("survives infinities and what has no JSON form", function()
    assert.equal(cjson.null, cjson.decode(format.json({ x = 1 / 0 })).x)
    assert.equal(cjson.null, cjson.decode(format.json({ x = print })).x)
  end)
end)

describe("UTF-8 check", function()
  it("takes what is valid and nothing else", function()
    for _, text in ipairs({ "", "abc", "é", "€", "𝄞", "\239\191\189" }) do
      assert.is_true(format.is_utf8(text))
    end
    for _, text in ipairs({ "\128", "\192\175", "\224\128\128", "\237\160\128", "\244\144\128\128", "a\195", "\255" }) do
      assert.is_false(format.is_utf8(text))
    end
  end)
end)

describe("tables", function()
  it("align their columns and show nothing as -", function()
    local text = format.table({ { "NAME", "name" }, { "N", "n" } }, { { name = "é", n = 1 }, { name = "longer" } })
    assert.equal("NAME     N\né        1\nlonger   -\n", text)
  end)

  it("let no control character of a sandbox reach the terminal", function()
    local text = format.table({ { "NAME", "name" } }, { { name = "a\27[2Jb\n" } })
    assert.is_nil(text:find("\27", 1, true))
    assert.matches("\\x1b", text)
  end)
end)

describe("what a sandbox says", function()
  it("is shown as it is when it is text", function()
    assert.equal("é€𝄞 x", format.clean("é€𝄞 x"))
    assert.equal("a\nb\tc\\x0d", format.clean("a\nb\tc\r", true))
  end)

  it("gives a terminal no order, in any encoding, and no other direction", function()
    for bytes, shown in pairs({
      ["a\155b"] = "a\\x9bb", -- CSI of 8-bit terminals
      ["\194\15531mx"] = "\\xc2\\x9b31mx", -- and of UTF-8 ones
      ["\226\128\174txt.exe"] = "\\xe2\\x80\\xaetxt.exe", -- right to left
      ["\226\129\166"] = "\\xe2\\x81\\xa6",
      ["\226\128\168"] = "\\xe2\\x80\\xa8", -- a line separator
      ["é\255"] = "\\xc3\\xa9\\xff",
    }) do
      assert.equal(shown, format.clean(bytes))
    end
  end)

  it("is harmless as a field's name, too", function()
    assert.is_nil(format.any({ ["\27[2J"] = "x", deeper = { ["\27]0;t\7"] = 1 } }):find("[\27\7]"))
  end)
end)

describe("sizes, times, modes and command lines", function()
  it("read as people write them", function()
    assert.equal("512 MiB", format.size(512 * 2 ^ 20))
    assert.equal("1.5 GiB", format.size(1.5 * 2 ^ 30))
    assert.equal("3 min", format.duration(200))
    assert.equal("5 h ago", format.ago(0, 5 * 3600))
    assert.equal("drwxr-x--x", format.mode(489, "directory"))
    assert.equal("sh -c 'echo it'\\''s' ''", format.argv({ "sh", "-c", "echo it's", "" }))
  end)
end)
