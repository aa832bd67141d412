-- Hold a lease, anew or for longer, unless somebody else does.
--
-- KEYS[4] lease   ARGV[6] token of the caller   ARGV[7] how long, in ms; 0 lets go of it
-- Reply: 1 when the caller holds it now, else 0.

local holder = redis.call('GET', KEYS[4])
if holder and holder ~= ARGV[6] then return 0 end
if ARGV[7] == '0' then
  redis.call('DEL', KEYS[4])
  return 0
end
redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[7])
return 1
