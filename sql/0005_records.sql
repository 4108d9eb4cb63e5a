-- 0005_records.sql: what happened, what was measured, what was sent, and what lives.

CREATE TABLE event_kind (
    kind  text NOT NULL,
    topic text NOT NULL,

    CONSTRAINT event_kind_pk          PRIMARY KEY (kind),
    CONSTRAINT event_kind_topic_known CHECK (topic IN ('run', 'round', 'task', 'silo', 'checkpoint', 'metric', 'token'))
);
COMMENT ON COLUMN event_kind.topic IS 'The stream''s event name.';
INSERT INTO event_kind (kind, topic) VALUES
    ('run_created', 'run'), ('run_started', 'run'), ('run_paused', 'run'), ('run_resumed', 'run'), ('run_stopped', 'run'),
    ('run_finished', 'run'), ('run_failed', 'run'), ('run_starved', 'run'),
    ('round_opened', 'round'), ('round_sealed', 'round'), ('round_closed', 'round'), ('round_aborted', 'round'),
    ('task_claimed', 'task'), ('task_expired', 'task'), ('task_released', 'task'), ('task_failed', 'task'),
    ('update_accepted', 'task'), ('update_refused', 'task'), ('update_corrupt', 'task'),
    ('silo_joined', 'silo'), ('silo_seen', 'silo'), ('silo_gone', 'silo'), ('silo_paused', 'silo'), ('silo_resumed', 'silo'),
    ('silo_revoked', 'silo'), ('silo_aside', 'silo'), ('silo_left_out', 'silo'), ('silo_agents', 'silo'),
    ('checkpoint_created', 'checkpoint'), ('checkpoint_removed', 'checkpoint'),
    ('metrics_added', 'metric'), ('eval_done', 'metric'),
    ('token_created', 'token'), ('token_revoked', 'token');

CREATE TABLE event (
    id        bigint      GENERATED ALWAYS AS IDENTITY,
    xid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind      text        NOT NULL,
    run_id    text,
    round     integer,
    slot      integer,
    silo_id   text,
    update_id bigint,
    message   text        NOT NULL,
    detail    jsonb       NOT NULL DEFAULT '{}',
    chain_no  bigint,
    chain     bytea,

    CONSTRAINT event_pk            PRIMARY KEY (id),
    CONSTRAINT event_kind_fk       FOREIGN KEY (kind) REFERENCES event_kind (kind),
    CONSTRAINT event_run_fk        FOREIGN KEY (run_id) REFERENCES run (id),
    CONSTRAINT event_silo_fk       FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT event_update_fk     FOREIGN KEY (update_id) REFERENCES update (id),
    CONSTRAINT event_detail_object CHECK (jsonb_typeof(detail) = 'object'),
    CONSTRAINT event_accepted_what CHECK (kind <> 'update_accepted' OR update_id IS NOT NULL),
    CONSTRAINT event_chain_whole   CHECK ((chain IS NULL) = (chain_no IS NULL) AND octet_length(chain) = 32)
);
COMMENT ON TABLE  event       IS 'What happened, append-only. Readers follow (xid, id) below pg_snapshot_xmin(pg_current_snapshot()): '
                                 'ids alone are drawn before commits, so a reader of ids would miss rows.';
COMMENT ON COLUMN event.chain IS 'SHA-256 of the chain before it and the row, per run; filled when a round is published.';
CREATE INDEX event_in_order ON event (xid, id);
CREATE INDEX event_of_run ON event (run_id, xid, id);
CREATE UNIQUE INDEX event_chain_once ON event (run_id, chain_no) WHERE chain_no IS NOT NULL;
CREATE UNIQUE INDEX event_accepted_once ON event (update_id) WHERE kind = 'update_accepted';
CREATE INDEX event_unchained ON event (run_id) WHERE chain IS NULL;
CREATE TRIGGER event_append_only BEFORE UPDATE ON event FOR EACH ROW
    WHEN (OLD.chain IS NOT NULL
          OR (OLD.id, OLD.xid, OLD.at, OLD.kind, OLD.run_id, OLD.round, OLD.slot, OLD.silo_id, OLD.update_id, OLD.message, OLD.detail)
          IS DISTINCT FROM (NEW.id, NEW.xid, NEW.at, NEW.kind, NEW.run_id, NEW.round, NEW.slot, NEW.silo_id, NEW.update_id, NEW.message, NEW.detail))
    EXECUTE FUNCTION refuse('the event log is append-only');
