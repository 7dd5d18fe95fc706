-- How a spec file tells its results: a line each, the whole story of a failure under it, and counts
-- for the runner (lua/tidepool/testing.lua) in the file that TIDEPOOL_TEST_COUNTS names.
--
-- Loaded by busted before any spec, on the main thread: luv must be required there first, since it
-- crashes when it is collected in the coroutine that loaded it.
require("luv")

local pretty = require("pl.pretty")

return function()
  local busted = require("busted")
  local handler = require("busted.outputHandlers.base")()
  local started

  local function text_of(message)
    if message == nil then
      return "no message"
    end
    return type(message) == "string" and message or pretty.write(message)
  end

  local function indented(text)
    return "      " .. text:gsub("\n", "\n      ") .. "\n"
  end

  local function show(mark, entry)
    local trace = entry.element.trace or {}
    io.write(mark, " ", entry.name, "\n")
    if trace.short_src then
      io.write(indented(trace.short_src .. ":" .. tostring(trace.currentline)))
    end
    io.write(indented(text_of(entry.message)))
    local traceback = type(entry.trace) == "table" and entry.trace.traceback
    if traceback and entry.isError then
      io.write(indented((traceback:gsub("^\n", ""))))
    end
  end

  function handler.testStart()
    started = os.time()
    return nil, true
  end

  function handler.testEnd(element, _, status)
    local name = handler.getFullName(element)
    if status == "success" then
      local took = os.time() - started
      io.write("  ok   ", name, took >= 2 and (" (" .. took .. " s)") or "", "\n")
    elseif status == "pending" then
      local entry = handler.pendings[#handler.pendings]
      local reason = entry and type(entry.message) == "string" and (": " .. entry.message) or ""
      io.write("  skip ", name, reason, "\n")
    elseif status == "failure" then
      show("  FAIL", handler.failures[#handler.failures])
    elseif status == "error" then
      show("  FAIL", handler.errors[#handler.errors])
    end
    io.flush()
    return nil, true
  end

  -- An error outside of a test: while a file is loaded, in a setup or teardown.
  function handler.outside(element)
    if element.descriptor ~= "it" then
      show("  FAIL", handler.errors[#handler.errors])
      io.flush()
    end
    return nil, true
  end

  -- luv 1.44 crashes when Lua ends while a handle is still closing.
  local function close_handles()
    local uv = require("luv")
    uv.walk(function(handle)
      if not handle:is_closing() then
        handle:close()
      end
    end)
    uv.run()
  end

  function handler.suiteEnd()
    local path = os.getenv("TIDEPOOL_TEST_COUNTS")
    if path then
      local file = assert(io.open(path, "w"))
      file:write(("%d %d %d\n"):format(handler.successesCount,
        handler.failuresCount + handler.errorsCount, handler.pendingsCount))
      file:close()
    end
    close_handles()
    return nil, true
  end

  busted.subscribe({ "test", "start" }, handler.testStart)
  busted.subscribe({ "test", "end" }, handler.testEnd)
  busted.subscribe({ "error" }, handler.outside)
  busted.subscribe({ "failure" }, handler.outside)
  busted.subscribe({ "suite", "end" }, handler.suiteEnd)
  return handler
end
