"""How tables and figures are drawn, whatever is in them."""
