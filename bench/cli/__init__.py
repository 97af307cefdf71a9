"""The command line. A command imports torch only when it needs it."""
