-- 0013_roles.sql: what the role that serves may do. It owns nothing, so it can neither change nor drop a table, nor
-- disable a trigger; what is written once it may only add to.

-- The rights of that role, all of them: called by the owner after each migration. Two servers may start at once.
CREATE FUNCTION let_serve(who name) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    PERFORM pg_advisory_xact_lock(7020681215);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), who);
    IF pg_has_role((SELECT nspowner FROM pg_namespace WHERE nspname = current_schema()), 'USAGE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema()); -- before PostgreSQL 15 everybody has it
    END IF;
    FOR t IN SELECT relname FROM pg_class
              WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'v')
                AND relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    LOOP
        EXECUTE format('REVOKE ALL ON %I FROM %I', t.relname, who);
        EXECUTE format('GRANT SELECT ON %I TO %I', t.relname, who);
        IF t.relname NOT IN ('migration', 'event_kind') THEN
            EXECUTE format('GRANT INSERT ON %I TO %I', t.relname, who);
        END IF;
        IF t.relname NOT IN ('migration', 'event_kind', 'event', 'audit') THEN
            EXECUTE format('GRANT UPDATE ON %I TO %I', t.relname, who);
        END IF;
    END LOOP;
    EXECUTE format('GRANT UPDATE (chain_no, chain) ON event TO %I', who);
    EXECUTE format('GRANT DELETE ON audit, blob, idempotency_key, server_process, session TO %I', who);
END
$$;
COMMENT ON FUNCTION let_serve(name) IS 'DELETE of audit is for rows past their keeping: audit_kept refuses younger ones.';
REVOKE EXECUTE ON FUNCTION let_serve(name) FROM PUBLIC;
