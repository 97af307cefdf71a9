"""Every operation compared with its reference and other implementations, by measurement or as compiled code."""
