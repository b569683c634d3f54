"""How PostgreSQL is run and reached: the embedded server, connections, what goes wrong with them. Knows no table."""
