-- Which requests used which version of a saved config; 0: none, or one that is not in the store.
ALTER TABLE requests ADD COLUMN config_version BIGINT NOT NULL DEFAULT 0;
-- With the id, or else SQLite would rather read all of a tenant's requests in their order.
CREATE INDEX requests_by_version ON requests (tenant, config, config_version, created_ms, id);
