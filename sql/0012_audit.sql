-- 0012_audit.sql: who changed what, from where, and what came of it.

CREATE TABLE audit (
    id       bigint      GENERATED ALWAYS AS IDENTITY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    role     text        NOT NULL,
    token_id text,
    name     text        NOT NULL,
    address  text        NOT NULL,
    action   text        NOT NULL,
    object   text        NOT NULL,
    status   integer     NOT NULL,
    left_out bigint      NOT NULL DEFAULT 0,
    request  text        NOT NULL,

    CONSTRAINT audit_pk            PRIMARY KEY (id),
    CONSTRAINT audit_token_fk      FOREIGN KEY (token_id) REFERENCES token (id),
    CONSTRAINT audit_role_known    CHECK (role IN ('nobody', 'viewer', 'admin', 'silo', 'join')),
    CONSTRAINT audit_who           CHECK ((role = 'nobody') = (token_id IS NULL)),
    CONSTRAINT audit_action_plain  CHECK (action ~ '^[a-z][a-z_]{0,39}$'),
    CONSTRAINT audit_texts_short   CHECK (greatest(length(name), length(address), length(object), length(request)) <= 200),
    CONSTRAINT audit_status_http   CHECK (status BETWEEN 200 AND 599),
    CONSTRAINT audit_left_out_count CHECK (left_out >= 0)
);
COMMENT ON TABLE  audit          IS 'Changes that people and silos asked for, and what was refused; append-only.';
COMMENT ON COLUMN audit.name     IS 'The token''s name as it was; the secret is nowhere.';
COMMENT ON COLUMN audit.address  IS 'The peer of the connection: behind a proxy it is the proxy''s.';
COMMENT ON COLUMN audit.object   IS 'What it was done to: an id, or method and path of what was refused before that was known.';
COMMENT ON COLUMN audit.status   IS 'The answer''s HTTP status; below 300 the change is in the same transaction as this row.';
COMMENT ON COLUMN audit.left_out IS 'Refusals since the row of a refusal before this one that got no row of their own.';
COMMENT ON COLUMN audit.request  IS 'The answer''s X-Request-Id.';
CREATE INDEX audit_of_action ON audit (action, id);
CREATE INDEX audit_by_token ON audit (token_id, action, id);
CREATE INDEX audit_by_age ON audit (at);

CREATE TRIGGER audit_append_only BEFORE UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION refuse('the audit log is append-only');
CREATE TRIGGER audit_kept BEFORE DELETE ON audit FOR EACH ROW WHEN (OLD.at > clock_timestamp() - interval '90 days')
    EXECUTE FUNCTION refuse('the audit log is kept for 90 days at least');
CREATE TRIGGER audit_not_emptied BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION refuse('the audit log is append-only');
