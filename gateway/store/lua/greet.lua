-- Say who is there: settles the namespace's life and returns it.
local m = settle()
commit(m)
return {life(m)}
