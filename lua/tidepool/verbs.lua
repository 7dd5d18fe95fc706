--- Every verb, once, as data. The server's checks, the client, the CLI's parsing and help derive
-- from this table; later the HTTP API, the REPL's completion and the reference will.
--
-- A verb: name (as sent), cli (words on the command line; absent: not offered there), group, about,
-- params, fds (what descriptors go with the request), result, errors, wakes (true: a sandbox that
-- is not running is started first), progress (true: sends "progress" notifications).
-- A param: name, type, about, required, positional (its place on the command line), flag, short,
-- repeated, rest (all that follows `--`), default (a value the server assumes), values, most (the largest
-- number, or the most bytes, words or pairs), least (the smallest number).
--
-- Types: name (1-63 of [a-z0-9-]), snapshot (NAME@LABEL), source (a name or a snapshot), string, integer, number, seconds, bytes (512M, 2G), boolean,
-- map (K=V repeated), list (repeated), argv (list of strings), octal, offset (bytes of output), value (any
-- bytes), policies (list of { name, options, text }: text is of a policy that has no name on the server).
local verbs = {}

local function sandbox_name(about)
  return { name = "name", type = "name", positional = 1, required = true, about = about or "the sandbox" }
end

local function process_name()
  return { name = "process", type = "string", positional = 2, required = true, about = "a process: its name or number" }
end

local function snapshot_address(name, place, about)
  return { name = name, type = "snapshot", positional = place, required = true, metavar = "NAME@LABEL", about = about }
end

-- By which the server knows what must not be done twice.
local function request_key()
  return { name = "key", type = "string", about = "identifies the request over a lost connection", most = 64 }
end

local function cold()
  return { name = "cold", type = "boolean", flag = "--cold", about = "its files only, of a snapshot with memory" }
end

-- For who was there before the sandbox went to sleep: its sleep is not to end for this.
local function idle()
  return { name = "idle", type = "boolean", about = "of a sandbox that sleeps: wait until somebody else wakes it" }
end

-- Bytes. With less than its first steps take, the kernel kills a sandbox for want of memory while it is
-- made, and then the spawner too, whose memory its child shares.
local MEMORY = 4 * 2 ^ 20

local TYPES = { "lite", "basic", "standard-1", "standard-2", "standard-3", "standard-4" }

