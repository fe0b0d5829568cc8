"""PostgreSQL: sessions, catalog, COPY transport, staging, publish and the ledger."""
