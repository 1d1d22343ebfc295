-- Times are milliseconds since 1970, money is billionths of a US dollar: sums are exact.
-- BLOB is BYTEA in PostgreSQL.

CREATE TABLE revision (
    id BIGINT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO revision (id, value) VALUES (1, 1);

CREATE TABLE configs (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    is_default BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    updated_by TEXT NOT NULL,
    UNIQUE (tenant, slug)
);

CREATE TABLE config_versions (
    config_id TEXT NOT NULL REFERENCES configs (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    version_id TEXT NOT NULL,
    content TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (config_id, version)
);

CREATE TABLE virtual_keys (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    provider TEXT NOT NULL,
    note TEXT NOT NULL,
    base_url TEXT NOT NULL,
    option_names TEXT NOT NULL,
    sealed BLOB NOT NULL,
    disabled BIGINT NOT NULL,
    expires_ms BIGINT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    UNIQUE (tenant, slug)
);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    hint TEXT NOT NULL,
    old_digest TEXT,
    old_expires_ms BIGINT,
    record BLOB NOT NULL,
    disabled BIGINT NOT NULL,
    expires_ms BIGINT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL
);

CREATE TABLE requests (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    trace_id TEXT NOT NULL,
    caller TEXT NOT NULL,
    config TEXT NOT NULL,
    operation TEXT NOT NULL,
    outcome TEXT NOT NULL,
    status BIGINT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    virtual_key TEXT NOT NULL,
    fallback BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    cache_status TEXT NOT NULL,
    images BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    cost_nanos BIGINT,
    cost_unknown BIGINT NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX requests_by_time ON requests (tenant, created_ms, id);
CREATE INDEX requests_by_trace ON requests (trace_id);
CREATE INDEX requests_by_provider ON requests (tenant, provider, created_ms);
CREATE INDEX requests_by_config ON requests (tenant, config, created_ms);
CREATE INDEX requests_by_caller ON requests (tenant, caller, created_ms);
CREATE INDEX requests_that_failed ON requests (tenant, created_ms) WHERE status >= 400;
CREATE INDEX requests_that_fell_back ON requests (tenant, created_ms) WHERE fallback = 1;
CREATE INDEX requests_by_age ON requests (created_ms);

CREATE TABLE request_metadata (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    request_id TEXT NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    PRIMARY KEY (name, value, request_id)
);
CREATE INDEX metadata_of_request ON request_metadata (request_id);

-- One row for each provider and model that a request cost something at, failed attempts too.
CREATE TABLE costs (
    request_id TEXT NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    unknown BIGINT NOT NULL,
    PRIMARY KEY (request_id, provider, model)
);

CREATE TABLE feedback (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    value BIGINT NOT NULL,
    weight DOUBLE PRECISION NOT NULL,
    metadata TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX feedback_by_trace ON feedback (tenant, trace_id);
