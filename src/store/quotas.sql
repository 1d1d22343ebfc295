-- What has been used of limits: requests, or billionths of a US dollar. Times are milliseconds since 1970.

CREATE TABLE counters (
    counter TEXT NOT NULL,
    start_ms BIGINT NOT NULL,
    end_ms BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    PRIMARY KEY (counter, start_ms)
);
CREATE INDEX counters_by_end ON counters (end_ms);

ALTER TABLE virtual_keys ADD COLUMN quota BLOB ;
