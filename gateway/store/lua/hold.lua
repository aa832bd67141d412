-- Hold a lease, anew or for longer, unless somebody else does; note how far its work is done.
--
-- KEYS[4] lease   KEYS[5] from where on its work is due; outlives the lease
-- ARGV[6] token of the caller   ARGV[7] how long, in ms; 0 lets go of it
-- ARGV[8] position to note, '' for none
-- Reply: {1 when the caller holds it now, else 0; the position noted last, '' for none}

local holder = redis.call('GET', KEYS[4])
local due_from = redis.call('GET', KEYS[5]) or ''
if holder and holder ~= ARGV[6] then return {0, due_from} end
if ARGV[8] ~= '' then
  due_from = ARGV[8]
  redis.call('SET', KEYS[5], due_from)
end
if ARGV[7] == '0' then
  redis.call('DEL', KEYS[4])
  return {0, due_from}
end
redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[7])
return {1, due_from}
