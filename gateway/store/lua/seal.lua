-- Seal all slices before a boundary: once the server's time has come to it, the clock is raised
-- there, so that no later event can be given an earlier position.
--
-- KEYS[1..3] as in settle.lua
-- ARGV[6] boundary in ms; 0 only asks for the time
-- Reply: {life, server's time in ms}. The boundary is sealed when the life's clock is not before it;
-- every event before it is then at most the life's last.

local m = settle()
local boundary = tonumber(ARGV[6])
if boundary <= m.now and m.ms < boundary then
  m.ms, m.seq, m.clock, m.dirty = boundary, 0, format(boundary, 0), true
end
commit(m)
return {life(m), m.now}
