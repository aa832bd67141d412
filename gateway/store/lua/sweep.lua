-- Drop index entries that only remember: no ring, no state, unchanged since they were listed.
-- The floor rises to the highest of them, so that nobody resumes from before they ended.
--
-- KEYS[1..3] as in settle.lua, then per candidate its ring and its state
-- ARGV[6..] per candidate: channel, index value
-- Reply: {life, number dropped}

local m = settle()
local dropped = {}
for i = 1, (#KEYS - 3) / 2 do
  local channel, value = ARGV[4 + 2 * i], ARGV[5 + 2 * i]
  if redis.call('HGET', KEYS[2], channel) == value
    and redis.call('EXISTS', KEYS[2 + 2 * i], KEYS[3 + 2 * i]) == 0 then
    local position = read_index(m, channel)
    if before(m.floor, position) then m.floor = position end
    dropped[#dropped + 1] = channel
  end
end
if #dropped > 0 then
  next_generation(m)
  for _, channel in ipairs(dropped) do redis.call('HDEL', KEYS[2], channel) end
end
commit(m)
return {life(m), #dropped}
