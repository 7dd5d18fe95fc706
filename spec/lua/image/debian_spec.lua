-- The default image: what an agent expects to find, and a user of its own.
local support = require("spec.support")

describe("the debian image", function()
  local box
  setup(function()
    support.image("debian")
    box = support.sandbox({ image = "debian" })
  end)

  it("has the tools of a build and of a person", function()
    local result = assert(box:exec([[
      for tool in git python3 curl gcc make node npm bash ls ps less nano tar; do
        command -v $tool >/dev/null || echo "no $tool"
      done
      test -s /etc/ssl/certs/ca-certificates.crt || echo "no certificates"
    ]]))
    assert.equal("", result.stdout)
  end)

  it("is the host's own release", function()
    local function codename(text)
      return text:match("VERSION_CODENAME=(%w+)")
    end
    assert.equal(codename(support.read("/etc/os-release")), codename(box:read("/etc/os-release")))
  end)

  it("builds and runs a C program, as agent and in its home", function()
    assert(box:write("hello.c", '#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n'))
    local result = assert(box:exec("gcc -o hello hello.c && ./hello && id -un && pwd"))
    assert.equal("hello\nagent\n/workspace\n", result.stdout, result.stderr)
  end)
end)
