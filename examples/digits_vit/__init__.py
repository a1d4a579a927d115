"""Dense, RigL, Diag and Block: a small vision transformer on scikit-learn's handwritten digits."""
