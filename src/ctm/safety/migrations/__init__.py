"""The versions of the database's tables (Alembic), applied when a database is opened."""
