-- The requests that wrk sends: the tokens of the pool in rotation, with a new Idempotency-Key on each if wanted.
-- Arguments: file of tokens, number of threads, first token of each, method, path, body or -, key (-, fresh or the
-- key itself), id of the run.
local threads = {}
-- What a host's proxies (here Cloudflare and Render) and a browser with tracing add to each request.
local ADDED = table.concat({
  "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "CF-Ray: 8f1c2d3e4f5a6b7c-FRA",
  "CF-Connecting-IP: 203.0.113.9", 'CF-Visitor: {"scheme":"https"}', "CDN-Loop: cloudflare; loops=1",
  "Accept: */*", "Accept-Language: en", "User-Agent: Mozilla/5.0", "Referer: https://app.example.com/",
  "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}, "\r\n")
local STATUSES = {200, 201, 400, 401, 404, 409, 422, 429, 500, 503}
local names = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init(args)
  local file, count_of_threads, first, method, path, body, key, run = unpack(args)
  for _, status in ipairs(STATUSES) do
    names[status] = "s" .. status
    _G["s" .. status] = 0
  end
  others = 0
  local head = method .. " " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n" .. ADDED .. "\r\nAuthorization: Bearer "
  local tail = "\r\n\r\n"
  if body ~= "-" then
    tail = "\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
  end
  if key ~= "-" and key ~= "fresh" then
    tail = "\r\nIdempotency-Key: " .. key .. tail
  end
  local pool, line = {}, 0
  for token in io.lines(file) do
    if line % tonumber(count_of_threads) == number then
      pool[#pool + 1] = head .. token
    end
    line = line + 1
  end
  local at = tonumber(first) % #pool
  if key == "fresh" then
    local count = 0
    request = function()
      at = at % #pool + 1
      count = count + 1
      return pool[at] .. "\r\nIdempotency-Key: bench-" .. run .. "-" .. number .. "-" .. count .. tail
    end
  else
    for place = 1, #pool do
      pool[place] = pool[place] .. tail
    end
    request = function()
      at = at % #pool + 1
      return pool[at]
    end
  end
end

function response(status)
  local name = names[status]
  if name then
    _G[name] = _G[name] + 1
  else
    others = others + 1
  end
end

function done(summary, latency)
  local counts = {}
  for _, status in ipairs(STATUSES) do
    local count = 0
    for _, thread in ipairs(threads) do
      count = count + thread:get("s" .. status)
    end
    if count > 0 then
      counts[#counts + 1] = string.format('"%d": %d', status, count)
    end
  end
  local other = 0
  for _, thread in ipairs(threads) do
    other = other + thread:get("others")
  end
  if other > 0 then
    counts[#counts + 1] = string.format('"other": %d', other)
  end
  local errors = summary.errors
  io.write(string.format(
    '\n{"microseconds": %d, "requests": %d, "p50": %d, "p99": %d, "max": %d, ' ..
      '"broken": %d, "statuses": {%s}}\n',
    summary.duration, summary.requests, latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect + errors.read + errors.write, table.concat(counts, ", ")))
end
