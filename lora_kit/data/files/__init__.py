"""Reading rows from JSON lines, CSV, Parquet and data set folders."""
