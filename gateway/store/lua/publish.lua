-- Publish events to one namespace, all or nothing: position, ring, bus, state, idempotency key.
--
-- KEYS[1..3] as in settle.lua, then a ring and a state key per channel, then idempotency keys.
-- ARGV[6] ring events   [7] ring bytes   [8] ring age in ms   [9] bus events   [10] bus bytes
--   [11] channels limit   [12] keys limit   [13] state bytes limit   [14] idempotency ms
--   [15] number of channels   [16] number of events   [17] how long ring events are spared, in ms
--   then per channel: name, If-Match ("" none, "*" any, or a position), position that the new
--     state was folded from ("" none), new state ("" none)
--   then per event: channel number, type, key, format (j or t), data, idempotency key number
--     (0 none), digest
-- Reply: {life, "ok", positions, numbers of replayed events} or {life, reason, event number, text}.

local m = settle()
local ring_events, ring_bytes, ring_age = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local channels_limit, keys_limit = tonumber(ARGV[11]), tonumber(ARGV[12])
local state_limit = tonumber(ARGV[13])
local n_channels, n_events = tonumber(ARGV[15]), tonumber(ARGV[16])
local ring_spare = tonumber(ARGV[17])
local first_event = 17 + 4 * n_channels
local first_idem = 3 + 2 * n_channels
-- XINFO copies two entries, the largest of which may be the whole ring.
local small_ring = 16384
local keyed, merged, latest = m.reducer == 'keyed', m.reducer == 'merge', m.reducer == 'last'

-- Refuse a ring that XADD would refuse. Only XINFO tells of a removed entry past the clock; a ring
-- too large for it is begun anew by append_ring when it comes to that.
local function check_ring(channel)
  check_stream(channel.ring, m.clock)
  if channel.put - channel.dropped > small_ring or redis.call('EXISTS', channel.ring) == 0 then
    return
  end
  local info = redis.call('XINFO', 'STREAM', channel.ring)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' and before(m.clock, info[i + 1]) then
      error('CORRUPT ' .. channel.ring .. ' went past the clock', 0)
    end
  end
end

-- No entry is past the clock (check_stream), so only the memory of a removed one can be in the way.
-- Refusing would leave half a batch; without the ring, each reader sees by `p` what it lacks.
local function append_ring(channel, ...)
  local reply = redis.pcall('XADD', channel.ring, ...)
  if type(reply) ~= 'table' then return end
  if string.find(reply.err, 'equal or smaller', 1, true) then
    redis.call('UNLINK', channel.ring)
    channel.dropped = channel.put
  end
  redis.call('XADD', channel.ring, ...)
end

-- Drop what is over the number of events. Spared ones stay; of the others go whole nodes of the
-- stream's tree (100 entries, 4 KiB), as far as they are not needed: workers are exact, and an exact
-- trim would rewrite a node for every event.
local function trim_by_number(channel, ms)
  if ring_spare == 0 then
    redis.call('XTRIM', channel.ring, 'MAXLEN', ring_events)
    return
  end
  local excess = redis.call('XLEN', channel.ring) - tonumber(ring_events)
  if excess > 0 then
    redis.call('XTRIM', channel.ring, 'MINID', '~', format(math.max(ms - ring_spare, 0), 0),
      'LIMIT', excess)
  end
end

-- Keep the ring within its bounds. What count and age drop is counted only when its bytes look too
-- many: the oldest entry says what went in before it, all of which is gone.
local function trim_ring(channel, ms)
  trim_by_number(channel, ms)
  redis.call('XTRIM', channel.ring, 'MINID', format(math.max(ms - ring_age, 0), 0))
  while channel.put - channel.dropped > ring_bytes do
    local oldest = redis.call('XRANGE', channel.ring, '-', '+', 'COUNT', 1)[1]
    channel.dropped = tonumber(oldest[2][12]) or 0
    local entries, held = redis.call('XLEN', channel.ring), channel.put - channel.dropped
    if held <= ring_bytes or entries == 1 then return end
    -- Half of what would do were all of one size: hardly ever more than is needed, and not one by
    -- one, which took half the time of publishing large batches to a full ring.
    local over = math.floor((held - ring_bytes) * entries / held / 2)
    redis.call('XTRIM', channel.ring, 'MAXLEN', entries - math.max(over, 1))
  end
end

