#!/bin/sh
# Write the database, and the artifacts where there are any, into $BACKUPS; prints what it wrote.
# Which database: PostgreSQL's own variables (PGHOST, PGDATABASE, PGUSER, PGPASSWORD).
set -eu
umask 077
: "${BACKUPS:?names the directory to write to}"
name="$BACKUPS/${PGDATABASE:?names the database}-$(date -u +%Y%m%dT%H%M%SZ)"
# Written beside and renamed: what has its final name is whole.
trap 'rm -f "$name.part"' EXIT
pg_dump --format=custom --file="$name.part"
mv "$name.part" "$name.dump"
echo "$name.dump"
if [ -n "${ARTIFACTS:-}" ] && [ -n "$(ls -A "$ARTIFACTS")" ]; then
  # 1 says that files came or went meanwhile; those that the dump knows were there before.
  tar -C "$ARTIFACTS" -cf "$name.part" . || [ $? -eq 1 ]
  mv "$name.part" "$name.tar"
  echo "$name.tar"
fi
