-- The protocol of docs/design.md as far as a careful page of Lua takes it: claim with SET NX GET before anything
-- is sent, one attempt, settle by compare-and-set, replay; the fingerprint is compared in every state, an
-- ambiguous outcome is held in doubt, a duplicate in flight waits by polling. Written to be fast: one trip to
-- claim, one to settle, one for a replay; pooled connections; md5 over the request; a record that is parsed
-- with string.sub. It leaves out what the gate also does: credentials bound apart, the record's age (PTTL), header
-- policies, tombstones, streaming, scopes, metrics, the log, what to do when Redis forgets.
--
-- record:  C <md5 16> <holder 32>                         claimed (in flight, or in doubt once its lease is over)
--          I <md5 16> <holder 32>                         in doubt
--          D <md5 16> <status 3> <fields> LF <body>       done; a field is "name: value" LF

local ok, redis = pcall(require, "resty.redis")
if not ok then redis = require("nginx.redis") end  -- Debian's name for the same library

local sub, byte, find, format = string.sub, string.byte, string.find, string.format
local concat = table.concat
local null = ngx.null

local LEASE_MS = 95000
local DOUBT_MS = 7 * 24 * 3600 * 1000
local WINDOW_MS = 24 * 3600 * 1000
local CLAIM_LIFE = LEASE_MS + DOUBT_MS
local WAIT_S = 25

local SETTLE = [[
if redis.call('GET', KEYS[1]) == ARGV[1] then
  if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
  return 1
end
return 0]]

-- Not stored: hop-by-hop fields, and what every answer has of its own.
local DROPPED = {
  ["connection"] = true, ["keep-alive"] = true, ["transfer-encoding"] = true, ["te"] = true,
  ["trailer"] = true, ["upgrade"] = true, ["proxy-connection"] = true, ["date"] = true,
  ["set-cookie"] = true, ["content-length"] = true,
}
-- Declared to mean "not done" (released), and ambiguous (held).
local RELEASE = { [401] = true, [407] = true, [421] = true, [423] = true, [425] = true, [429] = true }
local HOLD = { [408] = true, [502] = true, [503] = true, [504] = true }

local METHODS = {
  POST = ngx.HTTP_POST, PUT = ngx.HTTP_PUT, PATCH = ngx.HTTP_PATCH, DELETE = ngx.HTTP_DELETE,
}

local _M = { redis_port = 6379 }
local settle_sha

local function open()
  local red = redis:new()
  red:set_timeout(3000)
  local up, err = red:connect("127.0.0.1", _M.redis_port)
  if not up then return nil, err end
  return red
end

local function refuse(status, slug, detail)
  ngx.status = status
  ngx.header["Content-Type"] = "application/problem+json"
  ngx.header["Idempotency-Status"] = slug
  if slug == "in-flight" then ngx.header["Retry-After"] = 2 end
  return ngx.print(format('{"type":"urn:once:problem:%s","status":%d,"detail":"%s"}', slug, status, detail))
end

local function settle(red, name, claim, record, life)
  if not settle_sha then
    local sha, err = red:script("load", SETTLE)
    if not sha then return nil, err end
    settle_sha = sha
  end
  local done, err = red:evalsha(settle_sha, 1, name, claim, record, life)
  if not done and err and find(err, "NOSCRIPT", 1, true) then
    done, err = red:eval(SETTLE, 1, name, claim, record, life)
  end
  return done, err
end

local function replay(record)
  local header = ngx.header
  ngx.status = tonumber(sub(record, 18, 20))
  local at = 21
  while byte(record, at) ~= 10 do
    local colon = find(record, ": ", at, true)
    local stop = find(record, "\n", colon, true)
    header[sub(record, at, colon - 1)] = sub(record, colon + 2, stop - 1)
    at = stop + 1
  end
  local body = sub(record, at + 1)
  header["Content-Length"] = #body
  header["Idempotent-Replayed"] = "true"
  header["Idempotency-Status"] = "replayed"
  return ngx.print(body)
end

-- The record when it is no longer in flight, or what it was when waiting was given up.
local function wait(red, name)
  local deadline = ngx.now() + WAIT_S
  local pause = 0.002
  local record
  repeat
    ngx.sleep(pause)
    pause = pause < 0.2 and pause * 2 or 0.25
    record = red:get(name)
    if not record or record == null or byte(record) ~= 67 then return record end
  until ngx.now() > deadline
  return record
end

function _M.serve()
  local var = ngx.var
  local key = var.http_idempotency_key
  local method = METHODS[var.request_method]
  if not key or not method then return ngx.exec("@unguarded") end
  if #key > 255 or find(key, "[^\33-\126]") then return refuse(400, "key-invalid", "1 to 255 printable characters") end

  ngx.req.read_body()
  local body = ngx.req.get_body_data() or ""
  local digest = ngx.md5_bin(concat({
    var.request_method, var.http_host or "", var.request_uri, var.http_content_type or "",
    var.http_authorization or "", body,
  }, "\0"))
  local name = "once:" .. key
  local claim = "C" .. digest .. var.request_id

  local red, err = open()
  if not red then return refuse(503, "store-unavailable", "retry later") end
  local found
  found, err = red:set(name, claim, "NX", "GET", "PX", CLAIM_LIFE)
  if not found then return refuse(503, "store-unavailable", "retry later") end

  if found ~= null then
    if byte(found) == 67 and sub(found, 2, 17) == digest then found = wait(red, name) end
    red:set_keepalive(60000, 512)
    if not found or found == null then return refuse(409, "in-flight", "ask again") end
    if sub(found, 2, 17) ~= digest then return refuse(422, "key-reused", "this key named another request") end
    local state = byte(found)
    if state == 68 then return replay(found) end
    if state == 67 then return refuse(409, "in-flight", "ask again") end
    return refuse(409, "in-doubt", "it may have run; find out before trying under a new key")
  end

  -- The connection is kept through the attempt: a second trip to the pool costs more than an idle socket.
  local res = ngx.location.capture("/.upstream", { method = method, always_forward_body = true })

  local status = res.status
  local record, life, word = nil, WINDOW_MS, "stored"
  local fields, n = {}, 0
  for field, value in pairs(res.header) do
    if not DROPPED[field:lower()] then
      if type(value) == "table" then value = concat(value, ", ") end
      n = n + 1
      fields[n] = field .. ": " .. value .. "\n"
      ngx.header[field] = value
    end
  end
  if res.truncated or HOLD[status] then
    record, life, word = "I" .. sub(claim, 2), DOUBT_MS, "in-doubt"
  elseif RELEASE[status] then
    record, word = "", "released"
  else
    record = "D" .. digest .. status .. concat(fields) .. "\n" .. res.body
  end
  local settled = settle(red, name, claim, record, life)
  red:set_keepalive(60000, 512)
  if settled ~= 1 then word = "not-stored" end

  ngx.status = status
  ngx.header["Content-Length"] = #res.body
  ngx.header["Idempotency-Status"] = word
  return ngx.print(res.body)
end

return _M
