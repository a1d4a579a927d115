"""Products with row blocks that each read their own list of columns, and the transposed form."""
