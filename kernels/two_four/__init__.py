"""2:4 weights, as ``NM(2, 4)`` stores them, for the matrix units' own sparse multiplication."""
