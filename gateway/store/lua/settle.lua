-- Common opening of every script: reads the namespace's meta hash and settles which life of the
-- store this is. Nothing is written before `commit`, so a script can still refuse everything.
--
-- KEYS[1] meta   KEYS[2] channels   KEYS[3] bus
-- ARGV[1] run id of the server that this connection reached
-- ARGV[2] highest position that the calling worker ever tailed ("0-0" when none)
-- ARGV[3] token for a new epoch   ARGV[4] margin of a cut, in ms   ARGV[5] reducer

local SCHEMA = '1'
local CUTS_KEPT = 64

local function parse(text)
  local ms, seq = string.match(text or '', '^(%d+)%-(%d+)$')
  if not ms then
    error('CORRUPT not a position: ' .. tostring(text), 0)
  end
  return tonumber(ms), tonumber(seq)
end

local function format(ms, seq)
  return string.format('%.0f-%.0f', ms, seq)
end

local function before(a, b)
  local a_ms, a_seq = parse(a)
  local b_ms, b_seq = parse(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- An index value is "<last position> <bytes ever put into the ring> <bytes dropped from it>[ x]";
-- x marks a deletion. The dropped bytes may be too few, never too many: see trim_ring. Values from
-- before they were counted lack them.
local function parse_index(value)
  local position, put, dropped, mark = string.match(value, '^(%d+%-%d+) (%d+)( ?%d*)( ?x?)$')
  if not position then
    error('CORRUPT index value: ' .. value, 0)
  end
  return position, tonumber(put), tonumber(dropped) or 0, string.sub(mark, -1) == 'x'
end

local function format_index(position, put, dropped)
  return string.format('%s %.0f %.0f', position, put, dropped)
end

-- A generation is "<number>@<clock>": a copy of the store that is restored twice counts to the
-- same number twice, but never at the same clock.
local function next_generation(m)
  local number = tonumber(string.match(m.generation, '^%d+'))
  m.generation, m.dirty, m.renewed = string.format('%.0f@%s', number + 1, m.clock), true, true
end

local function settle()
  local run, tailed, margin, reducer = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5]
  local stored = redis.call('HMGET', KEYS[1], 'schema', 'epoch', 'clock', 'floor', 'run',
    'generation', 'cuts', 'last', 'reducer', 'bytes')
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local tailed_ms = parse(tailed)
  local m = {now = now, dirty = false}
  if not stored[2] then
    -- A store without meta begins a new epoch above everything that anybody can remember; the
    -- margin is there because a cut before it may have let positions run ahead of the time.
    local start = math.max(now + margin, tailed_ms + 1)
    local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
    if newest[1] then start = math.max(start, (parse(newest[1][1])) + 1) end
    m.epoch, m.clock, m.generation, m.cuts = ARGV[3], format(start, 0), '0', ''
    next_generation(m)
    m.floor, m.last, m.run, m.bytes, m.dirty = m.clock, m.clock, run, 0, true
    m.reducer = reducer
  else
    if stored[1] ~= SCHEMA then
      error('SCHEMA ' .. tostring(stored[1]), 0)
    end
    m.epoch, m.clock, m.floor, m.run = stored[2], stored[3], stored[4], stored[5]
    m.generation, m.cuts, m.last = stored[6], stored[7], stored[8]
    m.reducer, m.bytes = stored[9], tonumber(stored[10])
    parse(m.last)
    parse(m.floor)
    if not (string.match(m.generation or '', '^%d+@') and m.bytes and m.reducer and m.cuts)
      or string.find(m.cuts, '[^%d%- ,]') then
      error('CORRUPT ' .. KEYS[1] .. ' lacks a field', 0)
    end
    local clock_ms = parse(m.clock)
    if m.run ~= run or before(m.clock, tailed) then
      -- Another life of the server: what came after its clock may be lost, so no position
      -- between the clock and the cut's end can be resumed from.
      -- The margin counts from now, so that quick restarts do not drive the clock away from it.
      local past = format(math.max(now + margin, clock_ms + 1, tailed_ms + 1), 0)
      local cuts = {}
      for cut in string.gmatch(m.cuts .. ',' .. m.clock .. ' ' .. past, '[^,]+') do
        cuts[#cuts + 1] = cut
      end
      while #cuts > CUTS_KEPT do
        local ended = string.match(table.remove(cuts, 1), ' (.+)$')
        if before(m.floor, ended) then m.floor = ended end
      end
      m.cuts, m.clock, m.run = table.concat(cuts, ','), past, run
      next_generation(m)
    end
    if m.reducer ~= reducer then
      if redis.call('HLEN', KEYS[2]) > 0 then
        error('REDUCER ' .. tostring(m.reducer), 0)
      end
      m.reducer, m.dirty, m.renewed = reducer, true, true
    end
  end
  m.ms, m.seq = parse(m.clock)
  m.history = m.epoch .. ':' .. m.generation
  return m
end

-- Mostly only the clock has moved; the rest is written when the life is another one.
local function commit(m)
  if m.dirty then
    redis.call('HSET', KEYS[1], 'clock', m.clock, 'last', m.last, 'bytes', m.bytes)
  end
  if m.renewed then
    redis.call('HSET', KEYS[1], 'schema', SCHEMA, 'epoch', m.epoch, 'floor', m.floor,
      'run', m.run, 'generation', m.generation, 'cuts', m.cuts, 'reducer', m.reducer)
  end
end

-- What every script tells the caller about the namespace, first in its reply.
local function life(m)
  return {m.epoch, m.generation, m.clock, m.floor, m.last, m.cuts}
end

-- The next position: the server's time, or one more when its millisecond was used already.
-- The first of a whole second is left free, for there slices meet: their boundary is no event.
local function advance(m)
  if m.now > m.ms then
    m.ms, m.seq = m.now, m.now % 1000 == 0 and 1 or 0
  else
    m.seq = m.seq + 1
  end
  m.clock, m.dirty = format(m.ms, m.seq), true
  return m.clock
end

-- What the index says of a channel, or nil: last position, bytes ever put into its ring, bytes
-- dropped from it, and whether it was deleted.
local function read_index(m, channel)
  local value = redis.call('HGET', KEYS[2], channel)
  if not value then return nil end
  local position, put, dropped, deleted = parse_index(value)
  if before(m.clock, position) then
    error('CORRUPT last position of ' .. channel .. ' is past the clock', 0)
  end
  return position, put, dropped, deleted
end

local function check_kind(key, wanted)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= wanted then
    error('CORRUPT ' .. key .. ' is a ' .. kind, 0)
  end
end

-- Refuse a stream that XADD would refuse: one of another type, or with an entry past the clock.
-- No data is copied unless there is such an entry.
local function check_stream(key, clock)
  check_kind(key, 'stream')
  if redis.call('XRANGE', key, '(' .. clock, '+', 'COUNT', 1)[1] then
    error('CORRUPT ' .. key .. ' went past the clock', 0)
  end
end

-- A stream remembers its highest id even when somebody removed the entry, and XADD goes by that.
-- So the bus comes before every other write of a script: when it refuses, nothing is written.
local function append_bus(m, position, channel, type, key, format_, data, prev, op)
  redis.call('XADD', KEYS[3], position, 'c', channel, 't', type, 'k', key, 'f', format_, 'd', data,
    'p', prev, 'n', m.last, 'g', m.history, 'o', op, 's', m.bytes)
  m.bytes = m.bytes + #data + #channel + #type + #key + 100
  m.last = position
end

-- Keep the bus within its bounds. Its bytes are looked at once a mebibyte.
local function trim_bus(bytes_before, bytes, events_limit, bytes_limit)
  redis.call('XTRIM', KEYS[3], 'MAXLEN', '~', events_limit)
  if math.floor(bytes_before / 1048576) == math.floor(bytes / 1048576) then return end
  local low = '-'
  while true do
    local entries = redis.call('XRANGE', KEYS[3], low, '+', 'COUNT', 64)
    for _, entry in ipairs(entries) do
      if bytes - (tonumber(entry[2][20]) or 0) <= bytes_limit then
        redis.call('XTRIM', KEYS[3], 'MINID', entry[1])
        return
      end
      low = '(' .. entry[1]
    end
    if #entries < 64 then return end
  end
end
