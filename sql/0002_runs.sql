-- 0002_runs.sql: what is trained, by whom, and who may ask.

CREATE TABLE run (
    id              text        NOT NULL,
    name            text        NOT NULL,
    experiment      text        NOT NULL DEFAULT '',
    spec            jsonb       NOT NULL,
    spec_text       text        NOT NULL,
    spec_sha256     bytea       NOT NULL,
    preset          text        NOT NULL DEFAULT '',
    params          bigint      NOT NULL,
    state           text        NOT NULL DEFAULT 'created',
    reason          text,
    waiting_for     text,
    head            integer,
    rounds          integer     NOT NULL GENERATED ALWAYS AS ((spec -> 'federation' ->> 'rounds')::integer) STORED,
    silos_per_round integer     NOT NULL GENERATED ALWAYS AS ((spec -> 'federation' ->> 'silos_per_round')::integer) STORED,
    min_silos       integer     NOT NULL GENERATED ALWAYS AS ((spec -> 'federation' ->> 'min_silos')::integer) STORED,
    local_steps     integer     NOT NULL GENERATED ALWAYS AS ((spec -> 'federation' ->> 'local_steps')::integer) STORED,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at      timestamptz,
    finished_at     timestamptz,

    CONSTRAINT run_pk              PRIMARY KEY (id),
    CONSTRAINT run_id_pattern      CHECK (id ~ '^r_[0-9A-HJKMNP-TV-Z]{26}$'),
    CONSTRAINT run_name_once       UNIQUE (name),
    CONSTRAINT run_name_plain      CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    CONSTRAINT run_experiment_plain CHECK (experiment = '' OR experiment ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    CONSTRAINT run_spec_is_object  CHECK (jsonb_typeof(spec) = 'object'),
    CONSTRAINT run_spec_is_text    CHECK (spec_text::jsonb = spec),
    CONSTRAINT run_spec_digest     CHECK (spec_sha256 = sha256(convert_to(spec_text, 'UTF8'))),
    CONSTRAINT run_params_counted  CHECK (params >= 1),
    CONSTRAINT run_state_known     CHECK (state IN ('created', 'running', 'paused', 'finished', 'stopped', 'failed')),
    CONSTRAINT run_head_in_rounds  CHECK (head BETWEEN 0 AND rounds),
    CONSTRAINT run_rounds_counted  CHECK (rounds >= 1 AND local_steps >= 1),
    CONSTRAINT run_quorum_possible CHECK (1 <= min_silos AND min_silos <= silos_per_round),
    CONSTRAINT run_end_has_time    CHECK ((state IN ('finished', 'stopped', 'failed')) = (finished_at IS NOT NULL)),
    CONSTRAINT run_finished_whole  CHECK (state <> 'finished' OR head = rounds)
);
COMMENT ON TABLE  run             IS 'One training, with one immutable spec.';
COMMENT ON COLUMN run.spec_text   IS 'The spec as silos receive it, every default written out; spec is the same for queries.';
COMMENT ON COLUMN run.head        IS 'Number of the newest checkpoint; null until checkpoint 0 is drawn.';
COMMENT ON COLUMN run.reason      IS 'Why it paused, failed or stopped.';
COMMENT ON COLUMN run.waiting_for IS 'What the coordinator waits for, as a sentence; null when a round is under way.';
COMMENT ON COLUMN run.params      IS 'Parameters of the model.';
CREATE INDEX run_newest ON run (created_at DESC, id DESC);
CREATE INDEX run_live ON run (id) WHERE state IN ('created', 'running', 'paused');
CREATE INDEX run_of_experiment ON run (experiment);

CREATE TRIGGER run_step BEFORE UPDATE OF state ON run FOR EACH ROW WHEN (OLD.state <> NEW.state)
    EXECUTE FUNCTION refuse_other_steps('created>running', 'created>stopped', 'running>paused', 'paused>running',
        'running>finished', 'running>stopped', 'running>failed', 'paused>stopped', 'paused>failed');
CREATE TRIGGER run_begins_created BEFORE INSERT ON run FOR EACH ROW WHEN (NEW.state <> 'created' OR NEW.head IS NOT NULL)
    EXECUTE FUNCTION refuse('a run begins as created, without a checkpoint');
CREATE TRIGGER run_spec_immutable BEFORE UPDATE ON run FOR EACH ROW
    WHEN ((OLD.id, OLD.spec_text, OLD.spec, OLD.spec_sha256, OLD.params, OLD.preset)
          IS DISTINCT FROM (NEW.id, NEW.spec_text, NEW.spec, NEW.spec_sha256, NEW.params, NEW.preset))
    EXECUTE FUNCTION refuse('the spec of a run never changes');
CREATE TRIGGER run_head_by_one BEFORE UPDATE OF head ON run FOR EACH ROW
    WHEN (NEW.head IS DISTINCT FROM OLD.head AND NEW.head IS DISTINCT FROM coalesce(OLD.head + 1, 0))
    EXECUTE FUNCTION refuse('the head moves one checkpoint at a time');
CREATE TRIGGER run_updated_at BEFORE UPDATE ON run FOR EACH ROW EXECUTE FUNCTION stamp_updated_at();

CREATE FUNCTION run_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('photon', 'run:' || NEW.id);
    PERFORM pg_notify('photon', 'tasks');
    RETURN NULL;
END
$$;
CREATE TRIGGER run_notify AFTER INSERT OR UPDATE OF state, head ON run FOR EACH ROW EXECUTE FUNCTION run_changed();

CREATE TABLE silo (
    id               text        NOT NULL,
    name             text        NOT NULL,
    state            text        NOT NULL DEFAULT 'active',
    agent            text,
    version          text,
    device           text,
    tokenizer_sha256 text,
    train_tokens     bigint,
    heldout_tokens   bigint,
    tokens_per_s     double precision,
    phase            text        NOT NULL DEFAULT 'waiting',
    fails            integer     NOT NULL DEFAULT 0,
    failures         bigint      NOT NULL DEFAULT 0,
    gone             boolean     NOT NULL DEFAULT true,
    seen_at          timestamptz,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT silo_pk          PRIMARY KEY (id),
    CONSTRAINT silo_id_pattern  CHECK (id ~ '^s_[0-9A-HJKMNP-TV-Z]{26}$'),
    CONSTRAINT silo_name_once   UNIQUE (name),
    CONSTRAINT silo_name_plain  CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    CONSTRAINT silo_state_known CHECK (state IN ('active', 'paused', 'revoked')),
    CONSTRAINT silo_phase_known CHECK (phase IN ('waiting', 'download', 'train', 'encode', 'upload', 'evaluate')),
    CONSTRAINT silo_fails_count CHECK (fails >= 0 AND failures >= fails)
);
COMMENT ON TABLE  silo          IS 'One participant: an organisation''s machines, seen as one.';
COMMENT ON COLUMN silo.agent    IS 'Boot id of the agent that spoke last; another one beside it is an event.';
COMMENT ON COLUMN silo.phase    IS 'What its last heartbeat said it does; waiting when it polls.';
COMMENT ON COLUMN silo.fails    IS 'Failures in a row; an accepted update sets it to 0.';
COMMENT ON COLUMN silo.failures IS 'Failures in all.';
COMMENT ON COLUMN silo.gone     IS 'The coordinator noticed silence of three poll times and said so; hello and claim set it to false.';
CREATE TRIGGER silo_step BEFORE UPDATE OF state ON silo FOR EACH ROW WHEN (OLD.state <> NEW.state)
    EXECUTE FUNCTION refuse_other_steps('active>paused', 'paused>active', 'active>revoked', 'paused>revoked');
CREATE TRIGGER silo_notify AFTER INSERT OR UPDATE OF state ON silo FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('tasks');

CREATE TABLE run_silo (
    run_id       text        NOT NULL,
    silo_id      text        NOT NULL,
    left_out     integer     NOT NULL DEFAULT 0,
    aside_rounds integer     NOT NULL DEFAULT 0,
    joined_at    timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT run_silo_pk           PRIMARY KEY (run_id, silo_id),
    CONSTRAINT run_silo_run_fk       FOREIGN KEY (run_id) REFERENCES run (id),
    CONSTRAINT run_silo_silo_fk      FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT run_silo_counts       CHECK (left_out >= 0 AND aside_rounds >= 0)
);
COMMENT ON TABLE  run_silo              IS 'Silos that were eligible for a round of the run, so may read its files.';
COMMENT ON COLUMN run_silo.left_out     IS 'Rounds in a row it was eligible for without getting a seat.';
COMMENT ON COLUMN run_silo.aside_rounds IS 'Rounds it still sits out after three failures in a row.';
CREATE INDEX run_silo_by_silo ON run_silo (silo_id);

CREATE TABLE token (
    id         text        NOT NULL,
    hash       bytea       NOT NULL,
    role       text        NOT NULL,
    name       text        NOT NULL,
    silo_id    text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    used_at    timestamptz,

    CONSTRAINT token_pk          PRIMARY KEY (id),
    CONSTRAINT token_id_pattern  CHECK (id ~ '^k_[0-9A-HJKMNP-TV-Z]{26}$'),
    CONSTRAINT token_hash_once   UNIQUE (hash),
    CONSTRAINT token_hash_sha256 CHECK (octet_length(hash) = 32),
    CONSTRAINT token_role_known  CHECK (role IN ('viewer', 'admin', 'silo', 'join')),
    CONSTRAINT token_name_short  CHECK (name ~ '^[^[:cntrl:]]{1,63}$'),
    CONSTRAINT token_silo_fk     FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT token_of_silo     CHECK (CASE role WHEN 'silo' THEN silo_id IS NOT NULL WHEN 'join' THEN true ELSE silo_id IS NULL END)
);
COMMENT ON TABLE  token         IS 'Who may speak; the secret itself is nowhere, hash is its SHA-256.';
COMMENT ON COLUMN token.silo_id IS 'Whose token it is; for a join token the silo it made, null while unused.';
COMMENT ON COLUMN token.used_at IS 'Last use, to about a minute.';
CREATE INDEX token_by_silo ON token (silo_id);
CREATE TRIGGER token_immutable BEFORE UPDATE ON token FOR EACH ROW
    WHEN ((OLD.id, OLD.hash, OLD.role, OLD.name) IS DISTINCT FROM (NEW.id, NEW.hash, NEW.role, NEW.name)
          OR (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at)
          OR (OLD.silo_id IS NOT NULL AND NEW.silo_id IS DISTINCT FROM OLD.silo_id))
    EXECUTE FUNCTION refuse('a token is never changed into another, nor brought back');
CREATE TRIGGER token_notify AFTER UPDATE OF revoked_at ON token FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('tokens');
