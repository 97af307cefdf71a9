"""Cases: operations and pipelines measured by themselves, in steady state."""