local function creation(more)
  local list = {
    sandbox_name("the sandbox's name, 1-63 of [a-z0-9-]"),
    { name = "image", type = "string", flag = "--image", about = "image to start from", default = "debian" },
    { name = "type", type = "string", flag = "--type", about = "instance type: " .. table.concat(TYPES, ", "), default = "basic", values = TYPES },
    { name = "memory", type = "bytes", flag = "--memory", about = "memory limit, instead of the type's", least = MEMORY, most = 2 ^ 46 },
    { name = "cpu", type = "number", flag = "--cpu", about = "CPU limit in vCPUs, instead of the type's" },
    { name = "pids", type = "integer", flag = "--pids", about = "most processes and threads", least = 2, most = 4194304, default = 4096 },
    { name = "disk", type = "bytes", flag = "--disk", about = "disk limit, instead of the type's" },
    { name = "env", type = "map", flag = "--env", short = "-e", repeated = true, about = "environment of every process, K=V", most = 16384 },
    { name = "labels", type = "map", flag = "--label", short = "-l", repeated = true, about = "labels, K=V" },
    { name = "egress", type = "policies", flag = "--egress", repeated = true, metavar = "POLICY[,K=V...]",
      about = "what may leave: a policy with its options; in order, the first verdict wins; without any: deny_all" },
    { name = "key", type = "string", about = "identifies the request over a lost connection" },
  }
  for _, param in ipairs(more or {}) do
    list[#list + 1] = param
  end
  return list
end

local CHANGING = { "ENOSANDBOX", "ENOPOLICY", "EINVAL", "ENOSPC", "EAGAIN" }

local function secret_name()
  return { name = "secret", type = "string", positional = 1, required = true, metavar = "NAME", about = "the secret's name", most = 64 }
end

local function command(extra)
  local params = {
    sandbox_name(),
    { name = "argv", type = "argv", rest = true, about = "the command and its arguments", most = 65536 },
    { name = "line", type = "string", about = "a shell line instead of argv (run by sh -c)" },
    { name = "user", type = "string", flag = "--user", short = "-u", about = "user name or id", most = 256, default = "agent" },
    { name = "cwd", type = "string", flag = "--workdir", short = "-w", about = "working directory", most = 4096, default = "/workspace" },
    { name = "env", type = "map", flag = "--env", short = "-e", repeated = true, about = "environment, K=V", most = 16384 },
    { name = "tty", type = "boolean", flag = "--tty", short = "-t", about = "give it a terminal" },
    { name = "stdin", type = "boolean", flag = "--interactive", short = "-i", about = "pass standard input on" },
    { name = "cols", type = "integer", about = "terminal width, characters", most = 65535, default = 80 },
    { name = "rows", type = "integer", about = "terminal height, characters", most = 65535, default = 24 },
    { name = "timeout", type = "seconds", flag = "--timeout", about = "kill the whole process tree after so long" },
    { name = "key", type = "string", about = "identifies the request over a lost connection", most = 64 },
    { name = "lossless", type = "boolean", about = "the process waits for this reader instead of dropping output" },
    { name = "ring", type = "bytes", about = "output kept for later readers", most = 64 * 2 ^ 20, default = 1048576 },
  }
  for _, param in ipairs(extra or {}) do
    params[#params + 1] = param
  end
  return params
end

local STARTING = { "ENOENT", "EACCES", "ENOEXEC", "EBADUSER", "EBADCWD", "ESTOPPED", "ENOSPC", "EAGAIN" }

verbs.list = {
  -- sandboxes
  { name = "create", cli = "create", group = "sandbox", about = "Make a new sandbox and start it.",
    params = creation(), result = "info", errors = { "EEXIST", "ENOIMAGE", "ENOPOLICY", "EINVAL", "ENOSPC" },
    example = "create agent-42 --type standard-1 --env LANG=C.UTF-8 --label team=a" },
  { name = "open", cli = "open", group = "sandbox", about = "Provision the sandbox when absent, resume it when there.",
    params = creation({ { name = "cold", type = "boolean", flag = "--cold", about = "start one that hibernates from its files; its memory is dropped" } }),
    result = "info, and `created`: whether it was made now", errors = { "ENOIMAGE", "ENOPOLICY", "EINVAL", "ENOSPC" },
    wakes = true, example = "open agent-42" },
  { name = "ls", cli = "ls", group = "sandbox", about = "List the sandboxes.",
    params = { { name = "labels", type = "map", flag = "--label", short = "-l", repeated = true, about = "only those with these labels, K=V" } },
    result = "list of info", errors = {}, example = "ls --label team=a" },
  { name = "info", cli = "info", group = "sandbox", about = "Tell about a sandbox, or without a name about the server.",
    params = { { name = "name", type = "name", positional = 1, about = "the sandbox" } },
    result = "info of the sandbox: state, limits, usage; or of the server: pid, version, directories", errors = { "ENOSANDBOX" },
    example = "info agent-42" },
  { name = "stop", cli = "stop", group = "sandbox", about = "End all processes of a sandbox; its files stay.",
    params = { sandbox_name(), { name = "grace", type = "seconds", flag = "--grace", about = "time between TERM and KILL", default = 5 } },
    result = "info", errors = { "ENOSANDBOX" }, example = "stop agent-42" },
  { name = "destroy", cli = "destroy", group = "sandbox", about = "End a sandbox and delete its files.",
    params = { sandbox_name() }, result = "true", errors = { "ENOSANDBOX" }, example = "destroy agent-42" },

  -- processes
  { name = "exec", cli = "exec", group = "process", about = "Run a command and wait for it.", wakes = true,
    params = command(), fds = "attach socket, optional", result = "the outcome: exit_code or signal, wall_seconds, cpu_seconds, timed_out",
    errors = STARTING, example = "exec -w /workspace agent-42 -- make -j2" },
  { name = "start", cli = "start", group = "process", about = "Start a command in the background.", wakes = true,
    params = command({ { name = "process", type = "string", flag = "--name", about = "a name for the process", most = 128 } }),
    fds = "attach socket, optional", result = "the process", errors = { "EEXIST", unpack(STARTING) },
    example = "start agent-42 --name web -- python3 -m http.server 8000" },
  { name = "ps", cli = "ps", group = "process", about = "List the processes that were started in a sandbox.",
    params = { sandbox_name() }, result = "list of processes", errors = { "ENOSANDBOX" }, example = "ps agent-42" },
  { name = "logs", cli = "logs", group = "process", about = "Show a process's output.",
    params = { sandbox_name(), process_name(),
      { name = "since", type = "offset", flag = "--since", about = "skip this many bytes of output", default = 0 },
      { name = "follow", type = "boolean", flag = "--follow", short = "-f", about = "go on until the process ends" } },
    fds = "attach socket", result = "the process", errors = { "ENOSANDBOX", "ENOPROCESS" }, example = "logs -f agent-42 web" },
  { name = "attach", cli = "attach", group = "process", about = "Connect to a process's output and input.",
    params = { sandbox_name(), process_name(),
      { name = "offset", type = "offset", about = "where its output starts, bytes; negative: so many before the end", default = 0 },
      { name = "input", type = "boolean", about = "also write to its stdin or terminal" },
      { name = "lossless", type = "boolean", about = "the process waits for this reader" },
      { name = "follow", type = "boolean", about = "stay until the process ends", default = true },
      { name = "key", type = "string", about = "the key of the request that started it, instead of its name" }, idle() },
    fds = "attach socket", result = "the process", errors = { "ENOSANDBOX", "ENOPROCESS", "ESTOPPED" }, example = "attach agent-42 shell" },
  { name = "signal", cli = "signal", group = "process", about = "Send a signal to a process.",
    params = { sandbox_name(), process_name(),
      { name = "signal", type = "string", positional = 3, required = true, about = "a name (TERM, INT, HUP ...) or number" } },
    result = "true", errors = { "ENOSANDBOX", "ENOPROCESS", "EINVAL", "ESRCH" }, example = "signal agent-42 web HUP" },
  { name = "kill", cli = "kill", group = "process", about = "End a process and all that it started: TERM, grace, KILL.",
    params = { sandbox_name(), process_name(), { name = "grace", type = "seconds", flag = "--grace", about = "time between TERM and KILL", default = 5 } },
    result = "the process", errors = { "ENOSANDBOX", "ENOPROCESS" }, example = "kill agent-42 web" },
  { name = "wait", cli = "wait", group = "process", about = "Wait for a process to end.",
    params = { sandbox_name(), { name = "process", type = "string", positional = 2, about = "a process: its name or number" },
      { name = "key", type = "string", about = "the key of the request that started it" },
      { name = "timeout", type = "seconds", flag = "--timeout", about = "stop waiting after so long; the process goes on" },
      { name = "deadline", type = "seconds", about = "kill the process tree after so long" }, idle() },
    result = "the outcome, as of exec", errors = { "ENOSANDBOX", "ENOPROCESS", "ETIMEDOUT", "ESTOPPED" }, example = "wait agent-42 web" },
  { name = "wait_port", cli = "wait-port", group = "process", about = "Wait until something listens on a port of the sandbox.",
    params = { sandbox_name(), { name = "port", type = "integer", positional = 2, required = true, about = "TCP port" },
      { name = "process", type = "string", flag = "--process", about = "give up when this process ends" },
      { name = "timeout", type = "seconds", flag = "--timeout", about = "give up after so long", default = 30 } },
    result = "true", errors = { "ENOSANDBOX", "ETIMEDOUT", "ESRCH", "ESTOPPED" }, example = "wait-port agent-42 8000" },
  { name = "forget", cli = "forget", group = "process", about = "Drop the record and output of an ended process.",
    params = { sandbox_name(), process_name() }, result = "true", errors = { "ENOSANDBOX", "ENOPROCESS", "EBUSY" }, example = "forget agent-42 web" },
  { name = "agent", group = "file", about = "Open a file agent: a process inside that does file work as a user.", wakes = true,
    params = { sandbox_name(), { name = "user", type = "string", about = "user name or id", most = 256, default = "agent" } },
    fds = "agent socket", result = "true", errors = { "ENOSANDBOX", "EBADUSER", "ESTOPPED" } },

  -- snapshots, branches, sleep
  { name = "snapshot_create", cli = "snapshot create", group = "snapshot", about = "Keep a sandbox's files, or its processes too, as they are in this instant.",
    params = { sandbox_name(),
      { name = "label", type = "name", positional = 2, required = true, about = "what it is called: NAME@LABEL; 1-63 of [a-z0-9-]" },
      { name = "memory", type = "boolean", flag = "--memory", about = "its processes too" },
      { name = "labels", type = "map", flag = "--label", short = "-l", repeated = true, about = "labels, K=V", most = 64 },
      request_key() },
    result = "the snapshot: address, parent, and pause and total, the seconds it took; memory_size, bytes",
    errors = { "ENOSANDBOX", "EEXIST", "ETIMEDOUT", "ENOSPC", "ESTOPPED", "ENOTSUP", "ENOPKG" }, example = "snapshot create agent-42 before-upgrade" },
  { name = "snapshot_ls", cli = "snapshot ls", group = "snapshot", about = "List snapshots, each below the one that it continues.",
    params = { { name = "name", type = "name", positional = 1, about = "only those of this sandbox's name" } },
    result = "list of snapshots, the oldest first; size: bytes it owns alone", errors = {}, example = "snapshot ls agent-42" },
  { name = "snapshot_rm", cli = "snapshot rm", group = "snapshot", about = "Delete a snapshot; those that continue it stay.",
    params = { snapshot_address("snapshot", 1, "the snapshot"), request_key() },
    result = "true", errors = { "ENOSNAPSHOT", "ENOSPC" }, example = "snapshot rm agent-42@before-upgrade" },
  { name = "snapshot_diff", cli = "snapshot diff", group = "snapshot", about = "Tell which paths differ between two snapshots.",
    params = { snapshot_address("from", 1, "the older one"), snapshot_address("to", 2, "the newer one") },
    fds = "the records", result = "added, changed, deleted: lists of path, kind, and old and new size", errors = { "ENOSNAPSHOT" },
    example = "snapshot diff agent-42@before agent-42@after" },
  { name = "snapshot_keep", cli = "snapshot keep", group = "snapshot", about = "Delete a sandbox's snapshots but those that a rule keeps.",
    params = { sandbox_name("the name whose snapshots they are"),
      { name = "last", type = "integer", flag = "--last", about = "keep the newest N" },
      { name = "daily", type = "integer", flag = "--daily", about = "keep the newest of each of the last N days that have one (UTC)" },
      { name = "labels", type = "map", flag = "--label", short = "-l", repeated = true, about = "keep those with these labels, K=V", most = 64 },
      request_key() },
    result = "list of the deleted ones' addresses", errors = { "EINVAL", "ENOSPC" }, example = "snapshot keep agent-42 --last 3 --daily 7 --label keep=yes" },
  { name = "snapshot_export", cli = "snapshot export", group = "snapshot", about = "Write a snapshot to a file, as an OCI image.", progress = true,
    params = { snapshot_address("snapshot", 1, "the snapshot"),
      { name = "file", type = "string", positional = 2, required = true, about = "the file, which is replaced when it is there", most = 4096 },
      { name = "parent", type = "snapshot", flag = "--parent", metavar = "NAME@LABEL", about = "only the changes since this snapshot, which whoever imports them must have" },
      { name = "compression", type = "string", flag = "--compression", about = "of the layers; gzip for other tools", values = { "zstd", "gzip", "none" }, default = "zstd" } },
    result = "what was written: size, layers, entries, and skipped: devices, sockets and names that a layer can't hold",
    errors = { "ENOSNAPSHOT", "ENOENT", "ENOSPC", "EINVAL", "EBUSY" }, example = "snapshot export agent-42@before-upgrade before-upgrade.tar" },
  { name = "snapshot_import", cli = "snapshot import", group = "snapshot", about = "Make a snapshot of an exported one, or of any OCI image.", progress = true,
    params = { { name = "file", type = "string", positional = 1, required = true, about = "the file, or an OCI layout's directory", most = 4096 },
      snapshot_address("snapshot", 2, "what it is to be called"), request_key() },
    result = "the snapshot", errors = { "EEXIST", "ENOENT", "EBADMSG", "ENOPARENT", "EBUSY", "ENOSPC" },
    example = "snapshot import before-upgrade.tar agent-42@imported" },
  { name = "restore", cli = "restore", group = "snapshot", about = "Make a sandbox of a snapshot and start it; processes of one with memory go on.",
    params = { snapshot_address("snapshot", 1, "the snapshot"),
      { name = "name", type = "name", positional = 2, required = true, about = "the new sandbox's name" },
      cold(), request_key() },
    result = "info, with connections_reset when processes go on: how many to the outside end",
    errors = { "ENOSNAPSHOT", "EEXIST", "ENOSPC", "ENOTSUP", "ENOPKG" }, example = "restore agent-42@before-upgrade agent-43" },
  { name = "rollback", cli = "rollback", group = "snapshot", about = "Put a snapshot's files, and its processes if it has some, in the place of a sandbox's.",
    params = { sandbox_name(), snapshot_address("snapshot", 2, "the snapshot"), cold(), request_key() },
    result = "info, with connections_reset as restore",
    errors = { "ENOSANDBOX", "ENOSNAPSHOT", "ENOSPC", "EBUSY", "ENOTSUP", "ENOPKG" }, example = "rollback agent-42 agent-42@before-upgrade" },
  { name = "fork", cli = "fork", group = "snapshot", about = "Make branches of a sandbox or snapshot: sandboxes that begin with its files.",
    params = { { name = "source", type = "source", positional = 1, required = true, metavar = "NAME[@LABEL]", about = "the sandbox or snapshot" },
      { name = "count", type = "integer", flag = "--count", short = "-n", about = "how many", default = 1, least = 1, most = 1000 },
      { name = "memory", type = "boolean", flag = "--memory", about = "its processes go on in each" },
      request_key() },
    result = "list of info, of all or none; with connections_reset as restore",
    errors = { "ENOSANDBOX", "ENOSNAPSHOT", "ETIMEDOUT", "ENOSPC", "ESTOPPED", "ENOTSUP", "ENOPKG", "EINVAL" }, example = "fork agent-42 -n 3" },
  { name = "promote", cli = "promote", group = "snapshot", about = "Make a branch the sandbox of its parent's name, which is destroyed.",
    params = { sandbox_name("the branch"), request_key() },
    result = "info", errors = { "ENOSANDBOX", "EINVAL", "ENOSPC" }, example = "promote agent-42-2" },
  { name = "freeze", cli = "freeze", group = "snapshot", about = "Make a sandbox stand still; any verb or input wakes it.",
    params = { sandbox_name() }, result = "info", errors = { "ENOSANDBOX", "ESTOPPED", "ETIMEDOUT" }, example = "freeze agent-42" },
  { name = "hibernate", cli = "hibernate", group = "snapshot", about = "Put a sandbox's memory on disk and end its processes, which go on when it wakes.",
    params = { sandbox_name() }, result = "seconds and bytes of the dump, connections_reset: how many to the outside end",
    errors = { "ENOSANDBOX", "ESTOPPED", "ENOTSUP", "ENOPKG", "ETIMEDOUT", "ENOSPC" }, example = "hibernate agent-42" },
  { name = "memory_install", cli = "memory install", group = "snapshot", about = "Get CRIU, which hibernate needs, into the state directory.", progress = true,
    params = { { name = "replace", type = "boolean", flag = "--replace", about = "get it again when it is there" } },
    result = "version", errors = { "ENOPKG", "EBUILD", "ENOSPC" }, example = "memory install" },
  { name = "wake", cli = "wake", group = "snapshot", about = "See to it that a sandbox runs.", wakes = true,
    params = { sandbox_name() }, result = "info", errors = { "ENOSANDBOX", "ENOSPC" }, example = "wake agent-42" },

  -- images
  { name = "image_build", cli = "image build", group = "image", about = "Build an image from the host's own distribution.", progress = true,
    params = { { name = "image", type = "string", positional = 1, required = true, about = "what to build: debian or minimal", values = { "debian", "minimal" } },
      { name = "replace", type = "boolean", flag = "--replace", about = "build it again when it is there" } },
    result = "the image", errors = { "EEXIST", "EINVAL", "ENOSPC", "EBUILD" }, example = "image build debian" },
  { name = "image_import", cli = "image import", group = "image", about = "Import an OCI layout or docker-archive.", progress = true,
    params = { { name = "file", type = "string", positional = 1, required = true, about = "a tar file or an OCI layout directory" },
      { name = "image", type = "string", flag = "--name", about = "the image's name; default: the file's" },
      { name = "replace", type = "boolean", flag = "--replace", about = "replace an image of that name" } },
    result = "the image", errors = { "EEXIST", "ENOENT", "EBADMSG", "ENOSPC" }, example = "image import alpine.tar --name alpine" },
  { name = "image_pull", cli = "image pull", group = "image", about = "Pull an image from a registry.", progress = true,
    params = { { name = "reference", type = "string", positional = 1, required = true, about = "host/name:tag" },
      { name = "image", type = "string", flag = "--name", about = "the image's name; default: from the reference" },
      { name = "insecure", type = "boolean", flag = "--insecure", about = "talk to the registry without TLS verification" },
      { name = "replace", type = "boolean", flag = "--replace", about = "replace an image of that name" } },
    result = "the image", errors = { "EEXIST", "ENOENT", "EPULL", "ENOSPC" }, example = "image pull localhost:5000/app:1 --insecure" },
  { name = "image_ls", cli = "image ls", group = "image", about = "List the images.", params = {}, result = "list of images", errors = {}, example = "image ls" },
  { name = "image_rm", cli = "image rm", group = "image", about = "Remove an image.",
    params = { { name = "image", type = "string", positional = 1, required = true, about = "the image" } },
    result = "true", errors = { "ENOIMAGE" }, example = "image rm alpine" },

  -- egress
  { name = "egress_set", cli = "egress set", group = "egress", about = "Replace a sandbox's egress policies.",
    params = { sandbox_name(), { name = "policies", type = "policies", required = true, about = "the policies in order; none: deny_all" } },
    result = "what egress show tells", errors = CHANGING, example = "egress set agent-42 allow_hosts hosts=example.com,*.example.org" },
  { name = "egress_add", cli = "egress add", group = "egress", about = "Add an egress policy, or change the options of one that is there.",
    params = { sandbox_name(), { name = "policies", type = "policies", required = true, about = "the policies" } },
    result = "what egress show tells", errors = CHANGING, example = "egress add agent-42 github token=github repositories=me/project" },
  { name = "egress_rm", cli = "egress rm", group = "egress", about = "Remove an egress policy; without any, everything is denied.",
    params = { sandbox_name(), { name = "policy", type = "string", positional = 2, required = true, about = "the policy", most = 64 } },
    result = "what egress show tells", errors = { "ENOSANDBOX", "ENOPOLICY", "ENOSPC" }, example = "egress rm agent-42 github" },
  { name = "egress_show", cli = "egress show", group = "egress", about = "Tell a sandbox's egress policies and what they have decided.",
    params = { sandbox_name() }, result = "policies, revision, state, process, counters", errors = { "ENOSANDBOX" }, example = "egress show agent-42" },
  { name = "egress_log", cli = "egress log", group = "egress", about = "Show what egress decided, and why.",
    params = { sandbox_name(),
      { name = "after", type = "integer", about = "only entries whose `seq` is larger; without: the latest" },
      { name = "limit", type = "integer", flag = "--limit", about = "at most so many", most = 2000, least = 1, default = 100 },
      { name = "action", type = "string", about = "only those: allow, deny, passthrough, ...", most = 64 },
      { name = "wait", type = "seconds", about = "wait so long for one when there is none", most = 60 } },
    result = "list of entries, the oldest first", errors = { "ENOSANDBOX" }, example = "egress log agent-42 --denied" },
  { name = "policy_ls", cli = "policy ls", group = "egress", about = "List the policies that have names.",
    params = {}, result = "list of policies: name, about, path", errors = {}, example = "policy ls" },
  { name = "policy_show", cli = "policy show", group = "egress", about = "Print a policy's text.",
    params = { { name = "policy", type = "string", positional = 1, required = true, about = "the policy", most = 64 } },
    result = "name, about, path, text", errors = { "ENOPOLICY", "EINVAL" }, example = "policy show github" },

  -- secrets
  { name = "secret_set", cli = "secret set", group = "egress", about = "Set a secret that egress policies use and no sandbox sees.",
    params = { secret_name(),
      { name = "value", type = "value", required = true, about = "its bytes" },
      { name = "hosts", type = "list", flag = "--hosts", metavar = "HOST,...",
        about = "where its placeholder is swapped for it: names, * globs; http:// before those without TLS" },
      { name = "placeholder", type = "string", flag = "--placeholder", about = "what stands for it inside, instead of one made for it", most = 255 } },
    result = "name, hosts, placeholder, created", errors = { "EINVAL", "EEXIST", "EPERM", "ENOKEY", "ENOSPC" },
    example = "secret set github --hosts github.com,api.github.com --env GITHUB_TOKEN" },
  { name = "secret_ls", cli = "secret ls", group = "egress", about = "List the secrets, never their values.",
    params = {}, result = "list of secrets: name, hosts, placeholder, created, used", errors = {}, example = "secret ls" },
  { name = "secret_rm", cli = "secret rm", group = "egress", about = "Remove a secret.",
    params = { secret_name() }, result = "true", errors = { "ENOSECRET", "ENOSPC" }, example = "secret rm github" },
  { name = "secret_placeholder", cli = "secret placeholder", group = "egress", about = "Print what stands for a secret inside a sandbox.",
    params = { secret_name() }, result = "the placeholder", errors = { "ENOSECRET" }, example = "secret placeholder github" },

  -- the server
  { name = "storage_grow", cli = "storage grow", group = "server", about = "Make the pool of all files larger, in use.",
    params = { { name = "size", type = "bytes", flag = "--size", about = "what it is to have; default: what its disk can hold", most = 2 ^ 53 } },
    result = "size and before, in bytes", errors = { "EINVAL", "ENOSPC", "ENOTSUP" }, example = "storage grow --size 200G" },
  { name = "storage_check", cli = "storage check", group = "server",
    about = "Compare all of the pool with its checksums; where no server starts: check its structure. Repairs nothing.",
    params = {}, result = "errors: how many; damage: by kind; bytes that were read", errors = { "ENOTSUP", "EIO", "EBUSY", "ENOENT" }, example = "storage check" },
  { name = "shutdown", cli = "shutdown", group = "server", about = "End the server; sandboxes and their processes go on.",
    params = {}, result = "true", errors = {}, example = "shutdown" },
}

verbs.by_name = {}
for _, verb in ipairs(verbs.list) do
  verbs.by_name[verb.name] = verb
end

--- Instance types: vCPU, bytes of memory, bytes of disk. Source: the published Cloudflare instance types.
local GiB, MiB, GB = 2 ^ 30, 2 ^ 20, 10 ^ 9
verbs.types = {
  lite = { cpu = 1 / 16, memory = 256 * MiB, disk = 2 * GB },
  basic = { cpu = 1 / 4, memory = 1 * GiB, disk = 4 * GB },
  ["standard-1"] = { cpu = 1 / 2, memory = 4 * GiB, disk = 8 * GB },
  ["standard-2"] = { cpu = 1, memory = 6 * GiB, disk = 12 * GB },
  ["standard-3"] = { cpu = 2, memory = 8 * GiB, disk = 16 * GB },
  ["standard-4"] = { cpu = 4, memory = 12 * GiB, disk = 20 * GB },
}

--- A sandbox's name is 1-63 of [a-z0-9-], and starts and ends with a letter or digit.
function verbs.valid_name(name)
  return type(name) == "string" and #name <= 63 and name:match("^[a-z0-9][a-z0-9-]*$") ~= nil
end

--- A snapshot's address is NAME@LABEL, each as a sandbox's name is.
function verbs.valid_address(text)
  local name, label = tostring(text):match("^([^@]+)@([^@]+)$")
  return type(text) == "string" and name ~= nil and verbs.valid_name(name) and verbs.valid_name(label)
end

local function list_of_strings(value)
  if type(value) ~= "table" then
    return false
  end
  local count = 0
  for key, item in pairs(value) do
    if type(key) ~= "number" or type(item) ~= "string" then
      return false
    end
    count = count + 1
  end
  return count == #value
end

local function finite(value)
  return type(value) == "number" and value == value and math.abs(value) < 2 ^ 53
end

local function whole(value)
  return finite(value) and value == math.floor(value)
end

local function text(value)
  return type(value) == "string" and not value:find("\0", 1, true)
end

-- What a policy's option may be: JSON, not too deep.
local function plain(value, depth)
  local kind = type(value)
  if kind ~= "table" then
    return kind == "string" or kind == "boolean" or finite(value)
  end
  for key, item in pairs(value) do
    if depth == 0 or type(key) ~= "string" and not whole(key) or not plain(item, depth - 1) then
      return false
    end
  end
  return true
end

local function is_policy(item)
  return type(item) == "table" and text(item.name) and (item.text == nil or type(item.text) == "string")
    and (item.options == nil or type(item.options) == "table" and plain(item.options, 6))
end

local checks = {
  value = { function(v) return type(v) == "string" end, "a string" },
  snapshot = { verbs.valid_address, "a snapshot's address, NAME@LABEL" },
  source = { function(v) return verbs.valid_name(v) or verbs.valid_address(v) end, "a sandbox's name or a snapshot's address, NAME@LABEL" },
  policies = { function(v)
    if type(v) ~= "table" then
      return false
    end
    local count = 0
    for _, item in pairs(v) do
      count = count + 1
      if not is_policy(item) then
        return false
      end
    end
    return count == #v
  end, "a list of policies, each with a name, options as plain data, and a text if it is not known by its name" },
  name = { verbs.valid_name, "1-63 of [a-z0-9-], starting with a letter or digit" },
  string = { text, "a string without NUL" },
  integer = { function(v) return whole(v) and v >= 0 end, "a whole number" },
  number = { function(v) return finite(v) and v > 0 end, "a positive number" },
  seconds = { function(v) return finite(v) and v >= 0 end, "a number of seconds" },
  bytes = { function(v) return whole(v) and v > 0 end, "a number of bytes" },
  octal = { function(v) return whole(v) and v >= 0 and v <= 4095 end, "a mode" },
  offset = { whole, "a number of bytes" },
  boolean = { function(v) return type(v) == "boolean" end, "true or false" },
  list = { list_of_strings, "a list of strings" },
  argv = { function(v)
    if not list_of_strings(v) or #v == 0 then
      return false
    end
    for _, word in ipairs(v) do
      if word:find("\0", 1, true) then
        return false
      end
    end
    return true
  end, "a list of one or more strings without NUL" },
  map = { function(v)
    if type(v) ~= "table" then
      return false
    end
    for key, item in pairs(v) do
      if not (text(key) and #key > 0 and not key:find("=", 1, true) and text(item)) then
        return false
      end
    end
    return true
  end, "a map of names to strings" },
}

-- What `most` bounds: a number itself, the bytes of a string, the words or pairs of a table.
local function measure(value)
  if type(value) == "table" then
    local count = 0
    for _ in pairs(value) do
      count = count + 1
    end
    return count
  end
  return type(value) == "string" and #value or value
end

--- Checks a request's parameters against the verb and fills in defaults.
-- Returns a new table | nil, message that names the parameter, "EINVAL" (unknown verb: "ENOVERB").
function verbs.check(name, params)
  local verb = verbs.by_name[name]
  if not verb then
    return nil, "unknown verb: " .. tostring(name), "ENOVERB"
  end
  if params ~= nil and type(params) ~= "table" then
    return nil, name .. ": parameters must be a table", "EINVAL"
  end
  local given, checked = params or {}, {}
  local known = {}
  for _, param in ipairs(verb.params) do
    known[param.name] = true
    local value = given[param.name]
    if value == nil then
      if param.required then
        return nil, ("%s: %s is missing"):format(name, param.name), "EINVAL"
      end
      value = param.default
    else
      local check = checks[param.type]
      if not check[1](value) then
        return nil, ("%s: %s must be %s"):format(name, param.name, check[2]), "EINVAL"
      end
      if param.least and value < param.least then
        return nil, ("%s: %s is too small, the least is %d"):format(name, param.name, param.least), "EINVAL"
      end
      if param.most and measure(value) > param.most then
        return nil, ("%s: %s is too large, the limit is %d"):format(name, param.name, param.most), "EINVAL"
      end
      if param.values then
        local found = false
        for _, allowed in ipairs(param.values) do
          found = found or allowed == value
        end
        if not found then
          return nil, ("%s: unknown %s: %s (one of %s)"):format(name, param.name, value, table.concat(param.values, ", ")), "EINVAL"
        end
      end
    end
    checked[param.name] = value
  end
  for key in pairs(given) do
    if not known[key] then
      return nil, ("%s: unknown parameter: %s"):format(name, tostring(key)), "EINVAL"
    end
  end
  return checked
end

return verbs
