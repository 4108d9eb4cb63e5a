-- 0004_rounds.sql: rounds, their seats, who holds them, and what comes back.

CREATE TABLE round (
    id              bigint      GENERATED ALWAYS AS IDENTITY,
    run_id          text        NOT NULL,
    number          integer     NOT NULL,
    attempt         integer     NOT NULL DEFAULT 1,
    base            integer     NOT NULL GENERATED ALWAYS AS (number - 1) STORED,
    state           text        NOT NULL DEFAULT 'pending',
    reason          text,
    silos_expected  integer     NOT NULL,
    quorum          integer     NOT NULL,
    eligible        text[]      NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    opened_at       timestamptz,
    deadline        timestamptz,
    cap_at          timestamptz,
    sealed_at       timestamptz,
    closed_at       timestamptz,
    agg_epoch       bigint      NOT NULL DEFAULT 0,
    manifest        bytea,
    manifest_rev    integer     NOT NULL DEFAULT 0,
    aggregate_s     double precision,
    delta_norm      double precision,
    outer_step_norm double precision,
    train_loss      double precision,
    tokens          bigint,

    CONSTRAINT round_pk             PRIMARY KEY (id),
    CONSTRAINT round_of_run         UNIQUE (id, run_id),
    CONSTRAINT round_run_fk         FOREIGN KEY (run_id) REFERENCES run (id),
    CONSTRAINT round_attempt_once   UNIQUE (run_id, number, attempt),
    CONSTRAINT round_base_fk        FOREIGN KEY (run_id, base) REFERENCES checkpoint (run_id, number),
    CONSTRAINT round_from_one       CHECK (number >= 1 AND attempt >= 1),
    CONSTRAINT round_state_known    CHECK (state IN ('pending', 'open', 'aggregating', 'closed', 'aborted')),
    CONSTRAINT round_quorum         CHECK (1 <= quorum AND quorum <= silos_expected),
    CONSTRAINT round_open_has_times CHECK (state = 'aborted' OR (state = 'pending') = (opened_at IS NULL)),
    CONSTRAINT round_times_together CHECK (num_nulls(opened_at, deadline, cap_at) IN (0, 3)),
    CONSTRAINT round_deadline_capped CHECK (opened_at <= deadline AND deadline <= cap_at),
    CONSTRAINT round_seal_has_time  CHECK (state NOT IN ('aggregating', 'closed') OR sealed_at IS NOT NULL),
    CONSTRAINT round_close_has_time CHECK ((state IN ('closed', 'aborted')) = (closed_at IS NOT NULL)),
    CONSTRAINT round_manifest_known CHECK (CASE WHEN state IN ('aggregating', 'closed') THEN manifest IS NOT NULL
                                                WHEN state = 'aborted' THEN true
                                                ELSE manifest IS NULL END),
    CONSTRAINT round_manifest_sha256 CHECK (octet_length(manifest) = 32)
);
COMMENT ON TABLE  round                IS 'One outer step of a run; its rules are in server/round.h.';
COMMENT ON COLUMN round.attempt        IS 'Grows when a round is aborted and opened again with its sound updates.';
COMMENT ON COLUMN round.silos_expected IS 'Updates that seal the round at once; more seats than these are drawn when over-sampling.';
COMMENT ON COLUMN round.eligible       IS 'Names in the order of the draw: seats first, then spares. Any draw can be replayed from it.';
COMMENT ON COLUMN round.deadline       IS 'Past this the round is sealed with a quorum of updates.';
COMMENT ON COLUMN round.cap_at         IS 'Past this it is aborted without a quorum.';
COMMENT ON COLUMN round.agg_epoch      IS 'The fence: only the aggregation that holds the newest epoch may publish.';
COMMENT ON COLUMN round.manifest       IS 'What manifest_now said at the seal.';
-- A run works on one round at a time: two servers racing to open the next one cannot both win.
CREATE UNIQUE INDEX round_one_live ON round (run_id) WHERE state IN ('pending', 'open', 'aggregating');
CREATE UNIQUE INDEX round_closed_once ON round (run_id, number) WHERE state = 'closed';
CREATE TRIGGER round_step BEFORE UPDATE OF state ON round FOR EACH ROW WHEN (OLD.state <> NEW.state)
    EXECUTE FUNCTION refuse_other_steps('pending>open', 'open>aggregating', 'aggregating>closed',
        'pending>aborted', 'open>aborted', 'aggregating>aborted');
