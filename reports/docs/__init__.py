"""Tables and field lists that README and docs take from records and the schema."""
