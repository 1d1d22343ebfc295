-- What providers counted, of texts and images together.
ALTER TABLE requests ADD COLUMN input_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN output_tokens BIGINT NOT NULL DEFAULT 0;
CREATE INDEX feedback_by_time ON feedback (tenant, created_ms);
