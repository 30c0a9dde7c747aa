-- The database's users, each with the least that it needs.  As a superuser, in the study's database:
--   psql -v ON_ERROR_STOP=1 -d runes -f deploy/roles.sql
-- Passwords come from the environment.  It may be run again, to change them.
--   runes_owner   owns the database and its tables: hpo.init, hpo.confirm, backups, upgrades
--   runes_worker  reads and writes rows: hpo.worker
--   runes_reader  reads rows: hpo.status, hpo.dashboard, hpo.report, hpo.export
\set ON_ERROR_STOP on
\getenv owner_password RUNES_OWNER_PASSWORD
\getenv worker_password RUNES_WORKER_PASSWORD
\getenv reader_password RUNES_READER_PASSWORD

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['runes_owner', 'runes_worker', 'runes_reader']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE runes_owner PASSWORD :'owner_password';
ALTER ROLE runes_worker PASSWORD :'worker_password';
ALTER ROLE runes_reader PASSWORD :'reader_password';

SELECT format('ALTER DATABASE %I OWNER TO runes_owner', current_database()) \gexec
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO runes_worker, runes_reader', current_database()) \gexec
-- Heartbeats are moments of UTC; behind a pooler a client can't say so itself.
SELECT format('ALTER DATABASE %I SET timezone = ''UTC''', current_database()) \gexec

-- Tables that are there, and those that hpo.init makes later.
ALTER DEFAULT PRIVILEGES FOR ROLE runes_owner IN SCHEMA public
    GRANT SELECT ON TABLES TO runes_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE runes_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO runes_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE runes_owner IN SCHEMA public
    GRANT USAGE ON SEQUENCES TO runes_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO runes_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO runes_worker;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO runes_worker;
-- PostgreSQL before 15 lets everybody make tables here, and a database's owner not by himself.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
SELECT 'GRANT CREATE ON SCHEMA public TO runes_owner'
WHERE current_setting('server_version_num')::int < 150000 \gexec
