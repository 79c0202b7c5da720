-- For wrk: posts bodies of many sizes and counts the answers that are not one of them, whole.
local threads, sent = {}, 0
local sizes = {0, 1, 7, 100, 1000, 4096, 16384, 65536, 200000}

function setup(thread)
   table.insert(threads, thread)
end

function init()
   wrong = 0
end

-- A body says how long it is, and ends in a mark.
local function body_of(size)
   return string.format("%06d", size) .. string.rep("x", size) .. "."
end

function request()
   sent = sent + 1
   return wrk.format("POST", "/echo", nil, body_of(sizes[sent % #sizes + 1]))
end

function response(status, headers, body)
   if body ~= body_of(tonumber(string.sub(body, 1, 6)) or -1) then
      wrong = wrong + 1
   end
end

function done()
   local total = 0
   for _, thread in ipairs(threads) do
      total = total + thread:get("wrong")
   end
   print(total .. " wrong answers")
end
