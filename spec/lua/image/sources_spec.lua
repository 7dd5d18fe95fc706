local sources = require("tidepool.image.sources")

local KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

-- What `apt-get indextargets` says of one source.
local function target(origin, codename, uri, release, component)
  return table.concat({ origin, codename, uri, release, component }, "\31") .. "\n"
end

describe("the host's Debian sources", function()
  it("leave third parties out, whatever their release is called", function()
    local found = sources.parse(
      target("Debian", "bookworm", "http://mirror.example/debian/", "bookworm", "main")
        .. target("Docker", "bookworm", "https://docker.example/debian/", "bookworm", "stable")
        .. target("TorProject", "bookworm", "https://tor.example/", "bookworm", "main")
        .. target("Debian", "bookworm-security", "http://mirror.example/security/", "bookworm-security", "main"),
      "bookworm", KEYRING)
    assert.same({
      codename = "bookworm",
      lines = {
        "deb [signed-by=" .. KEYRING .. "] http://mirror.example/debian/ bookworm main",
        "deb [signed-by=" .. KEYRING .. "] http://mirror.example/security/ bookworm-security main",
      },
    }, found)
  end)

  it("are of the host's release alone, each source once", function()
    local found = sources.parse(
      target("Debian", "trixie", "http://mirror.example/debian/", "testing", "main")
        .. target("Debian", "bookworm", "http://mirror.example/debian/", "bookworm", "main")
        .. target("Debian", "bookworm", "http://mirror.example/debian/", "bookworm", "main")
        .. target("Debian", "bookworm", "cdrom:[Debian 12]/", "bookworm", "main")
        .. target("Debian", "bookworm-backports", "http://mirror.example/debian/", "bookworm-backports", "main"),
      "bookworm")
    assert.same({ "deb http://mirror.example/debian/ bookworm main" }, found.lines)
  end)

  it("name the release themselves on a rolling one", function()
    local found = sources.parse(target("Debian", "sid", "http://mirror.example/debian/", "unstable", "main"))
    assert.same({ codename = "sid", lines = { "deb http://mirror.example/debian/ unstable main" } }, found)
  end)

  it("are nil where apt knows none", function()
    assert.is_nil(sources.parse("", "bookworm"))
    assert.is_nil(sources.parse(target("Ubuntu", "noble", "http://mirror.example/", "noble", "main"), "noble"))
  end)

  it("read the release's name from os-release", function()
    assert.equal("bookworm", sources.codename("ID=debian\nVERSION_CODENAME=bookworm\n"))
    assert.equal("trixie", sources.codename("VERSION_CODENAME=\"trixie\"\n"))
    assert.is_nil(sources.codename("ID=debian\n"))
  end)

  it("are reached as the host reaches them: proxies and time checks, nothing else", function()
    assert.same({
      "Acquire::http::Proxy \"http://proxy:3128\"",
      "Acquire::Check-Valid-Until \"false\"",
    }, sources.acquire("Acquire=\nAcquire::http::Proxy=http://proxy:3128\nAcquire::http=\n"
      .. "Acquire::Check-Valid-Until=false\nAcquire::IndexTargets::deb::x=y\nAcquire::https::CaInfo=a\"b\n"))
  end)
end)
