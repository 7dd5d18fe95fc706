--- Output gathered from a stream: bytes as they came, never re-encoded, at most `limit` a stream.
local collect = {}

collect.LIMIT = 64 * 2 ^ 20 -- bytes of each of stdout and stderr, unless the caller says otherwise

local NAMES = { "stdout", "stderr" }

---@param options { limit: integer?, on_output: function?, collect: boolean? } as of tidepool.ExecOptions
---@return fun(stream: 1|2, bytes: string) sink
---@return fun(count: integer) lost adds to what was dropped
---@return fun(): { stdout: string, stderr: string, dropped: integer } result
function collect.new(options)
  local limit = options.limit or collect.LIMIT
  local parts, sizes, dropped = { {}, {} }, { 0, 0 }, 0

  local function sink(stream, bytes)
    if options.on_output then
      options.on_output(NAMES[stream], bytes)
      if not options.collect then
        return
      end
    end
    local room = limit - sizes[stream]
    if #bytes > room then
      dropped = dropped + #bytes - room
      bytes = bytes:sub(1, room)
    end
    if bytes ~= "" then
      sizes[stream] = sizes[stream] + #bytes
      parts[stream][#parts[stream] + 1] = bytes
    end
  end

  local function lost(count)
    dropped = dropped + count
  end

  local function result()
    return { stdout = table.concat(parts[1]), stderr = table.concat(parts[2]), dropped = dropped }
  end

  return sink, lost, result
end

return collect
