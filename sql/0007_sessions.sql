-- 0007_sessions.sql: a browser's secret, drawn at login, so that the token itself stays out of cookies.

CREATE TABLE session (
    hash       bytea       NOT NULL,
    token_id   text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,

    CONSTRAINT session_pk          PRIMARY KEY (hash),
    CONSTRAINT session_hash_sha256 CHECK (octet_length(hash) = 32),
    CONSTRAINT session_token_fk    FOREIGN KEY (token_id) REFERENCES token (id) ON DELETE CASCADE,
    CONSTRAINT session_ends        CHECK (expires_at > created_at)
);
COMMENT ON TABLE session IS 'A login: speaks for its token as long as both live.';
CREATE INDEX session_of_token ON session (token_id);
CREATE INDEX session_end ON session (expires_at);
