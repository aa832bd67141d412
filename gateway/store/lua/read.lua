-- Read channels at one moment: index values, rings, states; and idempotency keys.
--
-- KEYS[1..3] as in settle.lua, then per channel its ring and its state, then idempotency keys
-- ARGV[6] number of channels   ARGV[7] "ring", "state" or "both"   then the channels' names
-- Reply: {life, {{index value or false, ring entries, state fields}, ...}, {value or false, ...}}

local m = settle()
local n = tonumber(ARGV[6])
local channels, keys = {}, {}
for i = 1, n do
  local ring, state = {}, {}
  if ARGV[7] ~= 'state' then ring = redis.call('XRANGE', KEYS[2 + 2 * i], '-', '+') end
  if ARGV[7] ~= 'ring' then state = redis.call('HGETALL', KEYS[3 + 2 * i]) end
  channels[i] = {redis.call('HGET', KEYS[2], ARGV[7 + i]), ring, state}
end
for i = 4 + 2 * n, #KEYS do
  keys[#keys + 1] = redis.call('GET', KEYS[i])
end
commit(m)
return {life(m), channels, keys}