CREATE TRIGGER round_begins_pending BEFORE INSERT ON round FOR EACH ROW WHEN (NEW.state <> 'pending')
    EXECUTE FUNCTION refuse('a round begins as pending');
CREATE TRIGGER round_identity BEFORE UPDATE ON round FOR EACH ROW
    WHEN ((OLD.run_id, OLD.number, OLD.attempt) IS DISTINCT FROM (NEW.run_id, NEW.number, NEW.attempt)
          OR NEW.agg_epoch < OLD.agg_epoch OR NEW.manifest_rev < OLD.manifest_rev)
    EXECUTE FUNCTION refuse('a round stays what it is, and its epochs only grow');

CREATE TABLE task (
    id           text        NOT NULL,
    kind         text        NOT NULL,
    run_id       text        NOT NULL,
    round_id     bigint,
    number       integer     NOT NULL,
    base         integer     NOT NULL GENERATED ALWAYS AS (CASE kind WHEN 'train' THEN number - 1 ELSE number END) STORED,
    slot         integer     NOT NULL,
    silo_id      text        NOT NULL,
    state        text        NOT NULL DEFAULT 'pending',
    attempt      integer     NOT NULL DEFAULT 1,
    lease_epoch  bigint      NOT NULL DEFAULT 0,
    lease_until  timestamptz,
    free_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    open_at      timestamptz,
    plan_tokens  bigint      NOT NULL,
    steps        integer     NOT NULL DEFAULT 0,
    step         integer     NOT NULL DEFAULT 0,
    phase        text,
    tokens_per_s double precision,
    tokens       bigint,
    train_loss   double precision,
    download_s   double precision,
    train_s      double precision,
    encode_s     double precision,
    upload_s     double precision,
    nll          double precision,
    eval_tokens  bigint,
    eval_bytes   bigint,
    eval_s       double precision,
    fail_code    text,
    fail_detail  text,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at      timestamptz,

    CONSTRAINT task_pk             PRIMARY KEY (id),
    CONSTRAINT task_id_pattern     CHECK (id ~ '^t_[0-9A-HJKMNP-TV-Z]{26}$'),
    CONSTRAINT task_kind_known     CHECK (kind IN ('train', 'evaluate')),
    CONSTRAINT task_round_of_train CHECK ((kind = 'train') = (round_id IS NOT NULL)),
    CONSTRAINT task_run_fk         FOREIGN KEY (run_id) REFERENCES run (id),
    CONSTRAINT task_round_fk       FOREIGN KEY (round_id, run_id) REFERENCES round (id, run_id),
    CONSTRAINT task_base_fk        FOREIGN KEY (run_id, base) REFERENCES checkpoint (run_id, number),
    CONSTRAINT task_silo_fk        FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT task_seat_once      UNIQUE (round_id, slot),
    CONSTRAINT task_state_known    CHECK (state IN ('pending', 'leased', 'done', 'cancelled', 'failed')),
    CONSTRAINT task_lease_has_end  CHECK ((state = 'leased') = (lease_until IS NOT NULL)),
    CONSTRAINT task_counts         CHECK (slot >= 0 AND attempt BETWEEN 1 AND 3 AND lease_epoch >= 0 AND step >= 0
                                          AND steps >= 0 AND plan_tokens >= 0),
    CONSTRAINT task_lease_numbered CHECK (state NOT IN ('leased', 'done') OR lease_epoch >= 1),
    CONSTRAINT task_eval_whole     CHECK ((kind = 'evaluate' AND state = 'done')
                                          = (num_nulls(nll, eval_tokens, eval_bytes) = 0)
                                          AND num_nulls(nll, eval_tokens, eval_bytes) IN (0, 3)),
    CONSTRAINT task_eval_finite    CHECK (is_finite(nll) AND eval_tokens >= 1 AND eval_bytes >= 0),
    CONSTRAINT task_phase_known    CHECK (phase IN ('download', 'train', 'encode', 'upload', 'evaluate'))
);
COMMENT ON TABLE  task             IS 'What one silo is asked to do: a seat in a round, or the evaluation of a checkpoint.';
COMMENT ON COLUMN task.number      IS 'The round it trains for, or the checkpoint it evaluates.';
COMMENT ON COLUMN task.base        IS 'The checkpoint its silo starts from.';
COMMENT ON COLUMN task.attempt     IS 'Which attempt at the seat this is; when the third fails, the task fails.';
COMMENT ON COLUMN task.lease_until IS 'After this the lease is expired, though still renewable until somebody else takes the seat.';
COMMENT ON COLUMN task.free_at     IS 'Its own silo may claim it from here on.';
COMMENT ON COLUMN task.open_at     IS 'Spares may claim it from here on while pending; null: never.';
COMMENT ON COLUMN task.plan_tokens IS 'Tokens the plan asks for: no update may claim more.';
CREATE UNIQUE INDEX task_silo_once ON task (round_id, silo_id) WHERE kind = 'train' AND state IN ('pending', 'leased', 'done');
CREATE UNIQUE INDEX task_evaluate_once ON task (run_id, number, silo_id) WHERE kind = 'evaluate';
CREATE INDEX task_of_run ON task (run_id, kind, number);
CREATE INDEX task_of_silo ON task (silo_id) WHERE state IN ('pending', 'leased');
CREATE TRIGGER task_step BEFORE UPDATE OF state ON task FOR EACH ROW WHEN (OLD.state <> NEW.state)
    EXECUTE FUNCTION refuse_other_steps('pending>leased', 'leased>done', 'leased>pending', 'pending>cancelled',
        'leased>cancelled', 'pending>failed', 'leased>failed');
