-- Runs that have ended. Written when a run ends, and once more, with all that happened to it since, when it leaves the
-- servers' memory.
CREATE TABLE runs (
    run text COLLATE "C" PRIMARY KEY,
    workflow text NOT NULL,
    project text NOT NULL,
    -- succeeded, failed or cancelled
    state text NOT NULL,
    submitted_by text NOT NULL,
    submitted_at timestamptz NOT NULL,
    started_at timestamptz,
    finished_at timestamptz NOT NULL,
    labels jsonb NOT NULL,
    sites text[] NOT NULL,
    outputs jsonb NOT NULL,
    error_step text,
    error text,
    -- Executions by state.
    executions jsonb NOT NULL,
    -- What a list shows of the run, and all of it, encoded with their formats: for Atoll alone.
    head bytea NOT NULL,
    document bytea NOT NULL
);
ALTER TABLE runs ALTER COLUMN document SET STORAGE EXTERNAL;
CREATE INDEX runs_by_time ON runs (submitted_at DESC, run DESC);
CREATE INDEX runs_by_end ON runs (finished_at);
CREATE INDEX runs_by_workflow ON runs (workflow, submitted_at DESC);
CREATE INDEX runs_by_project ON runs (project, submitted_at DESC);
CREATE INDEX runs_by_state ON runs (state, submitted_at DESC);
CREATE INDEX runs_by_label ON runs USING gin (labels jsonb_path_ops);
CREATE INDEX runs_by_site ON runs USING gin (sites);

CREATE TABLE executions (
    run text COLLATE "C" NOT NULL REFERENCES runs ON DELETE CASCADE,
    step text NOT NULL,
    -- The element of the step's fan-out; 0 without one.
    element bigint NOT NULL,
    attempt integer NOT NULL,
    -- succeeded, failed, cancelled, skipped; of a run that was cancelled also others
    state text NOT NULL,
    site text,
    submitted_at timestamptz NOT NULL,
    placed_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    exit_code integer,
    error text,
    cpu_seconds double precision NOT NULL,
    memory_bytes bigint NOT NULL,
    PRIMARY KEY (run, step, element)
);
CREATE INDEX executions_by_site ON executions (site, finished_at);
CREATE INDEX executions_by_end ON executions (finished_at);
