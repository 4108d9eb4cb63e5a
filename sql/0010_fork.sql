-- 0010_fork.sql: a run may begin where another one was.

ALTER TABLE run
    ADD COLUMN parent_run        text,
    ADD COLUMN parent_checkpoint integer,
    ADD COLUMN steps_before      bigint  NOT NULL DEFAULT 0,
    ADD COLUMN outer_before      integer NOT NULL DEFAULT 0,
    ADD COLUMN from_weights      bytea,
    ADD COLUMN from_state        bytea,
    ADD CONSTRAINT run_parent_fk       FOREIGN KEY (parent_run, parent_checkpoint) REFERENCES checkpoint (run_id, number),
    ADD CONSTRAINT run_parent_whole    CHECK (num_nulls(parent_run, parent_checkpoint) IN (0, 2)),
    ADD CONSTRAINT run_parent_other    CHECK (parent_run <> id),
    ADD CONSTRAINT run_before_of_fork  CHECK (steps_before >= 0 AND outer_before >= 0
                                              AND (parent_run IS NOT NULL OR (steps_before = 0 AND outer_before = 0))),
    ADD CONSTRAINT run_from_weights_fk FOREIGN KEY (from_weights) REFERENCES blob (digest),
    ADD CONSTRAINT run_from_state_fk   FOREIGN KEY (from_state) REFERENCES blob (digest),
    ADD CONSTRAINT run_from_until_zero CHECK (CASE WHEN state = 'created' THEN (from_weights IS NULL) = (parent_run IS NULL)
                                                   ELSE num_nulls(from_weights, from_state) = 2 END);
COMMENT ON COLUMN run.parent_run   IS 'The run that it was forked from, at parent_checkpoint; null for one that began with drawn weights.';
COMMENT ON COLUMN run.steps_before IS 'Global steps before its checkpoint 0: the learning rate and the data go on from there.';
COMMENT ON COLUMN run.outer_before IS 'Outer steps that the outer state it began with had seen.';
COMMENT ON COLUMN run.from_weights IS 'The parent''s file, kept until checkpoint 0 is written from it; from_state likewise.';
CREATE INDEX run_by_parent ON run (parent_run) WHERE parent_run IS NOT NULL;

CREATE TRIGGER run_lineage_immutable BEFORE UPDATE ON run FOR EACH ROW
    WHEN ((OLD.parent_run, OLD.parent_checkpoint, OLD.steps_before, OLD.outer_before)
          IS DISTINCT FROM (NEW.parent_run, NEW.parent_checkpoint, NEW.steps_before, NEW.outer_before))
    EXECUTE FUNCTION refuse('where a run came from never changes');
CREATE TRIGGER run_from_weights_live BEFORE INSERT ON run FOR EACH ROW EXECUTE FUNCTION blob_must_live('from_weights');
CREATE TRIGGER run_from_state_live BEFORE INSERT ON run FOR EACH ROW EXECUTE FUNCTION blob_must_live('from_state');

CREATE FUNCTION run_let_go_of_source() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.from_weights := NULL;
    NEW.from_state := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER run_started_lets_go BEFORE UPDATE OF state ON run FOR EACH ROW
    WHEN (OLD.state = 'created' AND NEW.state <> 'created') EXECUTE FUNCTION run_let_go_of_source();
