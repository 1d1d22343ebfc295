-- Which requests used which version of a saved config; 0: none, or one that is not in the store.
ALTER TABLE requests ADD COLUMN config_version BIGINT NOT NULL DEFAULT 0;
