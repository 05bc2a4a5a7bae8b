"""Golden vectors: what EdgeKit's own arithmetic must give on every processor, to the last bit."""
