return policy {
  name = "deny_all",
  about = "Reach nothing. What a sandbox has when no one says otherwise.",

  connect = function()
    return deny("no policy is attached that allows anything")
  end,

  cases = {
    { "no name resolves", hook = "resolve", event = { host = "example.com" }, expect = "deny" },
    { "nothing is connected to", hook = "connect", event = { host = "example.com", port = 443 }, expect = "deny" },
    { "an address without a name neither", hook = "connect", event = { address = "192.0.2.7", port = 22, protocol = "tcp" }, expect = "deny" },
    { "no request passes", event = { host = "example.com" }, expect = { action = "deny", status = 403, reason = "no policy" } },
  },
}
