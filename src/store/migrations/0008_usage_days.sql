-- Sums of usage by UTC day, and what requests of one kind are found by. Types and syntax that SQLite and Postgres share; INTEGER as in
-- 0002: in Postgres, these columns are BIGINT.

-- Requests of one account, key, model and provider make a series. Series are added, in the transaction of their first request, and
-- never changed or deleted.
CREATE TABLE usage_series (
    id INTEGER NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    UNIQUE (account_id, key_id, model, provider)
);
INSERT INTO usage_series (id, account_id, key_id, model, provider)
    SELECT ROW_NUMBER() OVER (ORDER BY MIN(seq)), account_id, key_id, model, provider
    FROM usage_records GROUP BY account_id, key_id, model, provider;
CREATE INDEX usage_series_by_key ON usage_series (key_id);
CREATE INDEX usage_series_by_model ON usage_series (model);

ALTER TABLE usage_records ADD COLUMN series BIGINT NOT NULL DEFAULT 0;
-- What the provider charges; null where nobody has said what it would.
ALTER TABLE usage_records ADD COLUMN provider_cost_nano_usd BIGINT;
UPDATE usage_records SET series = s.id FROM usage_series AS s
    WHERE s.account_id = usage_records.account_id AND s.key_id = usage_records.key_id
    AND s.model = usage_records.model AND s.provider = usage_records.provider;

-- The one index for whoever asks by account, key or model: it has two numbers where each of those would have had its name. What each
-- finished request has to be written into is what settling costs.
CREATE INDEX usage_records_by_series ON usage_records (series, started_at_ms);
DROP INDEX usage_records_by_account;

-- Sums over the requests of a series that began on a day, which is counted from the Unix epoch. Kept by the transaction that enters
-- the requests. `errors` are those that were answered with 400 or more, `uncosted` those that used tokens of which it is not known
-- what the provider charges for them.
CREATE TABLE usage_days (
    series BIGINT NOT NULL,
    day BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    provider_cost_nano_usd BIGINT NOT NULL,
    uncosted BIGINT NOT NULL,
    PRIMARY KEY (series, day)
);
INSERT INTO usage_days (series, day, requests, errors, input_tokens, cache_read_tokens, cache_write_5m_tokens,
        cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, uncosted)
    SELECT series, started_at_ms / 86400000 AS day, COUNT(*), SUM(CASE WHEN status >= 400 THEN 1 ELSE 0 END),
        SUM(input_tokens), SUM(cache_read_tokens), SUM(cache_write_5m_tokens), SUM(cache_write_1h_tokens),
        SUM(output_tokens), SUM(reasoning_tokens), SUM(cost_nano_usd), 0,
        SUM(CASE WHEN input_tokens + cache_read_tokens + cache_write_5m_tokens + cache_write_1h_tokens + output_tokens > 0
            THEN 1 ELSE 0 END)
    FROM usage_records GROUP BY series, started_at_ms / 86400000 ORDER BY day, series;

-- The same over all accounts and keys: what the operator looks at, which is few rows however many customers there are.
CREATE TABLE usage_totals (
    day BIGINT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    provider_cost_nano_usd BIGINT NOT NULL,
    uncosted BIGINT NOT NULL,
    PRIMARY KEY (day, model, provider)
);
INSERT INTO usage_totals (day, model, provider, requests, errors, input_tokens, cache_read_tokens, cache_write_5m_tokens,
        cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, uncosted)
    SELECT d.day, s.model, s.provider, SUM(d.requests), SUM(d.errors), SUM(d.input_tokens), SUM(d.cache_read_tokens),
        SUM(d.cache_write_5m_tokens), SUM(d.cache_write_1h_tokens), SUM(d.output_tokens), SUM(d.reasoning_tokens),
        SUM(d.cost_nano_usd), SUM(d.provider_cost_nano_usd), SUM(d.uncosted)
    FROM usage_days d JOIN usage_series s ON s.id = d.series GROUP BY d.day, s.model, s.provider;

-- The same over an account's keys and models: who is worth how much, among thousands.
CREATE TABLE usage_accounts (
    account_id TEXT NOT NULL,
    day BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    provider_cost_nano_usd BIGINT NOT NULL,
    uncosted BIGINT NOT NULL,
    PRIMARY KEY (account_id, day)
);
CREATE INDEX usage_accounts_by_day ON usage_accounts (day);
INSERT INTO usage_accounts (account_id, day, requests, errors, input_tokens, cache_read_tokens, cache_write_5m_tokens,
        cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, uncosted)
    SELECT s.account_id, d.day, SUM(d.requests), SUM(d.errors), SUM(d.input_tokens), SUM(d.cache_read_tokens),
        SUM(d.cache_write_5m_tokens), SUM(d.cache_write_1h_tokens), SUM(d.output_tokens), SUM(d.reasoning_tokens),
        SUM(d.cost_nano_usd), SUM(d.provider_cost_nano_usd), SUM(d.uncosted)
    FROM usage_days d JOIN usage_series s ON s.id = d.series GROUP BY s.account_id, d.day ORDER BY d.day, s.account_id;
