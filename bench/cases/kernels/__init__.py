"""Every operation against its reference and today's alternatives, on this machine or as compiled code."""
