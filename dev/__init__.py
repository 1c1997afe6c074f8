"""What only developers of nanoMLD need: the benchmark, the compile report, tables of results."""
