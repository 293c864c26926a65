"""Terms of the training loss, the baseline's own among them."""
