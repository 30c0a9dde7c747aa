#!/bin/sh
# Put a backup back: all of it, or nothing if anything fails.  Stop the workers first.
#   restore.sh FILE.dump    in $BACKUPS; artifacts come from FILE.tar, if it is there
set -eu
: "${BACKUPS:?names the directory of backups}" "${PGDATABASE:?names the database}"
if [ $# -ne 1 ] || [ ! -f "$BACKUPS/$1" ]; then
  echo "error: write restore FILE.dump; $BACKUPS holds: $(cd "$BACKUPS" && echo *.dump)" >&2
  exit 2
fi
running=$(psql -Atc "SELECT count(*) FROM pg_stat_activity
  WHERE datname = current_database() AND usename = 'runes_worker'")
if [ "$running" -ne 0 ]; then
  echo "error: workers have $running connections to $PGDATABASE; stop them first" >&2
  exit 2
fi
pg_restore --clean --if-exists --single-transaction --exit-on-error \
  --dbname="$PGDATABASE" "$BACKUPS/$1"
artifacts="$BACKUPS/${1%.dump}.tar"
if [ -n "${ARTIFACTS:-}" ] && [ -f "$artifacts" ]; then
  tar -C "$ARTIFACTS" -xf "$artifacts"
fi
echo "restored $1"
