"""What README and docs take from records and the schema."""
