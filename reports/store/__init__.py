"""Records on disk: schema, writing, reading."""
