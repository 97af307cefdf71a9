"""Cases: operations and loading pipelines measured separately, in steady state."""