CREATE TRIGGER task_begins_pending BEFORE INSERT ON task FOR EACH ROW WHEN (NEW.state <> 'pending')
    EXECUTE FUNCTION refuse('a task begins as pending');
CREATE TRIGGER task_identity BEFORE UPDATE ON task FOR EACH ROW
    WHEN ((OLD.id, OLD.kind, OLD.run_id, OLD.round_id, OLD.number, OLD.slot)
          IS DISTINCT FROM (NEW.id, NEW.kind, NEW.run_id, NEW.round_id, NEW.number, NEW.slot)
          OR NEW.lease_epoch < OLD.lease_epoch OR NEW.attempt < OLD.attempt)
    EXECUTE FUNCTION refuse('a task stays what it is, and its epoch only grows');
CREATE TRIGGER task_silo_kept BEFORE UPDATE OF silo_id ON task FOR EACH ROW
    WHEN (OLD.silo_id <> NEW.silo_id AND NOT (NEW.state = 'leased' AND NEW.lease_epoch > OLD.lease_epoch))
    EXECUTE FUNCTION refuse('a seat changes hands with a new lease only');

CREATE FUNCTION task_free() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('photon', 'tasks');
    RETURN NULL;
END
$$;
CREATE TRIGGER task_notify_new AFTER INSERT ON task FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('tasks');
CREATE TRIGGER task_notify_free AFTER UPDATE OF state ON task FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND NEW.state <> 'leased') EXECUTE FUNCTION task_free();

