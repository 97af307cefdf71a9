"""Data sets (`data`) and the pipelines that make batches of them (`pipelines`), behind one contract (`batches`)."""
