-- Which requests used which version of a saved config; 0: none, or one that is not in the store.
ALTER TABLE requests ADD COLUMN config_version BIGINT NOT NULL DEFAULT 0;
CREATE INDEX requests_by_version ON requests (tenant, config, config_version, created_ms) WHERE config_version > 0;
