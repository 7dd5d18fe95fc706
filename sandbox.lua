#!/bin/sh
_=[[
# Two programs in one file. To the shell, these lines: they see to it that LuaJIT is there and give
# it this file. To Lua, they are a string, and what follows is the launcher of ./sandbox.lua VERB and
# the library that `require "sandbox"` returns.
self=$0
if [ -L "$self" ]; then self=$(readlink -f -- "$self"); fi
case $self in /*) ;; *) self=$PWD/${self#./} ;; esac

if ! command -v luajit >/dev/null 2>&1; then
  install="apt-get install -y -q --no-install-recommends luajit lua-luv"
  case ${1:-help} in
    help | doctor | -h | --help) ask=1 ;;
    *) ask= ;;
  esac
  if [ -n "$ask" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tidepool: LuaJIT is not installed. As root, ./sandbox.lua run examples/01_first_light.lua" >&2
    echo "installs all that is needed; or by hand: apt-get update && $install" >&2
    exit 125
  fi
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  echo "installing luajit and lua-luv ..." >&2
  if ! { $install || { apt-get update -q && $install; }; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    echo "tidepool: LuaJIT could not be installed; the whole log is $log" >&2
    exit 125
  fi
  rm -f "$log"
fi
# The server holds secrets: its memory must not end up in a file.
if [ "${1:-}" = serve ]; then ulimit -c 0; fi
exec luajit "$self" "$@"
]]
_ = nil

local source = debug.getinfo(1, "S").source:gsub("^@", "")
local repo = source:match("^(.*)/[^/]*$") or "."
local build = os.getenv("TIDEPOOL_BUILD") or (repo .. "/.build")
local main = arg ~= nil and arg[0] == source

-- Ours come first. The launcher, often root, must not load modules from whatever the working
-- directory holds, which the default path would do.
local function search(own, default)
  if main then
    default = (";" .. default .. ";"):gsub(";%./%?[^;]*", ""):gsub("^;+", ""):gsub(";+$", "")
  end
  return own .. ";" .. default
end
local lua = repo .. "/lua/?.lua;" .. repo .. "/lua/?/init.lua;" .. repo .. "/?.lua"
if not package.path:find(lua, 1, true) then
  package.path = search(lua, package.path)
end
if not package.cpath:find(build .. "/?.so", 1, true) then
  package.cpath = search(build .. "/?.so", package.cpath)
end

if not main then
  return require("tidepool.facade")
end

require("tidepool.iteration")
package.preload.sandbox = function()
  return require("tidepool.facade")
end
os.exit(require("tidepool.launcher").main(arg))
