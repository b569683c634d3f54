"""How a database comes to have the tables of `service/store/tables.py`: one file a step, in `versions/`."""
