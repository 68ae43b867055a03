-- wrk's side of the bench: POSTs with an Idempotency-Key, and one line of JSON at the end.
--   wrk … -s wrk.lua URL -- PREFIX POOL SIZE FORM [FIELD…]
-- PREFIX begins every key and is unlike that of any other run. POOL 0: a new key each time. POOL n: the same n
-- keys over and over, numbered from 0 (the bench has had them answered before). SIZE: bytes of the body; 0 for 110 of
-- JSON. FORM: plain, quoted (the key is a quoted string), or chunked (the body is one chunk). FIELD: a line of the head.
local head, tail, pool
local count = -1

function init(args)
  local body = '{"amount":1999,"currency":"eur","customer":"cus_9f3b2a7c41","description":"order 4711, '
    .. 'two parcels, express."}'
  if tonumber(args[3]) > 0 then body = string.rep("b", tonumber(args[3])) end
  local form, fields, quote = args[4], "", ""
  for at = 5, #args do fields = fields .. "\r\n" .. args[at] end
  local length = "\r\nContent-Length: " .. #body
  if form == "chunked" then
    length = "\r\nTransfer-Encoding: chunked"
    body = string.format("%x\r\n%s\r\n0\r\n\r\n", #body, body)
  elseif form == "quoted" then
    quote = '"'
  end
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
    .. "\r\nContent-Type: application/json" .. length .. fields .. "\r\nIdempotency-Key: " .. quote .. args[1]
  tail = quote .. "\r\n\r\n" .. body
  pool = tonumber(args[2])
end

function request()
  count = count + 1
  if pool > 0 and count >= pool then count = 0 end
  return head .. string.format("%010d", count) .. tail
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.6f,"refused":%d,"broken":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
