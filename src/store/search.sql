-- Searches and sums over a month of requests. WITHOUT ROWID is SQLite's alone.

-- Rows of requests are read by the million when usage is summed up: what is read one by one is kept beside them.
CREATE TABLE records (
    request_id TEXT NOT NULL PRIMARY KEY REFERENCES requests (id) ON DELETE CASCADE,
    record BLOB NOT NULL
) WITHOUT ROWID;
INSERT INTO records SELECT id, record FROM requests;
ALTER TABLE requests DROP COLUMN record;

-- What a search can tell apart in an index, without reading rows (src/store/words.rs). -1: nobody knows, read the row.
ALTER TABLE requests ADD COLUMN words BIGINT NOT NULL DEFAULT -1;
ALTER TABLE requests ADD COLUMN metadata_words BIGINT NOT NULL DEFAULT -1;
DROP INDEX requests_by_time;
DROP INDEX requests_by_trace;
DROP INDEX requests_by_provider;
DROP INDEX requests_by_config;
DROP INDEX requests_by_caller;
DROP INDEX requests_that_failed;
DROP INDEX requests_that_fell_back;
CREATE INDEX requests_by_time ON requests (tenant, created_ms, words, metadata_words, cost_nanos);
-- In the order of answers: SQLite would take the index by time for the sake of that.
CREATE INDEX requests_by_trace ON requests (tenant, trace_id, created_ms);
CREATE INDEX requests_by_provider ON requests (tenant, provider, created_ms, words, metadata_words, cost_nanos);
CREATE INDEX requests_by_model ON requests (tenant, model, created_ms, words, metadata_words, cost_nanos);
-- With the version, which only requests of a config are searched for.
CREATE INDEX requests_by_config ON requests (tenant, config, created_ms, words, metadata_words, cost_nanos, config_version);
CREATE INDEX requests_by_caller ON requests (tenant, caller, created_ms, words, metadata_words, cost_nanos);
CREATE INDEX requests_by_virtual_key ON requests (tenant, virtual_key, created_ms, words, metadata_words, cost_nanos);
CREATE INDEX requests_by_cache_status ON requests (tenant, cache_status, created_ms, words, metadata_words, cost_nanos)
    WHERE cache_status <> '';
CREATE INDEX requests_that_failed ON requests (tenant, created_ms, words, metadata_words, cost_nanos)
    WHERE status >= 400;
CREATE INDEX requests_that_fell_back ON requests (tenant, created_ms, words, metadata_words, cost_nanos)
    WHERE fallback = 1;
CREATE INDEX requests_that_were_refused ON requests (tenant, created_ms, words, metadata_words, cost_nanos)
    WHERE refused = 1;

ALTER TABLE request_metadata RENAME TO old_metadata;
DROP INDEX metadata_of_request;
CREATE TABLE request_metadata (
    request_id TEXT NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (request_id, name)
) WITHOUT ROWID;
INSERT INTO request_metadata SELECT request_id, name, value FROM old_metadata;
DROP TABLE old_metadata;
CREATE INDEX metadata_by_value ON request_metadata (name, value);

-- One row for each provider and model that was paid for a request, and none where that is who answered.
ALTER TABLE costs RENAME TO old_costs;
CREATE TABLE costs (
    request_id TEXT NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    unknown BIGINT NOT NULL,
    PRIMARY KEY (request_id, provider, model)
) WITHOUT ROWID;
INSERT INTO costs SELECT request_id, provider, model, cost_nanos, unknown FROM old_costs;
DROP TABLE old_costs;