CREATE TRIGGER event_kept BEFORE DELETE ON event FOR EACH ROW EXECUTE FUNCTION refuse('the event log is append-only');
CREATE TRIGGER event_not_emptied BEFORE TRUNCATE ON event FOR EACH STATEMENT EXECUTE FUNCTION refuse('the event log is append-only');
CREATE TRIGGER event_notify AFTER INSERT ON event FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('events');

-- What an event says, as bytes for its link in the chain: independent of time zone and of jsonb's printing.
CREATE FUNCTION event_link(before bytea, e event) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(coalesce(before, ''::bytea) || convert_to(concat_ws(E'\x1f', e.id, extract(epoch FROM e.at), e.kind,
        coalesce(e.run_id, '-'), coalesce(e.round::text, '-'), coalesce(e.slot::text, '-'), coalesce(e.silo_id, '-'),
        coalesce(e.update_id::text, '-'), e.message, e.detail::text), 'UTF8'))
$$;

-- Chain the run's events that are not chained yet. The caller holds the run's row lock.
CREATE FUNCTION event_chain(the_run text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    e        event;
    last_no  bigint;
    last     bytea;
BEGIN
    SELECT chain_no, chain INTO last_no, last FROM event
     WHERE run_id = the_run AND chain_no IS NOT NULL ORDER BY chain_no DESC LIMIT 1;
    last_no := coalesce(last_no, 0);
    FOR e IN SELECT * FROM event WHERE run_id = the_run AND chain IS NULL ORDER BY xid, id LOOP
        last := event_link(last, e);
        last_no := last_no + 1;
        UPDATE event SET chain_no = last_no, chain = last WHERE id = e.id;
    END LOOP;
END
$$;

CREATE TABLE metric (
    run_id  text             NOT NULL,
    silo_id text,
    round   integer          NOT NULL,
    step    bigint           NOT NULL,
    name    text             NOT NULL,
    value   double precision NOT NULL,
    at      timestamptz      NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT metric_point_once   UNIQUE NULLS NOT DISTINCT (run_id, name, silo_id, step, round),
    CONSTRAINT metric_run_fk       FOREIGN KEY (run_id) REFERENCES run (id),
    CONSTRAINT metric_silo_fk      FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT metric_name_plain   CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
    CONSTRAINT metric_counts       CHECK (round >= 0 AND step >= 0),
    CONSTRAINT metric_finite       CHECK (is_finite(value))
);
COMMENT ON TABLE  metric         IS 'One point of one curve; a batch that comes twice is stored once (ON CONFLICT DO NOTHING).';
COMMENT ON COLUMN metric.silo_id IS 'Null: the aggregate, or what the server measured.';
COMMENT ON COLUMN metric.step    IS 'The run''s global step.';

CREATE TABLE metric_latest (
    run_id     text             NOT NULL,
    silo_id    text,
    name       text             NOT NULL,
    points     bigint           NOT NULL,
    last       double precision NOT NULL,
    last_round integer          NOT NULL,
    last_step  bigint           NOT NULL,
    min        double precision NOT NULL,
    max        double precision NOT NULL,
    first      double precision NOT NULL,
    first_step bigint           NOT NULL,
    at         timestamptz      NOT NULL,

    CONSTRAINT metric_latest_once UNIQUE NULLS NOT DISTINCT (run_id, name, silo_id)
);
COMMENT ON TABLE metric_latest IS 'Per curve its newest value and its extremes, so that lists never read history. Kept by a trigger.';

CREATE FUNCTION metric_summarise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO metric_latest AS m (run_id, silo_id, name, points, last, last_round, last_step, min, max, first, first_step, at)
    SELECT run_id, silo_id, name, count(*),
           (array_agg(value ORDER BY step DESC, round DESC))[1],
           (array_agg(round ORDER BY step DESC, round DESC))[1], max(step), min(value), max(value),
           (array_agg(value ORDER BY step, round))[1], min(step), max(at)
      FROM fresh
     GROUP BY run_id, silo_id, name
     ORDER BY run_id, name, silo_id -- one order for all, so that two batches never wait for each other
    ON CONFLICT ON CONSTRAINT metric_latest_once DO UPDATE
       SET points     = m.points + excluded.points,
           last       = CASE WHEN excluded.last_step >= m.last_step THEN excluded.last ELSE m.last END,
           last_round = CASE WHEN excluded.last_step >= m.last_step THEN excluded.last_round ELSE m.last_round END,
           last_step  = greatest(m.last_step, excluded.last_step),
           min        = least(m.min, excluded.min),
           max        = greatest(m.max, excluded.max),
           first      = CASE WHEN excluded.first_step < m.first_step THEN excluded.first ELSE m.first END,
           first_step = least(m.first_step, excluded.first_step),
           at         = greatest(m.at, excluded.at);
    RETURN NULL;
END
$$;
CREATE TRIGGER metric_summary AFTER INSERT ON metric REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION metric_summarise();

CREATE TABLE traffic (
    run_id         text   NOT NULL,
    number         integer NOT NULL,
    silo_id        text   NOT NULL,
    upload_bytes   bigint NOT NULL DEFAULT 0,
    download_bytes bigint NOT NULL DEFAULT 0,

    CONSTRAINT traffic_pk      PRIMARY KEY (run_id, number, silo_id),
    CONSTRAINT traffic_run_fk  FOREIGN KEY (run_id) REFERENCES run (id),
    CONSTRAINT traffic_silo_fk FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT traffic_counts  CHECK (number >= 0 AND upload_bytes >= 0 AND download_bytes >= 0)
);
COMMENT ON TABLE  traffic        IS 'Bytes of bulk bodies that crossed the socket, repeats and cut transfers included.';
COMMENT ON COLUMN traffic.number IS 'The round they were for; 0: checkpoint 0 and its evaluation.';

CREATE TABLE idempotency_key (
    token_id   text        NOT NULL,
    key        text        NOT NULL,
    request    bytea       NOT NULL,
    status     integer,
    answer     text,
    location   text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT idempotency_key_pk       PRIMARY KEY (token_id, key),
    CONSTRAINT idempotency_key_token_fk FOREIGN KEY (token_id) REFERENCES token (id),
    CONSTRAINT idempotency_key_short    CHECK (key ~ '^[!-~]{1,128}$'),
    CONSTRAINT idempotency_key_request  CHECK (octet_length(request) = 32),
    CONSTRAINT idempotency_key_answer   CHECK (num_nulls(status, answer) IN (0, 2))
);
COMMENT ON COLUMN idempotency_key.request IS 'SHA-256 of method, path and body: the same key for another request is refused.';
COMMENT ON COLUMN idempotency_key.answer  IS 'Stored in the transaction of the change itself, given again word for word.';
CREATE INDEX idempotency_key_age ON idempotency_key (created_at);

CREATE TABLE server_process (
    boot_id    text        NOT NULL,
    host       text        NOT NULL,
    pid        integer     NOT NULL,
    version    text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT server_process_pk PRIMARY KEY (boot_id)
);
COMMENT ON TABLE server_process IS 'Servers and their sign of life: when none lived for half a lease, the first one up extends all leases.';
