local args = require("tidepool.cli.args")
local verbs = require("tidepool.verbs")

local command = {
  name = "paint",
  params = {
    { name = "name", type = "name", positional = 1, required = true },
    { name = "argv", type = "argv", rest = true },
    { name = "memory", type = "bytes", flag = "--memory", short = "-m" },
    { name = "timeout", type = "seconds", flag = "--timeout" },
    { name = "env", type = "map", flag = "--env", short = "-e", repeated = true, inherit = true },
    { name = "tty", type = "boolean", flag = "--tty", short = "-t" },
    { name = "stdin", type = "boolean", flag = "--interactive", short = "-i" },
    { name = "mode", type = "octal", flag = "--mode" },
    { name = "color", type = "string", flag = "--color", values = { "red", "green" } },
    { name = "hidden", type = "string" },
  },
}

local function parse(line)
  local words = {}
  for word in line:gmatch("%S+") do
    words[#words + 1] = word
  end
  return args.parse(command, words)
end

describe("a command line", function()
  it("takes options in any order, with = or a space, short ones together", function()
    local values = assert(parse("-it box --memory=512M -e A=1 -eB=x=y --timeout 2m -- ls -la"))
    assert.same({
      name = "box",
      tty = true,
      stdin = true,
      memory = 512 * 2 ^ 20,
      timeout = 120,
      env = { A = "1", B = "x=y" },
      argv = { "ls", "-la" },
    }, values)
  end)

  it("leaves everything behind -- to the command", function()
    assert.same({ "--help", "--", "-t" }, parse("box -- --help -- -t").argv)
  end)

  it("starts the command at the first word behind the name, as docker does", function()
    assert.same({ name = "box", argv = { "ls", "--memory" } }, parse("box ls --memory"))
  end)

  it("takes a variable's value from our own environment when it has no =", function()
    assert.equal(os.getenv("PATH"), parse("box -e PATH").env.PATH)
  end)

  it("switches a boolean off with --no-", function()
    assert.is_false(parse("box --no-tty").tty)
  end)

  it("does not offer parameters that have no place on the command line", function()
    assert.equal("ENOOPT", select(3, parse("box --hidden x")))
  end)

  it("knows --help and --json everywhere, and --help forgives what is missing", function()
    assert.is_true(parse("--help").help)
    assert.is_true(parse("box --json").json)
  end)

  local refused = {
    { "", "ENOARG", "NAME is missing" },
    { "box --memory", "ENOARG", "needs a value" },
    { "box --memory 5Q", "EINVAL", "expected a size" },
    { "box --timeout soon", "EINVAL", "expected a time" },
    { "box --mode 99", "EINVAL", "octal" },
    { "box --color blue", "EINVAL", "one of red, green" },
    { "box -e =x", "EINVAL", "KEY=VALUE" },
    { "Box", "EINVAL", "expected a name" },
    { "-x box", "ENOOPT", "unknown option %-x" },
    { "--memmory 4 box", "ENOOPT", "did you mean %-%-memory" },
  }
  for _, case in ipairs(refused) do
    it(("refuses %q with %s"):format(case[1], case[2]), function()
      local values, message, code = parse(case[1])
      assert.is_nil(values)
      assert.equal(case[2], code)
      assert.matches(case[3], message)
    end)
  end

  it("refuses a word too many when the verb takes no command", function()
    local values, _, code = args.parse({ name = "ls", params = {} }, { "x" })
    assert.is_nil(values)
    assert.equal("EEXTRA", code)
  end)
end)

describe("sizes and times", function()
  it("are read with the units that people write", function()
    for text, bytes in pairs({ ["0"] = 0, ["10"] = 10, ["1k"] = 1024, ["1.5G"] = 1.5 * 2 ^ 30, ["2GiB"] = 2 ^ 31, ["3MB"] = 3 * 2 ^ 20 }) do
      assert.equal(bytes, args.bytes(text))
    end
    for text, seconds in pairs({ ["5"] = 5, ["1.5s"] = 1.5, ["500ms"] = 0.5, ["2h"] = 7200, ["1d"] = 86400 }) do
      assert.equal(seconds, args.seconds(text))
    end
    for _, text in ipairs({ "", "-1", "1x", "M", "1..5", "1e3", "0x10" }) do
      assert.is_nil(args.bytes(text), text)
      assert.is_nil(args.seconds(text), text)
    end
  end)
end)

describe("the verbs", function()
  local commands = require("tidepool.cli.commands")

  it("are all reachable when the table gives them a place", function()
    for _, verb in ipairs(verbs.list) do
      if verb.cli then
        local words = {}
        for word in verb.cli:gmatch("%S+") do
          words[#words + 1] = word
        end
        local found = assert(args.find(commands, words))
        assert.equal(verb.name, found.verb)
      end
    end
  end)

  it("each have an example that parses", function()
    for _, found in ipairs(commands.list) do
      local words = {}
      for word in found.example:gsub("%b''", "quoted"):gsub("%b\"\"", "quoted"):gsub("<.*", ""):gmatch("%S+") do
        words[#words + 1] = word
      end
      local matched, rest = args.find(commands, words)
      assert.equal(found, matched)
      if found.run ~= commands.by_name.bench.run then
        local values, message = args.parse(found, rest)
        assert.is_truthy(values, found.name .. ": " .. tostring(message))
      end
    end
  end)

  it("that don't exist are named, with the nearest that does", function()
    local found, message, code = args.find(commands, { "destory", "x" })
    assert.is_nil(found)
    assert.equal("ENOVERB", code)
    assert.matches("did you mean destroy", message)
    assert.matches("did you mean build", select(2, args.find(commands, { "image", "biuld" })))
  end)
end)
