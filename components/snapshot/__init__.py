"""Stage `snapshot`: a source and a window of days become the tables of the data contract."""
