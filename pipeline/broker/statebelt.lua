-- The atomic acts on a partition. The loader (functions.py) puts `#!lua name=...` and `local VERSION = '...'`
-- before this text, and every function name ends in that version: workers of two versions can share a server.
--
-- A function does not roll back. So each one checks everything that can fail, and only then writes its first byte.
-- Ids go up to 2^64-1 in both halves, beyond what a Lua number holds: they are compared as decimal strings.

local MAX_U64 = '18446744073709551615'
local MAX_FIELDS = 1000      -- unpack() ends near 7,900 values
local MAX_ENTRY_BYTES = 2 ^ 29 -- Redis refuses an entry of 1 GiB, after other entries were written
local MAX_TTL_MS = 1e13      -- some three centuries; Redis refuses a TTL whose date overflows
local UNKNOWN = '-1'         -- what Redis calls an unknown count of entries read

-- Is the decimal string x below y? Both without leading zeros.
local function below(x, y)
  if #x ~= #y then return #x < #y end
  return x < y
end

-- The two halves of an id, or nil when it is not one in canonical form.
local function halves(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if not ms then return nil end
  if (#ms > 1 and string.sub(ms, 1, 1) == '0') or (#seq > 1 and string.sub(seq, 1, 1) == '0') then return nil end
  if below(MAX_U64, ms) or below(MAX_U64, seq) then return nil end
  return ms, seq
end

-- Does id a come before id b?
local function before(a, b)
  local a_ms, a_seq = halves(a)
  local b_ms, b_seq = halves(b)
  if a_ms ~= b_ms then return below(a_ms, b_ms) end
  return below(a_seq, b_seq)
end

-- A whole number from an argument, within bounds, or nil.
local function whole(text, least, most)
  if not text or not string.match(text, '^%d+$') then return nil end
  local number = tonumber(text)
  if number < least or number > most then return nil end
  return number
end

local function as_map(flat)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

-- A count as text; tostring() would turn to exponents at 1e15.
local function digits(number) return string.format('%.0f', number) end

local function type_of(key) return redis.call('TYPE', key).ok end

-- The id that a log gave out last, which survives trimming; '0-0' for a log that is not there yet.
local function last_id(key)
  if type_of(key) == 'none' then return '0-0' end
  return as_map(redis.call('XINFO', 'STREAM', key))['last-generated-id']
end

-- What Redis knows of a group on a log, or nil.
local function group_of(log, group)
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', log)) do
    local info = as_map(flat)
    if info['name'] == group then return info end
  end
  return nil
end

-- How many entries of the log, from its beginning, lie at or before `offset`: exact at both ends of the log, else
-- `known`. At the ends, what was trimmed unread is counted as read, so that the lag can come to zero again.
local function entries_read(info, offset, known)
  if offset == info['last-generated-id'] then return digits(info['entries-added']) end
  local first = info['first-entry']
  if not first or before(offset, first[1]) then return digits(info['entries-added'] - info['length']) end
  return known
end

local function holds(lease, owner, epoch) return redis.call('GET', lease) == epoch .. ' ' .. owner end

-- keys: log lease epoch; args: group owner lease_ms start
-- GRANTED epoch offset entries_read | HELD owner epoch remaining_ms
local function acquire(keys, args)
  local log, lease, epoch_key = keys[1], keys[2], keys[3]
  local group, owner, lease_ms, start = args[1], args[2], args[3], args[4]
  if not whole(lease_ms, 1, MAX_TTL_MS) then return { 'INVALID', 'lease_ms is not a positive number' } end
  if start ~= '$' and not halves(start) then return { 'INVALID', 'the start is neither an id nor $' } end
  local held = redis.call('GET', lease)
  local epoch, holder
  if held then
    epoch, holder = string.match(held, '^(%d+) (.*)$')
    if holder ~= owner then return { 'HELD', holder or held, epoch or '', redis.call('PTTL', lease) } end
  end
  local kind, epoch_kind = type_of(log), type_of(epoch_key)
  if (kind ~= 'none' and kind ~= 'stream') or (epoch_kind ~= 'none' and epoch_kind ~= 'string') then
    return redis.error_reply('WRONGTYPE ' .. log .. ' or ' .. epoch_key .. ' is not ours')
  end
  if kind == 'none' or not group_of(log, group) then
    redis.call('XGROUP', 'CREATE', log, group, start, 'MKSTREAM')
  end
  if not held then
    epoch = digits(redis.call('INCR', epoch_key))
    redis.call('SET', lease, epoch .. ' ' .. owner, 'PX', lease_ms)
  else
    redis.call('PEXPIRE', lease, lease_ms)
  end
  local found = group_of(log, group)
  local offset = found['last-delivered-id']
  local known = found['entries-read'] and digits(found['entries-read']) or UNKNOWN
  return { 'GRANTED', epoch, offset, entries_read(as_map(redis.call('XINFO', 'STREAM', log)), offset, known) }
end

-- keys: lease; args: owner epoch lease_ms
local function renew(keys, args)
  if not holds(keys[1], args[1], args[2]) then return { 'FENCED', redis.call('GET', keys[1]) or '' } end
  redis.call('PEXPIRE', keys[1], args[3])
  return { 'OK' }
end

-- keys: lease; args: owner epoch
local function release(keys, args)
  if not holds(keys[1], args[1], args[2]) then return { 'FENCED', redis.call('GET', keys[1]) or '' } end
  redis.call('DEL', keys[1])
  return { 'OK' }
end

-- Check `count` entries `id, n, n fields and values` from args[at] on, for the log `key`: ids within (old, new] and
-- rising above all that the log ever held. Returns the place after them, or nil and what is wrong.
local function check_entries(key, args, at, count, old, new)
  local last = last_id(key)
  if before(last, old) then last = old end
  for _ = 1, count do
    local id, n = args[at], whole(args[at + 1], 2, MAX_FIELDS)
    if not id or not halves(id) then return nil, 'an entry of ' .. key .. ' has no canonical id' end
    if not before(last, id) then return nil, 'entry ' .. id .. ' of ' .. key .. ' does not rise above ' .. last end
    if before(new, id) then return nil, 'entry ' .. id .. ' of ' .. key .. ' lies beyond the new offset ' .. new end
    if not n or n % 2 == 1 or at + 1 + n > #args then return nil, 'entry ' .. id .. ' has a wrong number of fields' end
    local size = 0
    for i = at + 2, at + 1 + n do size = size + #args[i] end
    if size > MAX_ENTRY_BYTES then return nil, 'entry ' .. id .. ' is too large' end
    last = id
    at = at + 2 + n
  end
  return at
end

local function add_entries(key, args, at, count)
  for _ = 1, count do
    local n = tonumber(args[at + 1])
    redis.call('XADD', key, args[at], unpack(args, at + 2, at + 1 + n))
    at = at + 2 + n
  end
  return at
end

-- Redis would stop half way at a command that this user may not run.
local function forbidden(out, group)
  local tries = { { 'XADD', out, '*', 'f', 'v' }, { 'XGROUP', 'SETID', out, group, '0', 'ENTRIESREAD', '0' },
    { 'SET', out, 'v', 'PX', '1' }, { 'DEL', out }, { 'PEXPIRE', out, '1' } }
  for _, try in ipairs(tries) do
    if not redis.acl_check_cmd(unpack(try)) then return try[1] end
  end
  return nil
end

-- keys: log out dead lease, rows to set, rows to delete
-- args: group owner epoch lease_ms old new entries_read results dead sets deletes, entries, entries, (value ttl_ms)...
-- OK | DUP | FENCED lease | CONFLICT why | INVALID why
local function commit(keys, args)
  local log, out, dead, lease = keys[1], keys[2], keys[3], keys[4]
  local group, owner, epoch, lease_ms, old, new, read = unpack(args, 1, 7)
  if not holds(lease, owner, epoch) then return { 'FENCED', redis.call('GET', lease) or '' } end
  if type_of(log) == 'none' then return { 'CONFLICT', 'the log is gone' } end
  local found = group_of(log, group)
  if not found then return { 'CONFLICT', 'the group is gone' } end
  if not whole(lease_ms, 1, MAX_TTL_MS) then return { 'INVALID', 'lease_ms is not a positive number' } end
  if not halves(old) or not halves(new) then return { 'INVALID', 'an offset is not a canonical id' } end
  local offset = found['last-delivered-id']
  if offset == new and old ~= new then -- this very commit, sent again after its reply was lost
    redis.call('PEXPIRE', lease, lease_ms)
    return { 'DUP' }
  end
  if offset ~= old then return { 'CONFLICT', 'the offset is ' .. offset .. ', not ' .. old } end
  if before(new, old) then return { 'INVALID', 'the new offset ' .. new .. ' lies before ' .. old } end

  local n_results, n_dead = whole(args[8], 0, 1e7), whole(args[9], 0, 1e7)
  local n_sets, n_deletes = whole(args[10], 0, 1e7), whole(args[11], 0, 1e7)
  if not (n_results and n_dead and n_sets and n_deletes) or #keys ~= 4 + n_sets + n_deletes then
    return { 'INVALID', 'the numbers of entries and rows do not fit the keys' }
  end
  if read ~= UNKNOWN and not whole(read, 0, 2 ^ 53) then return { 'INVALID', 'entries_read is not a count' } end

  local info = as_map(redis.call('XINFO', 'STREAM', log))
  if old == new then
    -- Nothing tells the second sending of such a commit from the first: only what may happen twice is allowed.
    if n_results + n_dead > 0 then return { 'INVALID', 'entries without a new offset' } end
  else
    -- A failover may have lost the tail that this owner read. The log then has new entries below `new` that nobody
    -- read, and moving the offset past them would lose them: the last chunk of a commit must still be there.
    local first = info['first-entry']
    if before(info['last-generated-id'], new) then
      return { 'CONFLICT', 'chunk ' .. new .. ' is not in the log any more: the server lost its tail' }
    end
    if first and not before(new, first[1]) and #redis.call('XRANGE', log, new, new) == 0 then
      return { 'CONFLICT', 'chunk ' .. new .. ' is not in the log any more: the server lost its tail' }
    end
  end
  local at, why = check_entries(out, args, 12, n_results, old, new)
  if not at then return { 'INVALID', why } end
  at, why = check_entries(dead, args, at, n_dead, old, new)
  if not at then return { 'INVALID', why } end
  if #args ~= at - 1 + 2 * n_sets then return { 'INVALID', 'the number of arguments does not fit' } end
  for i = at + 1, #args, 2 do
    if not whole(args[i], 1, MAX_TTL_MS) then return { 'INVALID', 'the TTL of a row is not a positive number' } end
  end
  local denied = forbidden(out, group)
  if denied then return redis.error_reply('NOPERM this user may not run ' .. denied) end

  at = add_entries(out, args, 12, n_results)
  at = add_entries(dead, args, at, n_dead)
  for i = 1, n_sets do
    redis.call('SET', keys[4 + i], args[at], 'PX', args[at + 1])
    at = at + 2
  end
  for i = 5 + n_sets, #keys do redis.call('DEL', keys[i]) end
  redis.call('XGROUP', 'SETID', log, group, new, 'ENTRIESREAD', entries_read(info, new, read))
  redis.call('PEXPIRE', lease, lease_ms)
  return { 'OK' }
end

-- Entries of the log that the slowest group has not read; the whole log when there is no group. Where Redis does not
-- know (somebody moved a group by hand), the length of the log, which is an upper bound.
local function backlog_of(log)
  if type_of(log) == 'none' then return 0 end
  local groups = redis.call('XINFO', 'GROUPS', log)
  if #groups == 0 then return redis.call('XLEN', log) end
  local most = 0
  for _, flat in ipairs(groups) do
    local lag = as_map(flat)['lag'] or redis.call('XLEN', log)
    if lag > most then most = lag end
  end
  return most
end

-- keys: log; args: bound (0: none), then (stream seq data end) of every chunk. All are stored, or none: a chunk
-- refused between two others would be a gap in its stream.
-- OK id... | FULL backlog
local function append(keys, args)
  local log, bound = keys[1], whole(args[1], 0, 2 ^ 53)
  local count = (#args - 1) / 4
  if not bound or count % 1 ~= 0 then return { 'INVALID', 'the number of arguments does not fit' } end
  if bound > 0 then
    local backlog = backlog_of(log)
    if backlog + count > bound then return { 'FULL', backlog } end
  end
  local reply = { 'OK' }
  for at = 2, #args, 4 do
    local ends = args[at + 3]
    if ends == '' then
      reply[#reply + 1] = redis.call('XADD', log, '*', 'stream', args[at], 'seq', args[at + 1], 'data', args[at + 2])
    else
      reply[#reply + 1] = redis.call('XADD', log, '*', 'stream', args[at], 'seq', args[at + 1], 'data', args[at + 2],
        'end', ends)
    end
  end
  return reply
end

local function backlog(keys) return backlog_of(keys[1]) end

-- keys: meta; args: field value ...   CREATED | EXISTS, then what is there
local function create_topic(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then return { 'EXISTS', redis.call('HGETALL', keys[1]) } end
  redis.call('HSET', keys[1], unpack(args))
  return { 'CREATED', redis.call('HGETALL', keys[1]) }
end

-- The id `age_ms` before the server's now.
local function id_before_now(age_ms)
  local now = redis.call('TIME')
  local ms = now[1] * 1000 + math.floor(now[2] / 1000) - age_ms
  return string.format('%.0f-0', math.max(ms, 0))
end

-- keys: log, then logs of results and dead letters; args: age of chunks, of results in ms
-- Chunks that a group has still to read stay, whatever their age. Returns the numbers of entries removed.
local function trim(keys, args)
  local log = keys[1]
  local age_ms, results_age_ms = whole(args[1], 0, MAX_TTL_MS), whole(args[2], 0, MAX_TTL_MS)
  if not age_ms or not results_age_ms then return redis.error_reply('ERR a retention is not a number of ms') end
  local chunks, results = 0, 0
  if type_of(log) ~= 'none' then
    local groups = redis.call('XINFO', 'GROUPS', log)
    local keep = id_before_now(age_ms)
    for _, flat in ipairs(groups) do
      local offset = as_map(flat)['last-delivered-id']
      if before(offset, keep) then keep = offset end
    end
    if #groups > 0 then chunks = redis.call('XTRIM', log, 'MINID', keep) end
  end
  for i = 2, #keys do results = results + redis.call('XTRIM', keys[i], 'MINID', id_before_now(results_age_ms)) end
  return { chunks, results }
end

-- keys: workers; args: owner ttl_ms facts. Says that this owner lives, forgets those that did not say so in time.
-- owner facts owner facts ... of all that live, this one among them
local function join(keys, args)
  local workers, owner, ttl_ms, facts = keys[1], args[1], whole(args[2], 1, MAX_TTL_MS), args[3]
  if not ttl_ms then return redis.error_reply('ERR the TTL of a worker is not a positive number') end
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local gone, alive = {}, { owner, facts }
  local all = redis.call('HGETALL', workers)
  for i = 1, #all, 2 do
    local until_ms, said = string.match(all[i + 1], '^(%d+) (.*)$')
    if not until_ms or tonumber(until_ms) <= now then
      gone[#gone + 1] = all[i]
    elseif all[i] ~= owner then
      alive[#alive + 1] = all[i]
      alive[#alive + 1] = said
    end
  end
  for _, each in ipairs(gone) do redis.call('HDEL', workers, each) end
  redis.call('HSET', workers, owner, digits(now + ttl_ms) .. ' ' .. facts)
  if redis.call('PTTL', workers) < ttl_ms then redis.call('PEXPIRE', workers, ttl_ms) end
  return alive
end

-- keys: workers; args: owner
local function leave(keys, args) return redis.call('HDEL', keys[1], args[1]) end

local function register(name, callback, flags)
  redis.register_function { function_name = name .. '_' .. VERSION, callback = callback, flags = flags }
end

-- Out of memory, Redis refuses the functions that need some. The others must work on: they let a worker
-- start and keep its leases, or free memory.
register('sb_commit', commit, {})
register('sb_append', append, {})
register('sb_create_topic', create_topic, { 'allow-oom' })
register('sb_acquire', acquire, { 'allow-oom' })
register('sb_renew', renew, { 'allow-oom' })
register('sb_release', release, { 'allow-oom' })
register('sb_join', join, { 'allow-oom' })
register('sb_leave', leave, { 'allow-oom' })
register('sb_trim', trim, { 'allow-oom' })
register('sb_backlog', backlog, { 'no-writes' })
