-- What executions have read from disks, and written to them. Of those that were kept before, nothing is known.
ALTER TABLE executions
    ADD COLUMN disk_read_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN disk_written_bytes bigint NOT NULL DEFAULT 0;
