-- What the journal is, and what it is called. One row.
CREATE TABLE journal (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    identity text NOT NULL,
    format integer NOT NULL,
    -- SHA-256 of the public key of the installation's CA, in hexadecimal; null until a server has led.
    authority text,
    -- The last batch that the checkpoint stands for; 0 without one.
    checkpoint_seq bigint NOT NULL DEFAULT 0,
    -- Which of the checkpoints counts; 0 for none.
    checkpoint_generation bigint NOT NULL DEFAULT 0,
    checkpoint_parts integer NOT NULL DEFAULT 0,
    -- Of the checkpoint; that of later batches is at most journal.format.
    checkpoint_format integer NOT NULL DEFAULT 0
);

-- Who leads. One row: every append holds it locked and compares the epoch, every new leader changes it.
CREATE TABLE leader (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL,
    holder text NOT NULL,
    api_url text NOT NULL,
    agent_address text NOT NULL,
    since timestamptz NOT NULL
);

-- Until when the leader is believed unheard. A row of its own, so that a renewal never waits for an append.
CREATE TABLE lease (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Facts, encoded, in the order in which they were decided.
CREATE TABLE batches (
    seq bigint PRIMARY KEY,
    epoch bigint NOT NULL,
    -- The first 16 bytes of the BLAKE3 hash of seq (8 bytes, big-endian) and bytes.
    digest bytea NOT NULL,
    bytes bytea NOT NULL
);
ALTER TABLE batches ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- The state after batch journal.checkpoint_seq, encoded, in parts. Only those of journal.checkpoint_generation count.
CREATE TABLE checkpoint_parts (
    generation bigint NOT NULL,
    part integer NOT NULL,
    digest bytea NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (generation, part)
);
ALTER TABLE checkpoint_parts ALTER COLUMN bytes SET STORAGE EXTERNAL;
