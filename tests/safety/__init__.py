"""All that shows how safe weightmap is, in one table."""