CREATE TABLE lease (
    task_id    text        NOT NULL,
    epoch      bigint      NOT NULL,
    silo_id    text        NOT NULL,
    agent      text        NOT NULL DEFAULT '',
    claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    step       integer     NOT NULL DEFAULT 0,
    ended_at   timestamptz,
    outcome    text,

    CONSTRAINT lease_pk            PRIMARY KEY (task_id, epoch),
    CONSTRAINT lease_of_silo       UNIQUE (task_id, epoch, silo_id),
    CONSTRAINT lease_task_fk       FOREIGN KEY (task_id) REFERENCES task (id),
    CONSTRAINT lease_silo_fk       FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT lease_epoch_counted CHECK (epoch >= 1 AND step >= 0),
    CONSTRAINT lease_outcome_known CHECK (outcome IN ('accepted', 'failed', 'expired', 'released', 'superseded', 'cancelled')),
    CONSTRAINT lease_end_has_time  CHECK ((outcome IS NULL) = (ended_at IS NULL))
);
COMMENT ON TABLE lease IS 'One row per claim, kept: who held what, and how long tasks took.';
CREATE UNIQUE INDEX lease_one_open ON lease (task_id) WHERE outcome IS NULL;
CREATE TRIGGER lease_ends_once BEFORE UPDATE ON lease FOR EACH ROW
    WHEN ((OLD.task_id, OLD.epoch, OLD.silo_id) IS DISTINCT FROM (NEW.task_id, NEW.epoch, NEW.silo_id)
          OR (OLD.outcome IS NOT NULL AND NEW.outcome IS DISTINCT FROM OLD.outcome))
    EXECUTE FUNCTION refuse('a lease ends once');

CREATE TABLE upload (
    id           text        NOT NULL,
    task_id      text        NOT NULL,
    silo_id      text        NOT NULL,
    epoch        bigint      NOT NULL,
    sha256       bytea       NOT NULL,
    bytes        bigint      NOT NULL,
    received     bigint      NOT NULL DEFAULT 0,
    codec        text        NOT NULL,
    tokens       bigint      NOT NULL,
    steps        integer     NOT NULL,
    train_loss   double precision,
    download_s   double precision,
    train_s      double precision,
    encode_s     double precision,
    upload_s     double precision,
    state        text        NOT NULL DEFAULT 'open',
    code         text,
    detail       text,
    writer_epoch bigint      NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    touched_at   timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT upload_pk            PRIMARY KEY (id),
    CONSTRAINT upload_id_pattern    CHECK (id ~ '^u_[0-9A-HJKMNP-TV-Z]{26}$'),
    CONSTRAINT upload_lease_fk      FOREIGN KEY (task_id, epoch, silo_id) REFERENCES lease (task_id, epoch, silo_id),
    CONSTRAINT upload_sha256        CHECK (octet_length(sha256) = 32),
    CONSTRAINT upload_bytes_bounded CHECK (bytes >= 1 AND received BETWEEN 0 AND bytes),
    CONSTRAINT upload_counts        CHECK (tokens >= 0 AND steps >= 0),
    CONSTRAINT upload_state_known   CHECK (state IN ('open', 'placed', 'accepted', 'refused', 'expired')),
    CONSTRAINT upload_placed_whole  CHECK (state NOT IN ('placed', 'accepted') OR received = bytes),
    CONSTRAINT upload_refused_why   CHECK (state <> 'refused' OR code IS NOT NULL)
);
COMMENT ON TABLE  upload              IS 'One update file on its way; asking for the same one again gives the same row.';
COMMENT ON COLUMN upload.epoch        IS 'The lease under which it was created; the finish names the current one.';
COMMENT ON COLUMN upload.received     IS 'The durable offset: never a byte that is not on disk, never going back.';
COMMENT ON COLUMN upload.writer_epoch IS 'Raised by each request that writes, checked at its commit: one writer at a time.';
COMMENT ON COLUMN upload.code         IS 'Why it was refused: the API''s error code.';
CREATE UNIQUE INDEX upload_once ON upload (task_id, silo_id, sha256) WHERE state NOT IN ('refused', 'expired');
CREATE INDEX upload_open ON upload (touched_at) WHERE state IN ('open', 'placed');
CREATE TRIGGER upload_step BEFORE UPDATE OF state ON upload FOR EACH ROW WHEN (OLD.state <> NEW.state)
    EXECUTE FUNCTION refuse_other_steps('open>placed', 'placed>accepted', 'open>refused', 'open>expired',
        'placed>refused', 'placed>expired');
