-- The atomic acts on a partition. The loader (functions.py) puts `#!lua name=...` and `local VERSION = '...'`
-- before this text, and every function name ends in that version: workers of two versions can share a server.
--
-- A function does not roll back. So each one checks everything that can fail, and only then writes its first byte.
-- Ids go up to 2^64-1 in both halves, beyond what a Lua number holds: they are compared as decimal strings.

local function register(name, callback, flags)
  redis.register_function { function_name = name .. '_' .. VERSION, callback = callback, flags = flags }
end

-- To look up a global takes the server's guard around them a while, every time: these are looked up once, by the first
-- call (while a library is loaded, most are not there).
local function globals() return redis, math, string, table, ipairs, pairs, pcall, tonumber, type, unpack end
local redis, math, string, table, ipairs, pairs, pcall, tonumber, type, unpack

local ZERO = 48 -- the digit, as a byte
local MAX_U64 = '18446744073709551615'
local MAX_FIELDS, MAX_UNPACKED = 1000, 4000 -- unpack() ends near 7,900 values
local MAX_ENTRY_BYTES = 2 ^ 29 -- Redis refuses an entry of 1 GiB, after other entries were written
local MAX_TTL_MS = 1e13      -- some three centuries; Redis refuses a TTL whose date overflows
local UNKNOWN = '-1'         -- what Redis calls an unknown count of entries read
local MAX_LOOKED_AT, MAX_LOOKED_AT_BYTES = 1000, 2 ^ 24 -- dead letters in one call, which others wait for
local MARKS = 16             -- of where a group stood, within the time that its results are kept

-- Is the decimal string x below y? Both without leading zeros.
local function below(x, y)
  if #x ~= #y then return #x < #y end
  return x < y
end