-- 1. Idempotency: which events were stored before, which repeat one of this call.
local known, repeats, replayed = {}, {}, {}
local fresh_in = {}
for i = 1, n_events do
  local at = first_event + 7 * (i - 1)
  local idem = tonumber(ARGV[at + 6])
  local stored = false
  if idem > 0 then
    local key, digest = KEYS[first_idem + idem], ARGV[at + 7]
    local seen = repeats[idem]
    if seen then
      if seen.digest ~= digest then return {life(m), 'conflict', i, ''} end
      known[i], stored = seen, true
    else
      local value = redis.call('GET', key)
      if value then
        local old_digest, position = string.match(value, '^(%S+) (%d+%-%d+)$')
        if not position then error('CORRUPT ' .. key .. ' is no idempotency record', 0) end
        if old_digest ~= digest then return {life(m), 'conflict', i, ''} end
        known[i], stored = {position = position}, true
      else
        repeats[idem] = {digest = digest, event = i}
      end
    end
  end
  if stored then
    replayed[#replayed + 1] = i
    -- A merged state was folded from all events of the call: fold again without this one.
    if merged then return {life(m), 'retry', i, ''} end
  else
    local channel = tonumber(ARGV[at + 1])
    fresh_in[channel] = fresh_in[channel] or i
  end
end

-- 2. Channels: If-Match, then what the state was folded from, then limits and stored data.
local channels, known_channels = {}, nil
for c = 1, n_channels do
  local event = fresh_in[c]
  if event then
    local at = 17 + 4 * (c - 1)
    local channel = {name = ARGV[at + 1], ring = KEYS[2 + 2 * c], state = KEYS[3 + 2 * c],
      prev = '0-0', put = 0, dropped = 0, doc = ARGV[at + 4]}
    local last, put, dropped, deleted = read_index(m, channel.name)
    if last then
      channel.prev, channel.put, channel.dropped = last, put, dropped
    end
    local expected = ARGV[at + 2]
    if expected ~= '' then
      if not last or deleted then return {life(m), 'mismatch', event, ''} end
      if expected ~= '*' and expected ~= channel.prev then
        return {life(m), 'mismatch', event, channel.prev}
      end
    end
    if ARGV[at + 3] ~= '' and ARGV[at + 3] ~= channel.prev then
      return {life(m), 'retry', event, channel.prev}
    end
    if not last then
      known_channels = known_channels or redis.call('HLEN', KEYS[2])
      known_channels = known_channels + 1
      if known_channels > channels_limit then return {life(m), 'limit', event, 'channels'} end
    end
    check_ring(channel)
    check_kind(channel.state, 'hash')
    if keyed then
      channel.keys = redis.call('HLEN', channel.state)
      channel.state_bytes = tonumber(redis.call('HGET', channel.state, '#') or 0)
      if not channel.state_bytes then
        error('CORRUPT ' .. channel.state .. ' lacks its size', 0)
      end
      if channel.keys > 0 then channel.keys = channel.keys - 1 end
      channel.sizes = {}
    end
    channels[c] = channel
  end
end
check_stream(KEYS[3], m.clock)

-- 3. States: what they would grow to (a merged one comes checked).
if latest then
  for i = 1, n_events do
    if not known[i] and #ARGV[first_event + 7 * (i - 1) + 5] > state_limit then
      return {life(m), 'limit', i, 'state'}
    end
  end
elseif keyed then
  for i = 1, n_events do
    if not known[i] then
      local at = first_event + 7 * (i - 1)
      local channel, key, size = channels[tonumber(ARGV[at + 1])], 'k' .. ARGV[at + 3], #ARGV[at + 5]
      local old = channel.sizes[key]
      if old == nil then
        old = redis.call('HSTRLEN', channel.state, key)
        -- A stored value is one byte of format and the data.
        old = old > 0 and old + #key or 0
      end
      local new = size > 0 and size + 1 + #key or 0
      channel.sizes[key] = new
      channel.state_bytes = channel.state_bytes + new - old
      if old == 0 and new > 0 then channel.keys = channel.keys + 1 end
      if old > 0 and new == 0 then channel.keys = channel.keys - 1 end
      if channel.keys > keys_limit then return {life(m), 'limit', i, 'keys'} end
      if channel.state_bytes > state_limit then return {life(m), 'limit', i, 'state'} end
    end
  end
end

-- 4. Every check is done: write.
local bytes_before = m.bytes
local positions = {}
for i = 1, n_events do
  local at = first_event + 7 * (i - 1)
  if not known[i] then
    local channel = channels[tonumber(ARGV[at + 1])]
    local type, key, kind, data = ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
    local position = advance(m)
    append_bus(m, position, channel.name, type, key, kind, data, channel.prev, '')
    append_ring(channel, position, 't', type, 'k', key, 'f', kind, 'd', data,
      'p', channel.prev, 's', channel.put)
    channel.prev, channel.put = position, channel.put + #data + #type + #key + 64
    if keyed then
      if #data > 0 then
        redis.call('HSET', channel.state, 'k' .. key, kind .. data)
      else
        redis.call('HDEL', channel.state, 'k' .. key)
      end
    elseif latest then
      channel.kind, channel.data = kind, data
    end
    local idem = tonumber(ARGV[at + 6])
    if idem > 0 then
      redis.call('SET', KEYS[first_idem + idem], ARGV[at + 7] .. ' ' .. position, 'PX', ARGV[14])
    end
    positions[i] = position
  else
    positions[i] = known[i].position or positions[known[i].event]
  end
end

for _, channel in pairs(channels) do
  local ms = parse(channel.prev)
  trim_ring(channel, ms)
  redis.call('PEXPIRE', channel.ring, string.format('%.0f', ring_age + math.max(ms - m.now, 0)))
  if keyed then
    redis.call('HSET', channel.state, '#', string.format('%.0f', channel.state_bytes))
  elseif latest then
    redis.call('HSET', channel.state, 'v', channel.kind .. channel.data)
  elseif merged then
    redis.call('HSET', channel.state, 'v', channel.doc)
  end
  redis.call('HSET', KEYS[2], channel.name,
    format_index(channel.prev, channel.put, channel.dropped))
end
trim_bus(bytes_before, m.bytes, ARGV[9], tonumber(ARGV[10]))
commit(m)
return {life(m), 'ok', positions, replayed}
