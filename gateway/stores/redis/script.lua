#!lua flags=allow-oom
-- Every write to a record but its first claim, in one atomic trip. (A look at it: look.lua.)
-- allow-oom: at the memory limit claims stop, answers do not.
--
-- KEYS[1]  the record
-- ARGV     verb, version (the latest that is known), holder, states, value, life, if_absent, lapsed_for, made
--   again    version holder                         the same bytes again under the life that is left
--   change   version holder states value life if_absent lapsed_for made
--     states       the states that are moved, as digits ("13")
--     value        the new record; empty: the record becomes absent
--     life         of the new record, milliseconds
--     if_absent    "1": where nothing is there, write it all the same (the store forgot)
--     lapsed_for   "" or how many milliseconds past its lease a record in flight must be
--     made         "" or the state, as a digit, in which a record by the value's own holder is this very change,
--                  made before: it is written again under the life that is left, and that is 1 too
--                  (WAIT covers only what its connection wrote)
--
-- A change to anything but a claim publishes on the sharded channel of the record's own name, which lies in the
-- record's slot: whoever watches the flight looks again (bells.py). A publish that an ACL refuses takes nothing
-- back: the write stands, and those who watch find it by their slow look.
--
-- Returns 1 done · 2 nothing was there, and it was written · 0 nothing is there · {record, PTTL} what
-- stands in the way. Offsets are those of stores/codec.py.
local key, verb = KEYS[1], ARGV[1]
local found = redis.call('GET', key)
local function change()
  if ARGV[5] == '' then
    redis.call('DEL', key)
  else
    redis.call('SET', key, ARGV[5], 'PX', ARGV[6])
    if string.byte(ARGV[5], 2) % 16 == 1 then return end
  end
  redis.pcall('SPUBLISH', key, '')
end
if not found then
  if verb == 'change' and ARGV[7] == '1' then
    change()
    return 2
  end
  return 0
end
local left = redis.call('PTTL', key)
local version = string.byte(found, 1) or 0
if version < 1 or version > tonumber(ARGV[2]) then return {found, left} end
local holder, state = string.sub(found, 4, 15), string.byte(found, 2) % 16
local function again()
  redis.call('SET', key, found, 'KEEPTTL')
  return 1
end
if verb == 'again' then
  if holder ~= ARGV[3] or state ~= 1 then return {found, left} end
  return again()
end
local function refused()
  if tostring(state) == ARGV[9] and holder == string.sub(ARGV[5], 4, 15) then return again() end
  return {found, left}
end
if holder ~= ARGV[3] or not string.find(ARGV[4], tostring(state), 1, true) then return refused() end
if ARGV[8] ~= '' and state == 1 then
  local function duration(at)
    local a, b, c, d, e = string.byte(found, at, at + 4)
    return a + 256 * (b + 256 * (c + 256 * (d + 256 * e)))
  end
  if duration(66) - left < duration(71) + tonumber(ARGV[8]) then return refused() end
end
change()
return 1
