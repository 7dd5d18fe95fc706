local terminal = require("tidepool.terminal")

describe("detach keys", function()
  it("are written as docker writes them", function()
    assert.equal("\16\17", terminal.parse_keys("ctrl-p,ctrl-q"))
    assert.equal("\29", terminal.parse_keys("ctrl-]"))
    assert.equal("a\0", terminal.parse_keys("a,ctrl-@"))
    assert.equal("", terminal.parse_keys(""))
    assert.equal("EINVAL", select(3, terminal.parse_keys("ctrl-")))
    assert.equal("EINVAL", select(3, terminal.parse_keys("foo")))
  end)

  local function type_in(filter, ...)
    local out = {}
    for _, piece in ipairs({ ... }) do
      local bytes, detach = filter(piece)
      out[#out + 1] = bytes
      if detach then
        return table.concat(out), true
      end
    end
    return table.concat(out), false
  end

  it("are found in one piece and in several", function()
    local passed, left = type_in(terminal.key_filter("\16\17"), "ls\16\17rm")
    assert.equal("ls", passed)
    assert.is_true(left)
    passed, left = type_in(terminal.key_filter("\16\17"), "ls", "\16", "\17")
    assert.equal("ls", passed)
    assert.is_true(left)
  end)

  it("let everything else through, also their own beginning", function()
    local passed, left = type_in(terminal.key_filter("\16\17"), "a\16", "b\16\16", "c\17")
    assert.equal("a\16b\16\16c\17", passed)
    assert.is_false(left)
  end)

  it("never detach when there are none", function()
    assert.same({ "\16\17", false }, { type_in(terminal.key_filter(""), "\16\17") })
  end)
end)

describe("the modes that a full-screen program sets", function()
  it("are undone when we leave in its middle, whatever pieces they came in", function()
    local watch = terminal.mode_watch()
    watch.watch("x\27[?104")
    watch.watch("9h\27[?25l\27[?1000;1006h")
    local undo = watch.undo()
    for _, mode in ipairs({ "?1049l", "?25h", "?1000l", "?1006l" }) do
      assert.is_truthy(undo:find(mode, 1, true), mode)
    end
  end)

  it("are left alone when it has reset them itself", function()
    local watch = terminal.mode_watch()
    watch.watch("\27[?1049h\27[?25l ... \27[?25h\27[?1049l")
    assert.equal("\27[0m", watch.undo())
  end)
end)

describe("output that is shown again", function()
  local attached = require("tidepool.cli.attached")

  it("begins with a whole line and asks the terminal nothing", function()
    local replay = attached.replay(100, 10)
    assert.equal("b\27[1mc", replay("half\nb\27[6n\27[1mc\27[c\27]11;?\7", 10))
    assert.equal("\27[6n", replay("\27[6n", 100))
  end)
end)
