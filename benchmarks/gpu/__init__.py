"""`make gpu-check`: what can be known of a GPU on a GPU alone, in eight minutes, with random weights and no network."""
