-- 0003_files.sql: files by digest, and the chain of checkpoints.

CREATE TABLE blob (
    digest     bytea       NOT NULL,
    bytes      bigint      NOT NULL,
    leaves     bytea       NOT NULL DEFAULT '',
    state      text        NOT NULL DEFAULT 'live',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    used_at    timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT blob_pk            PRIMARY KEY (digest),
    CONSTRAINT blob_digest_sha256 CHECK (octet_length(digest) = 32),
    CONSTRAINT blob_bytes_counted CHECK (bytes >= 0),
    CONSTRAINT blob_leaves_whole  CHECK (octet_length(leaves) % 36 = 0),
    CONSTRAINT blob_state_known   CHECK (state IN ('live', 'dead'))
);
COMMENT ON TABLE  blob        IS 'A file of the blob folder; the row''s lock guards the file.';
COMMENT ON COLUMN blob.digest IS 'Plain SHA-256 of the file: what sha256sum prints.';
COMMENT ON COLUMN blob.leaves IS 'SHA-256 and CRC32C of each 64 MiB leaf, 36 bytes each; empty when not computed.';
COMMENT ON COLUMN blob.state  IS 'dead: about to be removed; an uploader of the same content revives it under the lock.';
CREATE TRIGGER blob_immutable BEFORE UPDATE ON blob FOR EACH ROW
    WHEN ((OLD.digest, OLD.bytes) IS DISTINCT FROM (NEW.digest, NEW.bytes))
    EXECUTE FUNCTION refuse('content has one digest and one size');

CREATE TABLE checkpoint (
    run_id         text        NOT NULL,
    number         integer     NOT NULL,
    parent         integer     GENERATED ALWAYS AS (NULLIF(number, 0) - 1) STORED,
    weights        bytea       NOT NULL,
    weights_bytes  bigint      NOT NULL,
    weights_digest bytea       NOT NULL,
    outer_state    bytea,
    manifest       bytea,
    params         bigint      NOT NULL,
    finite         boolean     NOT NULL,
    kept           boolean     NOT NULL DEFAULT true,
    kept_weights   bytea       GENERATED ALWAYS AS (CASE WHEN kept THEN weights END) STORED,
    kept_state     bytea       GENERATED ALWAYS AS (CASE WHEN kept THEN outer_state END) STORED,
    eval_nll       double precision,
    eval_tokens    bigint,
    eval_bytes     bigint,
    eval_silos     integer,
    eval_s         double precision,
    eval_loss      double precision GENERATED ALWAYS AS (eval_nll / eval_tokens) STORED,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT checkpoint_pk             PRIMARY KEY (run_id, number),
    CONSTRAINT checkpoint_run_fk         FOREIGN KEY (run_id) REFERENCES run (id),
    CONSTRAINT checkpoint_from_zero      CHECK (number >= 0),
    CONSTRAINT checkpoint_parent_fk      FOREIGN KEY (run_id, parent) REFERENCES checkpoint (run_id, number),
    CONSTRAINT checkpoint_weights_sha256 CHECK (octet_length(weights) = 32 AND octet_length(weights_digest) = 32),
    CONSTRAINT checkpoint_state_sha256   CHECK (octet_length(outer_state) = 32),
    CONSTRAINT checkpoint_manifest_known CHECK ((number = 0) = (manifest IS NULL) AND octet_length(manifest) = 32),
    CONSTRAINT checkpoint_finite         CHECK (finite),
    CONSTRAINT checkpoint_sizes          CHECK (params >= 1 AND weights_bytes >= 4 * params),
    CONSTRAINT checkpoint_weights_fk     FOREIGN KEY (kept_weights) REFERENCES blob (digest),
    CONSTRAINT checkpoint_state_fk       FOREIGN KEY (kept_state) REFERENCES blob (digest),
    CONSTRAINT checkpoint_eval_whole     CHECK (num_nulls(eval_nll, eval_tokens, eval_bytes, eval_silos) IN (0, 4)),
    CONSTRAINT checkpoint_eval_finite    CHECK (is_finite(eval_nll) AND eval_tokens >= 1 AND eval_bytes >= 0 AND eval_silos >= 1)
);
COMMENT ON TABLE  checkpoint                IS 'Global weights after a round; 0 is the initial model. History can neither fork nor skip.';
COMMENT ON COLUMN checkpoint.weights        IS 'Digest of the safetensors file.';
COMMENT ON COLUMN checkpoint.weights_digest IS 'Digest of its data section alone: equal for equal weights, whatever the metadata says.';
COMMENT ON COLUMN checkpoint.manifest       IS 'Of the updates that made it, as in manifest_now; null only at 0.';
COMMENT ON COLUMN checkpoint.kept           IS 'False: the numbers remain, the files may be gone.';
COMMENT ON COLUMN checkpoint.eval_nll       IS 'Sum over held-out tokens of all silos, added in the order of silo names.';
CREATE INDEX checkpoint_by_weights ON checkpoint (kept_weights);
CREATE INDEX checkpoint_by_state ON checkpoint (kept_state);
CREATE TRIGGER checkpoint_immutable BEFORE UPDATE ON checkpoint FOR EACH ROW
    WHEN ((OLD.run_id, OLD.number, OLD.weights, OLD.weights_bytes, OLD.weights_digest, OLD.outer_state, OLD.manifest, OLD.params)
          IS DISTINCT FROM (NEW.run_id, NEW.number, NEW.weights, NEW.weights_bytes, NEW.weights_digest, NEW.outer_state, NEW.manifest, NEW.params)
          OR (NEW.kept AND NOT OLD.kept))
    EXECUTE FUNCTION refuse('a checkpoint never changes');
CREATE TRIGGER checkpoint_not_deleted BEFORE DELETE ON checkpoint FOR EACH ROW
    EXECUTE FUNCTION refuse('a checkpoint is never deleted');

ALTER TABLE run ADD CONSTRAINT run_head_fk FOREIGN KEY (id, head) REFERENCES checkpoint (run_id, number);
