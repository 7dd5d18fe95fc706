-- Watches and stops nothing: to see what a workload needs before it gets a policy that allows just that.
-- Private addresses, disagreeing names and protocols that are no TCP stay shut, since no list of hosts
-- would open them either. What cannot be read is relayed and shows in the audit by name and bytes.

local function decide(event, options)
  if event.protocol == "tcp" or (event.host and options.passthrough:has(event.host)) then
    return passthrough()
  end
  return allow()
end

return policy {
  name = "audit_only",
  about = "Allow everything public and record it.",
  options = {
    passthrough = { type = "host_list", default = {}, about = "hosts whose TLS is not opened" },
  },

  connect = decide,

  log = function(event)
    local path = (event.path or ""):gsub("%?.*", "?...") -- a query may be a credential
    log(("%s %s://%s%s %s"):format(
      event.method or "-", event.protocol or "-", event.host or event.address or "-", path, event.status or event.action or "-"
    ))
  end,

  cases = {
    { "every name resolves", hook = "resolve", event = { host = "a.example" }, expect = "allow" },
    { "every host is reached", hook = "connect", event = { host = "a.example" }, expect = "allow" },
    { "also by address", hook = "connect", event = { address = "192.0.2.1", port = 443 }, expect = "allow" },
    { "with every method", event = { host = "a.example", method = "DELETE", path = "/x" }, expect = { action = "allow", headers = {} } },
    { "ssh is relayed", hook = "connect", event = { host = "a.example", port = 22, protocol = "tcp" }, expect = "passthrough" },
    { "TLS stays shut where asked", options = { passthrough = "*.example" }, hook = "connect", event = { host = "a.example" }, expect = "passthrough" },
    { "names have to agree", event = { host = "a.example", mismatch = "Host is b.example" }, expect = "deny" },
    { "private addresses are not asked for", event = { host = "a.example" }, expect = { action = "allow", private = false } },
  },
}