CREATE TRIGGER upload_begins_open BEFORE INSERT ON upload FOR EACH ROW WHEN (NEW.state <> 'open')
    EXECUTE FUNCTION refuse('an upload begins as open');
CREATE TRIGGER upload_identity BEFORE UPDATE ON upload FOR EACH ROW
    WHEN ((OLD.id, OLD.task_id, OLD.silo_id, OLD.sha256, OLD.bytes, OLD.codec, OLD.tokens)
          IS DISTINCT FROM (NEW.id, NEW.task_id, NEW.silo_id, NEW.sha256, NEW.bytes, NEW.codec, NEW.tokens)
          OR NEW.received < OLD.received OR NEW.writer_epoch < OLD.writer_epoch)
    EXECUTE FUNCTION refuse('an upload stays what it is, and its offset never goes back');

CREATE TABLE upload_leaf (
    upload_id text    NOT NULL,
    leaf      integer NOT NULL,
    bytes     bigint  NOT NULL,
    sha256    bytea,
    crc32c    bytea,

    CONSTRAINT upload_leaf_pk        PRIMARY KEY (upload_id, leaf),
    CONSTRAINT upload_leaf_upload_fk FOREIGN KEY (upload_id) REFERENCES upload (id) ON DELETE CASCADE,
    CONSTRAINT upload_leaf_bounded   CHECK (leaf >= 0 AND bytes BETWEEN 1 AND 67108864),
    CONSTRAINT upload_leaf_digests   CHECK (octet_length(sha256) = 32 AND octet_length(crc32c) = 4)
);
COMMENT ON COLUMN upload_leaf.bytes  IS 'Durable bytes of the leaf.';
COMMENT ON COLUMN upload_leaf.sha256 IS 'Once the leaf is whole.';

CREATE TABLE update (
    id           bigint      GENERATED ALWAYS AS IDENTITY,
    round_id     bigint      NOT NULL,
    slot         integer     NOT NULL,
    task_id      text        NOT NULL,
    silo_id      text        NOT NULL,
    lease_epoch  bigint      NOT NULL,
    upload_id    text,
    carried_from bigint,
    digest       bytea       NOT NULL,
    bytes        bigint      NOT NULL,
    codec        text        NOT NULL,
    tokens       bigint      NOT NULL,
    steps        integer     NOT NULL,
    train_loss   double precision,
    norm         double precision,
    cosine       double precision,
    state        text        NOT NULL DEFAULT 'accepted',
    kept         boolean     NOT NULL DEFAULT true,
    kept_digest  bytea       GENERATED ALWAYS AS (CASE WHEN kept THEN digest END) STORED,
    accepted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT update_pk            PRIMARY KEY (id),
    CONSTRAINT update_seat_fk       FOREIGN KEY (round_id, slot) REFERENCES task (round_id, slot),
    CONSTRAINT update_lease_fk      FOREIGN KEY (task_id, lease_epoch, silo_id) REFERENCES lease (task_id, epoch, silo_id),
    CONSTRAINT update_upload_fk     FOREIGN KEY (upload_id) REFERENCES upload (id),
    CONSTRAINT update_carried_fk    FOREIGN KEY (carried_from) REFERENCES update (id),
    CONSTRAINT update_upload_once   UNIQUE (upload_id),
    CONSTRAINT update_one_source    CHECK (num_nonnulls(upload_id, carried_from) = 1),
    CONSTRAINT update_digest_sha256 CHECK (octet_length(digest) = 32),
    CONSTRAINT update_blob_fk       FOREIGN KEY (kept_digest) REFERENCES blob (digest),
    CONSTRAINT update_counts        CHECK (bytes >= 1 AND tokens >= 1 AND steps >= 0),
    CONSTRAINT update_state_known   CHECK (state IN ('accepted', 'corrupt', 'excluded')),
    CONSTRAINT update_finite        CHECK (is_finite(train_loss) AND is_finite(norm) AND is_finite(cosine))
);
COMMENT ON TABLE  update              IS 'One silo''s accepted delta. upload_id is the key under which an accept may be repeated.';
COMMENT ON COLUMN update.carried_from IS 'The same update in the aborted attempt before, instead of an upload.';
COMMENT ON COLUMN update.norm         IS 'L2 norm, measured while aggregating; cosine is with the averaged delta.';
COMMENT ON COLUMN update.kept         IS 'False: the numbers remain, the file may be gone.';
CREATE UNIQUE INDEX update_seat_counts_once ON update (round_id, slot) WHERE state = 'accepted';
CREATE UNIQUE INDEX update_silo_counts_once ON update (round_id, silo_id) WHERE state = 'accepted';
CREATE INDEX update_by_digest ON update (kept_digest);
CREATE TRIGGER update_step BEFORE UPDATE OF state ON update FOR EACH ROW WHEN (OLD.state <> NEW.state)
    EXECUTE FUNCTION refuse_other_steps('accepted>corrupt', 'accepted>excluded');
