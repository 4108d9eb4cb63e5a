-- 0014_quota.sql: what a silo moved in a day, for the limits on it.

CREATE TABLE traffic_day (
    silo_id        text   NOT NULL,
    day            date   NOT NULL,
    upload_bytes   bigint NOT NULL DEFAULT 0,
    download_bytes bigint NOT NULL DEFAULT 0,

    CONSTRAINT traffic_day_pk      PRIMARY KEY (silo_id, day),
    CONSTRAINT traffic_day_silo_fk FOREIGN KEY (silo_id) REFERENCES silo (id),
    CONSTRAINT traffic_day_counts  CHECK (upload_bytes >= 0 AND download_bytes >= 0)
);
COMMENT ON TABLE traffic_day IS 'The bytes of traffic once more, by the day (UTC) they crossed the socket.';

CREATE FUNCTION today() RETURNS date LANGUAGE sql VOLATILE AS $$ SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date $$;
