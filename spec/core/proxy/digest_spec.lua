-- Hashes, encodings and sealing, against openssl and published vectors.
local proxy = require("tidepool.proxy")
local digest = proxy.digest

describe("digest", function()
  it("hashes as FIPS 180 and RFC 4231 say", function()
    assert.equal("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", digest.hex(digest.sha256("abc")))
    assert.equal("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", digest.hex(digest.sha256("")))
    assert.equal("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
      digest.hex(digest.hmac_sha256(("\11"):rep(20), "Hi There")))
    assert.equal("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
      digest.hex(digest.hmac_sha256(("\170"):rep(131), "Test Using Larger Than Block-Size Key - Hash Key First")))
    assert.equal("00ff10", digest.hex("\0\255\16"))
  end)

  it("encodes base64 and reads back only what it would write", function()
    for bytes, text in pairs({ [""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", foobar = "Zm9vYmFy", ["\251\255\254"] = "+//+" }) do
      assert.equal(text, digest.base64(bytes))
      assert.equal(bytes, digest.unbase64(text))
      local url = text:gsub("[+/=]", { ["+"] = "-", ["/"] = "_", ["="] = "" })
      assert.equal(url, digest.base64url(bytes))
      assert.equal(bytes, digest.unbase64url(url))
    end
    assert.equal("f", digest.unbase64url("Zg=="))
    for _, text in ipairs({ "Z", "Zg", "Zg=", "Zh==", "Zg= =", "=Zg=", "====", "Zm9v\n", "Zm 9", "-__-", "Z===", "Zg==Zg==" }) do
      assert.is_nil(digest.unbase64(text), text)
    end
    for _, text in ipairs({ "Z", "Zh", "+//+", "Zm9vY", "Zg=" }) do
      assert.is_nil(digest.unbase64url(text), text)
    end
    for size = 0, 200 do
      local bytes = digest.random(size)
      assert.equal(bytes, digest.unbase64(digest.base64(bytes)))
    end
  end)

  it("gives random bytes that differ, and compares without telling where", function()
    assert.equal(4096, #digest.random(4096))
    assert.are_not.equal(digest.random(16), digest.random(16))
    assert.is_true(digest.equal("same", "same"))
    assert.is_false(digest.equal("same", "sama"))
    assert.is_false(digest.equal("same", "same "))
    assert.is_true(digest.equal("", ""))
    assert.has_error(function()
      digest.random(4097)
    end)
  end)

  it("seals, and opens with the same key and context only", function()
    local key = digest.random(32)
    for _, bytes in ipairs({ "", "s", ("secret "):rep(1000) }) do
      local sealed = assert(digest.seal(key, bytes, "secret:github"))
      assert.equal(#bytes + 32, #sealed)
      assert.are_not.equal(sealed, digest.seal(key, bytes, "secret:github"))
      assert.equal(bytes, digest.unseal(key, sealed, "secret:github"))
      assert.equal("EBADMSG", (select(3, digest.unseal(key, sealed, "secret:gitlab"))))
      assert.equal("EBADMSG", (select(3, digest.unseal(digest.random(32), sealed, "secret:github"))))
    end
  end)

  it("refuses sealed bytes in which any bit was changed, or that were cut", function()
    local key = digest.random(32)
    local sealed = assert(digest.seal(key, "value", "name"))
    for at = 1, #sealed do
      local byte = sealed:byte(at)
      local changed = sealed:sub(1, at - 1) .. string.char(byte % 2 == 0 and byte + 1 or byte - 1) .. sealed:sub(at + 1)
      assert.equal("EBADMSG", (select(3, digest.unseal(key, changed, "name"))))
      assert.equal("EBADMSG", (select(3, digest.unseal(key, sealed:sub(1, at - 1), "name"))))
    end
    assert.has_error(function()
      digest.seal("short", "value", "name")
    end)
  end)
end)
