"""Growth scores: norms of the dense gradient over units, without storing the dense gradient."""
