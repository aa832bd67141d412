-- Delete a channel: a positioned event on the bus; ring and state go, the index remembers.
--
-- KEYS[1..3] as in settle.lua   KEYS[4] ring   KEYS[5] state
-- ARGV[6] channel   ARGV[7] If-Match   ARGV[8] bus events   ARGV[9] bus bytes
-- Reply: {life, "ok", position} or {life, reason, text}.

local m = settle()
local prev, _, _, deleted = read_index(m, ARGV[6])
if not prev or deleted then return {life(m), 'unknown', ''} end
if ARGV[7] ~= '' and ARGV[7] ~= '*' and ARGV[7] ~= prev then
  return {life(m), 'mismatch', prev}
end
check_stream(KEYS[3], m.clock)
local bytes_before = m.bytes
local position = advance(m)
append_bus(m, position, ARGV[6], '', '', 't', '', prev, 'delete')
redis.call('UNLINK', KEYS[4], KEYS[5])
redis.call('HSET', KEYS[2], ARGV[6], format_index(position, 0, 0) .. ' x')
trim_bus(bytes_before, m.bytes, ARGV[8], tonumber(ARGV[9]))
commit(m)
return {life(m), 'ok', position}
