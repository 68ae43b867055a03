#!lua flags=no-writes
-- What is there, with its age, in one atomic trip. A script of its own: one that may write is refused where a server
-- takes no writes for now (too few replicas, a snapshot that failed), and what is completed can be replayed all the same.
--
-- KEYS[1]  the record
--
-- Returns 0 nothing is there · {record, PTTL}.
local found = redis.call('GET', KEYS[1])
if not found then return 0 end
return {found, redis.call('PTTL', KEYS[1])}
