"""The generator: what has which shape (layout), what the sketch fixes (frame), what is learnt."""
