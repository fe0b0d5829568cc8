"""Any DB-API 2.0 database as a source: SQLite, MySQL and MariaDB by their catalogs, others by their driver."""