-- The two halves of an id, or nil when it is not one in canonical form.
local function halves(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if not ms then return nil end
  if (#ms > 1 and string.byte(ms) == ZERO) or (#seq > 1 and string.byte(seq) == ZERO) then return nil end
  if below(MAX_U64, ms) or below(MAX_U64, seq) then return nil end
  return ms, seq
end

-- Does the id of halves a come before that of halves b?
local function halves_before(a_ms, a_seq, b_ms, b_seq)
  if a_ms ~= b_ms then return below(a_ms, b_ms) end
  return below(a_seq, b_seq)
end

-- Does id a come before id b?
local function before(a, b)
  local a_ms, a_seq = halves(a)
  return halves_before(a_ms, a_seq, halves(b))
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

-- Where rows are committed less often than offsets, a second group on the log, `<group>:rows`, stands where the rows do:
-- a new owner replays the chunks from there up to the offset. It is a group so that whatever trims the log, ours or
-- not, sees that these chunks are still needed. No deployment can have such a name.
local function rows_group(group) return group .. ':rows' end

local function is_rows_group(name) return string.sub(name, -5) == ':rows' end

-- Two of a log's groups: what Redis knows of the deployment's, and where its rows stand (nil: where the offset does).
local function both_groups(groups, group)
  local found, rows_at
  for _, flat in ipairs(groups) do
    local info = as_map(flat)
    if info['name'] == group then found = info end
    if info['name'] == rows_group(group) then rows_at = info['last-delivered-id'] end
  end
  return found, rows_at
end

-- How many entries of the log, from its beginning, lie at or before `offset`: exact at both ends of the log, else
-- `known`. At the ends, what was trimmed unread is counted as read, so that the lag can come to zero again.
local function entries_read(info, offset, known)
  if offset == info['last-generated-id'] then return digits(info['entries-added']) end
  local first = info['first-entry']
  if not first or before(offset, first[1]) then return digits(info['entries-added'] - info['length']) end
  return known
end

-- How many entries of the log, from its beginning, lie at or before `new`, where a commit that read `read` of them moves
-- the offset from `old`. Counted from what the server knows of the old offset (`group`), not from what the owner believes:
-- entries that it read may have been lost by a failover since. nil: chunk `new` was lost itself. A failover may have
-- lost the tail that the owner read; the log then has new entries below `new` that nobody read, and moving the offset
-- past them would lose them.
local function entries_upto(log, group, old, new, read)
  local known, lag = group['entries-read'], group['lag']
  -- Where counts agree with what is there, XINFO STREAM need not be asked: it copies the first entry and the last. They do
  -- not where somebody trimmed entries that the group has still to read: then the log is shorter than its lag.
  if old ~= new and known and lag and redis.call('XLEN', log) >= lag then
    local there = redis.call('XRANGE', log, new, '+', 'COUNT', lag > read and 2 or 1)
    if there[1] and there[1][1] == new and (lag == read or there[2]) then return digits(known + read) end
  end
  local info = as_map(redis.call('XINFO', 'STREAM', log))
  if old ~= new then
    local first, last = info['first-entry'], info['last-entry']
    if before(info['last-generated-id'], new) then return nil end
    if last and last[1] ~= new and not before(new, first[1]) and #redis.call('XRANGE', log, new, new) == 0 then
      return nil
    end
  end
  known = entries_read(info, old, known and digits(known) or UNKNOWN)
  if known ~= UNKNOWN then known = digits(known + read) end
  return entries_read(info, new, known)
end

local function holds(lease, owner, epoch) return redis.call('GET', lease) == epoch .. ' ' .. owner end

-- keys: log lease epoch; args: group owner lease_ms start
-- GRANTED epoch offset entries_read behind | HELD owner epoch remaining_ms
-- behind: the rows hold what all chunks up to there did, the chunks up to the offset are to be replayed; '': none.
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
  local found, behind = both_groups(redis.call('XINFO', 'GROUPS', log), group)
  local offset = found['last-delivered-id']
  if not behind or not before(behind, offset) then behind = '' end
  local known = found['entries-read'] and digits(found['entries-read']) or UNKNOWN
  return { 'GRANTED', epoch, offset, entries_read(as_map(redis.call('XINFO', 'STREAM', log)), offset, known), behind }
end

-- keys: log lease; args: group owner epoch lease_ms offset; offset: where the owner left the group ('': in doubt).
-- Compared, because a failover may have lost the last commit of a log where nothing more comes: no commit would tell.
-- OK | FENCED lease | CONFLICT why
local function renew(keys, args)
  local log, lease = keys[1], keys[2]
  local group, owner, epoch, lease_ms, offset = unpack(args)
  if not holds(lease, owner, epoch) then return { 'FENCED', redis.call('GET', lease) or '' } end
  if offset ~= '' then
    local found = type_of(log) ~= 'none' and group_of(log, group)
    if not found then return { 'CONFLICT', 'the group is gone' } end
    local stands = found['last-delivered-id']
    if stands ~= offset then return { 'CONFLICT', 'the offset is ' .. stands .. ', not ' .. offset } end
  end
  redis.call('PEXPIRE', lease, lease_ms)
  return { 'OK' }
end

-- keys: lease; args: owner epoch
local function release(keys, args)
  if not holds(keys[1], args[1], args[2]) then return { 'FENCED', redis.call('GET', keys[1]) or '' } end
  redis.call('DEL', keys[1])
  return { 'OK' }
end

local function not_rising(id, key, last) return 'entry ' .. id .. ' of ' .. key .. ' does not rise above ' .. last end

-- Check `count` entries `id, n, n fields and values` from args[at] on, for the log `key`: ids within (last, new] and
-- rising. Returns the place after them, or nil and what is wrong.
local function check_entries(key, args, at, count, last, new)
  local last_ms, last_seq = halves(last)
  local new_ms, new_seq = halves(new)
  local n_args = #args -- which Lua searches for
  for _ = 1, count do
    local id, n = args[at], whole(args[at + 1], 2, MAX_FIELDS)
    local ms, seq = halves(id or '')
    if not ms then return nil, 'an entry of ' .. key .. ' has no canonical id' end
    if not halves_before(last_ms, last_seq, ms, seq) then
      return nil, not_rising(id, key, last_ms .. '-' .. last_seq)
    end
    if halves_before(new_ms, new_seq, ms, seq) then
      return nil, 'entry ' .. id .. ' of ' .. key .. ' lies beyond the new offset ' .. new
    end
    if not n or n % 2 == 1 or at + 1 + n > n_args then return nil, 'entry ' .. id .. ' has a wrong number of fields' end
    local size = 0
    for i = at + 2, at + 1 + n do size = size + #args[i] end
    if size > MAX_ENTRY_BYTES then return nil, 'entry ' .. id .. ' is too large' end
    last_ms, last_seq = ms, seq
    at = at + 2 + n
  end
  return at
end

-- The same, and the first of them above all that the log ever held.
local function check_new_entries(key, args, at, count, old, new)
  if count == 0 then return at end
  local last = last_id(key)
  return check_entries(key, args, at, count, before(last, old) and old or last, new)
end

-- Returns the place after them, or nil and why not even the first of them could be added.
local function add_entries(key, args, at, count)
  for i = 1, count do
    local n = tonumber(args[at + 1])
    local add = i == 1 and redis.pcall or redis.call
    local added = add('XADD', key, args[at], unpack(args, at + 2, at + 1 + n))
    if type(added) == 'table' then return nil, added end
    at = at + 2 + n
  end
  return at
end

-- Redis would stop half way at a command that this user may not run. ACLs speak of keys too, so each write is asked
-- with its own; a user who may set one row may set all (no pattern of ours tells streams apart).
local function forbidden(keys, n_sets, group, creates)
  local log, out, dead, lease, set, deleted = keys[1], keys[2], keys[3], keys[4], keys[5], keys[5 + n_sets]
  local tries = { { 'XADD', out, '*', 'f', 'v' }, { 'XADD', dead, '*', 'f', 'v' },
    { 'XGROUP', 'SETID', log, group, '0', 'ENTRIESREAD', '0' }, { 'PEXPIRE', lease, '1' } }
  if n_sets > 0 then tries[#tries + 1] = { 'SET', set, 'v', 'PX', '1' } end
  if deleted then tries[#tries + 1] = { 'DEL', deleted } end
  if creates then tries[#tries + 1] = { 'XGROUP', 'CREATE', log, group, '0' } end
  for _, try in ipairs(tries) do
    if not redis.acl_check_cmd(unpack(try)) then return try[1] end
  end
  return nil
end

-- keys: log out dead lease, rows to set, rows to delete
-- args: group owner epoch lease_ms old new entries results dead sets deletes behind behind_before, entries, entries,
--       (value ttl_ms)...; behind: the rows of some streams hold only what chunks up to there did; '': of none
-- OK | DUP | FENCED lease | CONFLICT why | INVALID why
local function commit(keys, args)
  local log, out, dead, lease = keys[1], keys[2], keys[3], keys[4]
  local group, owner, epoch, lease_ms, old, new, read = unpack(args, 1, 7)
  if not holds(lease, owner, epoch) then return { 'FENCED', redis.call('GET', lease) or '' } end
  local groups = redis.pcall('XINFO', 'GROUPS', log)
  if groups.err then return type_of(log) == 'none' and { 'CONFLICT', 'the log is gone' } or groups end
  local found, rows_at = both_groups(groups, group)
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
  if not whole(read, 0, 2 ^ 53) then return { 'INVALID', 'entries is not a count' } end

  local behind = args[12]
  if behind ~= '' and not (halves(behind) and not before(new, behind)) then
    return { 'INVALID', 'the rows cannot stand at ' .. behind .. ', the new offset is ' .. new }
  end

  -- Where the rows stand is compared as the offset is: a failover may have lost a commit that brought rows forward and
  -- moved no offset. One that is sent again finds them where it put them.
  local stood = rows_at and before(rows_at, offset) and rows_at or ''
  if stood ~= args[13] and not (old == new and stood == behind) then
    return { 'CONFLICT', 'the rows stand at ' .. stood .. ', not ' .. args[13] }
  end

  -- Nothing tells the second sending of such a commit from the first: only what may happen twice is allowed.
  if old == new and n_results + n_dead > 0 then return { 'INVALID', 'entries without a new offset' } end
  local upto = entries_upto(log, found, old, new, tonumber(read))
  if not upto then return { 'CONFLICT', 'chunk ' .. new .. ' is not in the log any more: the server lost its tail' } end
  -- Whether the results' log is behind the first of them is told by adding it, the first that is written.
  local at, why = check_entries(out, args, 14, n_results, old, new)
  if not at then return { 'INVALID', why } end
  at, why = check_new_entries(dead, args, at, n_dead, old, new)
  if not at then return { 'INVALID', why } end
  if #args ~= at - 1 + 2 * n_sets then return { 'INVALID', 'the number of arguments does not fit' } end
  local sound -- most rows have the TTL of the one before
  for i = at + 1, #args, 2 do
    if args[i] ~= sound and not whole(args[i], 1, MAX_TTL_MS) then
      return { 'INVALID', 'the TTL of a row is not a positive number' }
    end
    sound = args[i]
  end
  local denied = forbidden(keys, n_sets, group, behind ~= '' and not rows_at)
  if denied then return redis.error_reply('NOPERM this user may not run ' .. denied) end

  at, why = add_entries(out, args, 14, n_results)
  if not at then
    local last = last_id(out)
    return before(last, args[14]) and why or { 'INVALID', not_rising(args[14], out, last) }
  end
  at, why = add_entries(dead, args, at, n_dead)
  if not at then return why end
  for i = 1, n_sets do
    redis.call('SET', keys[4 + i], args[at], 'PX', args[at + 1])
    at = at + 2
  end
  for i = 5 + n_sets, #keys do redis.call('DEL', keys[i]) end
  redis.call('XGROUP', 'SETID', log, group, new, 'ENTRIESREAD', upto)
  if rows_at then -- it may not be destroyed: a worker need not have that right
    redis.call('XGROUP', 'SETID', log, rows_group(group), behind ~= '' and behind or new)
  elseif behind ~= '' then
    redis.call('XGROUP', 'CREATE', log, rows_group(group), behind)
  end
  redis.call('PEXPIRE', lease, lease_ms)
  return { 'OK' }
end

-- Entries of the log that the slowest group has not read; the whole log when there is no group. Where Redis does not
-- know (somebody moved a group by hand), the length of the log, which is an upper bound.
local function backlog_of(log)
  if type_of(log) == 'none' then return 0 end
  local groups = redis.call('XINFO', 'GROUPS', log)
  local most, readers = 0, 0
  for _, flat in ipairs(groups) do
    local info = as_map(flat)
    if not is_rows_group(info['name']) then
      readers = readers + 1
      most = math.max(most, info['lag'] or redis.call('XLEN', log))
    end
  end
  return readers > 0 and most or redis.call('XLEN', log)
end

-- A stand is where a stream stands on its producers' side, written with every chunk they push: next_seq, the bytes of
-- data since its life began (or since the last gap), new, live or ended, and the claim under which chunks are taken. nil
-- where there is none, or none any more (`text` is false): it lives as long as the stream's state would.
local function stand_of(text)
  local next_seq, bytes, status, claim = string.match(text or '', '^(%d+) (%d+) (%l+) (.+)$')
  if not claim then return nil end
  return { next_seq = tonumber(next_seq), bytes = tonumber(bytes), status = status, claim = claim }
end

local function stand_text(stand)
  return string.format('%.0f %.0f %s %s', stand.next_seq, stand.bytes, stand.status, stand.claim)
end

-- A claim is '<producer>/<number>'.
local function producer_of(claim) return string.match(claim, '^(.*)/') end

-- Move a stand past a chunk. What was stored before counts once; a gap begins the count anew, as workers do.
local function advance(stand, seq, size, ends)
  if seq < stand.next_seq then return false end
  stand.bytes = seq == stand.next_seq and stand.bytes + size or size
  stand.next_seq = seq + 1
  stand.status = ends and 'ended' or 'live'
  return true
end

-- The text of a stand once a chunk has moved it that simply goes on, as nearly all do; nil: look closer.
local function gone_on(text, seq, size, claim)
  local bytes, at = string.match(text or '', '^ (%d+) live ()', #seq + 1)
  if not bytes or string.sub(text, 1, #seq) ~= seq or string.sub(text, at) ~= claim then return nil end
  return string.format('%.0f %.0f live %s', seq + 1, bytes + size, claim)
end

-- keys: log, then the stand of each chunk's stream
-- args: bound (0: none) idle_ms tombstone_ms once, then (stream seq data end claim) of every chunk. `end` is '', '1', or
-- 'given': its data are not samples, but what the producer gives the stream. The first chunk of a life that `begin`
-- began says so: workers then keep nothing of what an earlier life was given.
-- The chunks of a stream that another producer has claimed are refused; those without a claim are not asked. Of the
-- others all are stored, or none: a chunk refused between two others would be a gap in its stream. With `once`, what
-- an earlier call stored is not stored again; its stand is written all the same, for a WAIT behind the call to wait on.
-- OK (id | '' stored before | {claim} refused)... | FULL backlog
local function append(keys, args)
  local log, bound = keys[1], whole(args[1], 0, 2 ^ 53)
  local idle_ms, tombstone_ms, once = whole(args[2], 1, MAX_TTL_MS), whole(args[3], 1, MAX_TTL_MS), args[4] == '1'
  local count = (#args - 4) / 5
  if not bound or not idle_ms or not tombstone_ms or count % 1 ~= 0 or count ~= #keys - 1 then
    return { 'INVALID', 'the number of arguments does not fit' }
  end
  local length = redis.pcall('XLEN', log)
  if type(length) == 'table' then
    local foreign = string.find(length.err, '^WRONGTYPE')
    return foreign and redis.error_reply('WRONGTYPE ' .. log .. ' is not ours') or length
  end
  local reply, stands, ended, begins, new = { 'OK' }, {}, {}, {}, 0
  for i = 1, count do
    local key, at = keys[i + 1], 5 * i
    local size, ends, claim = #args[at + 2], args[at + 3], args[at + 4]
    local outcome
    if claim ~= '' then
      local stood = stands[key] or redis.call('GET', key)
      local goes_on = ends == '' and gone_on(stood, args[at + 1], size, claim)
      if goes_on then
        stands[key] = goes_on
      else
        local seq = whole(args[at + 1], 0, 2 ^ 53)
        if not seq then return { 'INVALID', 'seq ' .. args[at + 1] .. ' is no number below 2^53' } end
        local stand = stand_of(stood) or { next_seq = seq, bytes = 0, claim = claim }
        if stand.claim ~= claim then
          outcome = { stand.claim }
        else
          begins[i] = stand.status == 'new'
          if not advance(stand, seq, ends == 'given' and 0 or size, ends == '1') and once then outcome = '' end
          stands[key], ended[key] = stand_text(stand), stand.status == 'ended'
        end
      end
    end
    reply[i + 1] = outcome or false
    if not outcome then new = new + 1 end
  end
  if bound > 0 and new > 0 and length + new > bound then -- else no group can have more to read
    local backlog = backlog_of(log)
    if backlog + new > bound then return { 'FULL', backlog } end
  end
  for i = 1, count do
    if not reply[i + 1] then
      local at = 5 * i
      local stream, seq, data, ends = args[at], args[at + 1], args[at + 2], args[at + 3]
      if begins[i] then
        local fields = { 'stream', stream, 'seq', seq, 'data', ends == 'given' and '' or data, 'begin', '1' }
        if ends ~= '' then
          fields[9], fields[10] = ends == 'given' and 'given' or 'end', ends == 'given' and data or ends
        end
        reply[i + 1] = redis.call('XADD', log, '*', unpack(fields))
      elseif ends == '' then
        reply[i + 1] = redis.call('XADD', log, '*', 'stream', stream, 'seq', seq, 'data', data)
      elseif ends == 'given' then
        reply[i + 1] = redis.call('XADD', log, '*', 'stream', stream, 'seq', seq, 'data', '', 'given', data)
      else
        reply[i + 1] = redis.call('XADD', log, '*', 'stream', stream, 'seq', seq, 'data', data, 'end', ends)
      end
    end
  end
  -- After the chunks: should one of them be refused (a right that is missing), a stand must not count it as stored.
  for key, text in pairs(stands) do redis.call('SET', key, text, 'PX', args[ended[key] and 3 or 2]) end
  return reply
end

-- keys: stands of streams that this producer does not know; args: claim idle_ms
-- A stream that it pushed to, and forgot, goes on where it stood. Any other begins a new life, claimed from whoever had
-- it: numbered by the clock, but above all that stood here before, though the clock went back.
-- (next_seq claim goes_on) of each
local function begin(keys, args)
  local claim, idle_ms = args[1], whole(args[2], 1, MAX_TTL_MS)
  if not idle_ms or not producer_of(claim or '') then return redis.error_reply('ERR not a claim, or not a time') end
  local now = redis.call('TIME')
  local now_us = now[1] * 1e6 + now[2]
  local reply = {}
  for i, key in ipairs(keys) do
    local stand = stand_of(redis.call('GET', key))
    if not stand or stand.status == 'ended' or producer_of(stand.claim) ~= producer_of(claim) then
      stand = { next_seq = math.max(now_us, stand and stand.next_seq or 0), bytes = 0, status = 'new', claim = claim }
      redis.call('SET', key, stand_text(stand), 'PX', idle_ms)
    end
    reply[i] = { digits(stand.next_seq), stand.claim, stand.status == 'live' and 1 or 0 }
  end
  return reply
end

-- keys: stand; args: claim
-- Where the stream stands, and it is claimed: what anybody else pushes from now on is refused, so the answer stays true.
-- NONE | (LIVE | ENDED) next_seq bytes
local function resume(keys, args)
  local stand = stand_of(redis.call('GET', keys[1]))
  if not stand then return { 'NONE' } end
  if stand.status == 'ended' then return { 'ENDED', digits(stand.next_seq), digits(stand.bytes) } end
  stand.claim = args[1]
  redis.call('SET', keys[1], stand_text(stand), 'KEEPTTL')
  return { 'LIVE', digits(stand.next_seq), digits(stand.bytes) }
end

local function backlog(keys) return backlog_of(keys[1]) end

-- keys: meta; args: field value ...   CREATED | EXISTS, then what is there
local function create_topic(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then return { 'EXISTS', redis.call('HGETALL', keys[1]) } end
  -- HSETNX, so that no user needs the right to change a topic that is there.
  for i = 1, #args, 2 do redis.call('HSETNX', keys[1], args[i], args[i + 1]) end
  return { 'CREATED', redis.call('HGETALL', keys[1]) }
end

-- The server's clock in ms.
local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- The id `age_ms` before the server's now.
local function id_before_now(age_ms) return digits(math.max(now_ms() - age_ms, 0)) .. '-0' end

-- Before which id chunks may go: none younger than `age_ms`, none that a group has still to read. A group for which
-- nobody works holds its chunks for `outage_ms` only (nil: for ever). `leases` are by group; a group that is not among
-- them was made a moment ago. Returns nil where nobody reads at all.
local function keep_from(groups, leases, age_ms, outage_ms)
  if #groups == 0 then return nil end
  local keep = id_before_now(age_ms)
  local abandoned = outage_ms and id_before_now(math.max(age_ms, outage_ms))
  for _, flat in ipairs(groups) do
    local group = as_map(flat)
    local offset, lease = group['last-delivered-id'], leases[group['name']]
    if abandoned and lease and before(offset, abandoned) and not redis.call('GET', lease) then offset = abandoned end
    if before(offset, keep) then keep = offset end
  end
  return keep
end

-- A group whose unread chunks were trimmed counts them as read: its lag, which holds back producers, is what is there.
local function count_as_read(log, groups, keep)
  local info = as_map(redis.call('XINFO', 'STREAM', log))
  for _, flat in ipairs(groups) do
    local group = as_map(flat)
    local offset = group['last-delivered-id']
    if before(offset, keep) then
      redis.call('XGROUP', 'SETID', log, group['name'], offset, 'ENTRIESREAD', entries_read(info, offset, UNKNOWN))
    end
  end
end

-- Up to which id all results are older than `age_ms`, or nil. Their ids cannot tell: they are those of the chunks, which
-- may have waited for a worker. So each trim marks where the group stands: what lies at or before the offset now was
-- published by now. `marks` is `ms id ms id ...`, oldest first, at most MARKS of them and one.
local function published_before(marks, offset, age_ms)
  local now, kept, upto = now_ms(), {}, nil
  for ms, id in string.gmatch(redis.call('GET', marks) or '', '(%d+) (%S+)') do
    -- A mark of the future (the clock was set back) or beyond the offset (the group was) tells nothing.
    if tonumber(ms) <= now and not before(offset, id) then kept[#kept + 1] = { ms = ms, id = id } end
  end
  if #kept == 0 or now - tonumber(kept[#kept].ms) >= age_ms / MARKS then
    kept[#kept + 1] = { ms = digits(now), id = offset }
  end
  while kept[1] and tonumber(kept[1].ms) <= now - age_ms do upto = table.remove(kept, 1).id end
  local text = {}
  for i, mark in ipairs(kept) do text[i] = mark.ms .. ' ' .. mark.id end
  redis.call('SET', marks, table.concat(text, ' '), 'PX', digits(2 * age_ms + 60000))
  return upto
end

-- Remove the entries of a log up to an id. One that ends in a number beyond Lua's stays a little longer.
local function trim_upto(log, id)
  local ms, seq = halves(id)
  if #seq < 15 then id = ms .. '-' .. digits(tonumber(seq) + 1) end
  return redis.call('XTRIM', log, 'MINID', id)
end

-- keys: log, leases of the n groups on it, then (out dead marks) of those whose results are meant
-- args: age of chunks, of results, of chunks nobody works on (-1: whatever it is) in ms; n, those groups' names, the names of
-- the others. Returns the numbers of entries removed: chunks, results and dead letters.
local function trim(keys, args)
  local log = keys[1]
  local age_ms, results_age_ms = whole(args[1], 0, MAX_TTL_MS), whole(args[2], 0, MAX_TTL_MS)
  local outage_ms, n = whole(args[3], 0, MAX_TTL_MS), whole(args[4], 0, 1e6)
  if not age_ms or not results_age_ms or not (outage_ms or args[3] == UNKNOWN) then
    return redis.error_reply('ERR a retention is not a number of ms')
  end
  if not n or #keys ~= 1 + n + 3 * (#args - 4 - n) then return redis.error_reply('ERR the groups do not fit the keys') end
  if type_of(log) == 'none' then return { 0, 0 } end
  local groups, leases, offsets = redis.call('XINFO', 'GROUPS', log), {}, {}
  for i = 1, n do leases[args[4 + i]] = keys[1 + i] end
  local chunks, results = 0, 0
  local keep = keep_from(groups, leases, age_ms, outage_ms)
  if keep then chunks = redis.call('XTRIM', log, 'MINID', keep) end
  if chunks > 0 then count_as_read(log, groups, keep) end
  for _, flat in ipairs(groups) do
    local group = as_map(flat)
    offsets[group['name']] = group['last-delivered-id']
  end
  for i = 0, #args - 5 - n do
    local out, dead, marks = unpack(keys, 2 + n + 3 * i, 4 + n + 3 * i)
    local offset = offsets[args[5 + n + i]]
    local upto = offset and published_before(marks, offset, results_age_ms)
    if upto then results = results + trim_upto(out, upto) + trim_upto(dead, upto) end
  end
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

-- keys: dead; args: after, last (ids), most, reason, stream ('': any). Dead letters in short, oldest first: a letter may be of
-- megabytes, and there may be a hundred thousand.
-- where to go on ('' at the end), then (id reason stream seq data_bytes cut) of each
local function dead_letters(keys, args)
  local after, last, most, reason, stream = args[1], args[2], whole(args[3], 1, 1e5), args[4], args[5]
  if not halves(after) or not halves(last) or not most then return redis.error_reply('ERR not a range of dead letters') end
  local reply, bytes = { '' }, 0
  for _ = 1, MAX_LOOKED_AT do
    if #reply > most or bytes > MAX_LOOKED_AT_BYTES then break end
    if not before(after, last) then return reply end
    local entry = redis.call('XRANGE', keys[1], '(' .. after, last, 'COUNT', 1)[1]
    if not entry then
      reply[1] = ''
      return reply
    end
    local fields = as_map(entry[2])
    after = entry[1]
    reply[1] = after
    for name, value in pairs(fields) do bytes = bytes + #name + #value end
    if (reason == '' or fields['reason'] == reason) and (stream == '' or fields['stream'] == stream) then
      reply[#reply + 1] = { after, string.sub(fields['reason'] or '', 1, 200), string.sub(fields['stream'] or '', 1, 200),
        string.sub(fields['seq'] or '', 1, 40), #(fields['data'] or ''), fields['cut'] and 1 or 0 }
    end
  end
  if not before(after, last) then reply[1] = '' end
  return reply
end

-- The fields of a chunk as they were pushed, from those of its dead letter; nil when it was cut, and is no whole chunk.
local function as_pushed(letter)
  local fields = {}
  for i = 1, #letter, 2 do
    local name = letter[i]
    if name == 'cut' then return nil end
    if string.sub(name, 1, 6) == 'entry.' then name = string.sub(name, 7) end
    if letter[i] ~= 'reason' and letter[i] ~= 'message' then
      fields[#fields + 1] = name
      fields[#fields + 1] = letter[i + 1]
    end
  end
  return #fields > 0 and #fields <= MAX_FIELDS and fields or nil
end

-- keys: log dead; args: ids of letters. Each goes back to the end of the log and out of the dead letters, or stays.
-- for each: OK new_id | MISSING | CUT | FAILED why
local function retry(keys, args)
  local log, dead, reply = keys[1], keys[2], {}
  for _, id in ipairs(args) do
    if not halves(id) then return redis.error_reply('ERR ' .. id .. ' is no id of a dead letter') end
  end
  if not redis.acl_check_cmd('XDEL', dead, '0-0') then return redis.error_reply('NOPERM this user may not run XDEL') end
  for i, id in ipairs(args) do
    local entry = redis.call('XRANGE', dead, id, id)[1]
    local fields = entry and as_pushed(entry[2])
    if fields then
      local added = redis.pcall('XADD', log, '*', unpack(fields))
      if type(added) == 'table' and added.err then
        if i == 1 then return added end
        reply[i] = { 'FAILED', added.err }
      else
        redis.call('XDEL', dead, id)
        reply[i] = { 'OK', added }
      end
    else
      reply[i] = { entry and 'CUT' or 'MISSING' }
    end
  end
  return reply
end

local function part(list, first, count)
  if count <= MAX_UNPACKED then return { unpack(list, first, first + count - 1) } end
  local found = {}
  for i = 1, count do found[i] = list[first + i - 1] end
  return found
end

-- One act on several partitions in one call: as many calls would do it, one after the other, but whoever waits for what
-- they write is woken once, when all of it is there.
-- keys: of all; args: how many calls, then of each the numbers of its keys and of its arguments, then the arguments of all
-- What each would reply, or its error, which does not keep the others from being done.
local function many(act)
  return function(keys, args)
    local count, n_keys, n_args = whole(args[1], 1, #args), {}, {}
    local key, at = 1, 2 + 2 * (count or 0)
    for i = 1, count or 0 do
      n_keys[i], n_args[i] = whole(args[2 * i], 0, #keys), whole(args[2 * i + 1], 0, #args)
      if not n_keys[i] or not n_args[i] then return redis.error_reply('ERR not a number of keys, or of arguments') end
      key, at = key + n_keys[i], at + n_args[i]
    end
    if not count or key ~= #keys + 1 or at ~= #args + 1 then
      return redis.error_reply('ERR the numbers of calls, keys and arguments do not fit')
    end
    local replies = {}
    key, at = 1, 2 + 2 * count
    for i = 1, count do
      local mine, said = part(keys, key, n_keys[i]), part(args, at, n_args[i])
      -- Nothing else on this line: a script that is killed goes on to the end of the line that called pcall.
      local done, reply = pcall(act, mine, said)
      if not done and type(reply) == 'string' then
        reply = redis.error_reply(string.find(reply, '^%u+ ') and reply or 'ERR ' .. reply)
      end
      replies[i] = reply
      key, at = key + n_keys[i], at + n_args[i]
    end
    return replies
  end
end

local function offer(name, act, flags)
  register(name, function(keys, args)
    if not redis then redis, math, string, table, ipairs, pairs, pcall, tonumber, type, unpack = globals() end
    return act(keys, args)
  end, flags)
end

-- Out of memory, Redis refuses the functions that need some. The others must work on: they let a worker
-- start and keep its leases, or free memory.
offer('sb_commit', commit, {})
offer('sb_commit_many', many(commit), {})
offer('sb_append', append, {})
offer('sb_append_many', many(append), {})
offer('sb_begin', begin, {})
offer('sb_resume', resume, {})
offer('sb_create_topic', create_topic, { 'allow-oom' })
offer('sb_acquire', acquire, { 'allow-oom' })
offer('sb_renew', renew, { 'allow-oom' })
offer('sb_release', release, { 'allow-oom' })
offer('sb_join', join, { 'allow-oom' })
offer('sb_leave', leave, { 'allow-oom' })
offer('sb_trim', trim, { 'allow-oom' })
offer('sb_backlog', backlog, { 'no-writes' })
offer('sb_dead_letters', dead_letters, { 'no-writes' })
offer('sb_retry', retry, {})
