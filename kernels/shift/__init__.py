"""Products with width-1 wrapped diagonals."""