CREATE TRIGGER update_immutable BEFORE UPDATE ON update FOR EACH ROW
    WHEN ((OLD.round_id, OLD.slot, OLD.task_id, OLD.silo_id, OLD.lease_epoch, OLD.upload_id, OLD.carried_from, OLD.digest, OLD.tokens)
          IS DISTINCT FROM (NEW.round_id, NEW.slot, NEW.task_id, NEW.silo_id, NEW.lease_epoch, NEW.upload_id, NEW.carried_from, NEW.digest, NEW.tokens)
          OR (NEW.kept AND NOT OLD.kept))
    EXECUTE FUNCTION refuse('an accepted update never changes');

-- The last line behind the locks of accept: an update fits its round, its seat, its plan and its upload.
CREATE FUNCTION update_must_fit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    why text;
BEGIN
    SELECT CASE WHEN t.kind <> 'train' OR t.round_id <> NEW.round_id OR t.slot <> NEW.slot THEN 'it is for another seat'
                WHEN q.state <> 'open' THEN 'its round is ' || q.state
                WHEN t.lease_epoch <> NEW.lease_epoch OR t.silo_id <> NEW.silo_id THEN 'its lease is not the current one'
                WHEN NEW.tokens > t.plan_tokens THEN 'it claims more tokens than the plan'
                WHEN NEW.upload_id IS NOT NULL AND (u.task_id, u.silo_id, u.sha256, u.state IN ('placed', 'accepted'))
                     IS DISTINCT FROM (NEW.task_id, NEW.silo_id, NEW.digest, true) THEN 'its upload is not that file, or not whole'
                WHEN NEW.carried_from IS NOT NULL AND (c.silo_id, c.digest, c.tokens, c.state)
                     IS DISTINCT FROM (NEW.silo_id, NEW.digest, NEW.tokens, 'accepted') THEN 'what it is carried from is another update'
           END
      INTO STRICT why
      FROM task t
      JOIN round q ON q.id = t.round_id
      LEFT JOIN upload u ON u.id = NEW.upload_id
      LEFT JOIN update c ON c.id = NEW.carried_from
     WHERE t.id = NEW.task_id;
    IF why IS NOT NULL THEN
        RAISE EXCEPTION 'update refused: %', why
            USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER update_fits BEFORE INSERT ON update FOR EACH ROW EXECUTE FUNCTION update_must_fit();

CREATE VIEW manifest_now AS
    SELECT round_id,
           sha256(string_agg(int4send(slot) || digest || int8send(tokens), ''::bytea ORDER BY slot)) AS m,
           count(*) AS n
      FROM update
     WHERE state = 'accepted'
     GROUP BY round_id;
COMMENT ON VIEW manifest_now IS 'Per round the digest over (slot u32 BE, digest, tokens u64 BE) of its accepted updates, and their count.';
